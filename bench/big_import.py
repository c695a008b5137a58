#!/usr/bin/env python3
"""Memory of an import: bench/big_import.py FOLDER [--rows 20000000].

Writes events of 1,000,000 users on 100,000 items, imports them with --split temporal-user and prints
seconds and peak memory as a row for docs/performance.md; status 1 where the peak reaches twice the file.
"""
import argparse
import os
import sys

import numpy as np

from nightly import timed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=20_000_000)
    options = parser.parse_args()
    events, data = (os.path.join(options.folder, name) for name in ("events.tsv", "data"))
    os.makedirs(options.folder, exist_ok=True)
    rng = np.random.default_rng(1)
    with open(events, "w", encoding="utf-8") as out:
        out.write("user_id\titem_id\ttimestamp\n")
        for left in range(options.rows, 0, -1_000_000):
            n = min(left, 1_000_000)
            users, times = rng.integers(0, 10**6, n), rng.integers(15 * 10**8, 17 * 10**8, n)
            items = (1e5 * rng.random(n) ** 2).astype(int)
            out.writelines(f"u{u}\ti{i}\t{t}\n" for u, i, t in zip(users, items, times))
    size = os.path.getsize(events) / 2**20
    seconds, megabytes = timed("import", events, "-o", data, "--split", "temporal-user", "-q")
    print(f"| import of {options.rows:,} rows ({size:.0f} MB) | {seconds:.0f} s, peak {megabytes:.0f} MB, "
          f"{megabytes / size:.2f} times the file |")
    return 0 if megabytes < 2 * size else 1


if __name__ == "__main__":
    sys.exit(main())
