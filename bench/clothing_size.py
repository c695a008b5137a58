#!/usr/bin/env python3
"""clothing_size.py FOLDER [SHARE]: a made-up dataset FOLDER/data as large as Amazon Clothing (39,387 users,
23,033 items, 278,677 pairs, features of 4,096 and 384 columns), or a share of its users and items."""
import os
import subprocess
import sys

import numpy as np

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "tessera")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder, share = sys.argv[1], float(sys.argv[2]) if len(sys.argv) == 3 else 1.0
    n_users, n_items, n_pairs = (int(share * n) for n in (39_387, 23_033, 278_677))
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(7)
    users = np.arange(n_pairs) % n_users
    items = (n_items * rng.random(n_pairs) ** 1.5).astype(np.int64)
    items[:n_items] = np.arange(n_items)
    path = os.path.join(folder, "pairs.tsv")
    with open(path, "w", encoding="utf-8") as file:
        file.write("user_id\titem_id\n")
        file.writelines(f"{u}\t{i}\n" for u, i in zip(users.tolist(), items.tolist()))
    features = []
    for name, width in (("image", 4096), ("text", 384)):
        rows = os.path.join(folder, name)
        np.save(f"{rows}.npy", rng.standard_normal((n_items, width), dtype=np.float32))
        with open(f"{rows}.ids", "w", encoding="utf-8") as file:
            file.writelines(f"{i}\n" for i in range(n_items))
        features += ["--feature", f"{name}={rows}.npy"]
    subprocess.run([PROGRAM, "import", path, "-o", os.path.join(folder, "data"), *features], check=True)


if __name__ == "__main__":
    main()
