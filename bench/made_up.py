#!/usr/bin/env python3
"""A made-up dataset of a wanted size, FOLDER/data:

made_up.py FOLDER --users N --items N --pairs N [--feature NAME=WIDTH]... [--held_out USERS]

Users have up to five pairs and some many more, items follow a power law, each occurs; features are normal
noise. Pairs drawn twice are one, so there are somewhat fewer. A fifth of the pairs is valid, or one pair each of
--held_out users."""
import argparse
import os
import subprocess

import numpy as np

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "tessera")


def feature_flags(folder, items, widths):
    """Files of random rows for these raw ids, as flags of 'tessera import'."""
    rng, flags = np.random.default_rng(8), []
    for name, width in widths.items():
        path = os.path.join(folder, name)
        np.save(f"{path}.npy", rng.standard_normal((len(items), width), dtype=np.float32))
        with open(f"{path}.ids", "w", encoding="utf-8") as file:
            file.writelines(f"{item}\n" for item in items)
        flags += ["--feature", f"{name}={path}.npy"]
    return flags


def write(folder, users, items, pairs, widths, held_out=None):
    """Writes the files; what follows 'tessera import' to read them."""
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng(7)
    least = max(1, min(5, pairs // users))
    user = np.concatenate([np.repeat(np.arange(users), least),
                           (users * rng.random(max(pairs - least * users, 0)) ** 2).astype(np.int64)])
    item = (items * rng.random(len(user)) ** 2.5).astype(np.int64)
    item[:items] = rng.permutation(items)[:len(item)]
    user, item = np.divmod(np.unique(user * items + item), items)
    if held_out is None:
        valid = rng.random(len(user)) < 0.2
    else:
        valid = np.zeros(len(user), bool)
        chosen = rng.permutation(np.unique(user))[:held_out]
        valid[np.searchsorted(user, chosen, side="right") - 1] = True
    path = os.path.join(folder, "pairs.tsv")
    with open(path, "w", encoding="utf-8") as file:
        file.write("user_id\titem_id\tsplit\n")
        for begin in range(0, len(user), 1_000_000):
            part = slice(begin, begin + 1_000_000)
            file.writelines(f"{u}\t{i}\t{'valid' if v else 'train'}\n" for u, i, v in
                            zip(user[part].tolist(), item[part].tolist(), valid[part].tolist()))
    return [path, *feature_flags(folder, range(items), widths)]


def make(folder, *size, **more):
    """write(), and the folder of the imported dataset."""
    data = os.path.join(folder, "data")
    subprocess.run([PROGRAM, "import", *write(folder, *size, **more), "-o", data, "-q"], check=True,
                   stdout=subprocess.DEVNULL)
    return data


def count(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"wanted a number from 1 up, got '{text}'")
    return int(text)


def feature(text):
    name, _, width = text.partition("=")
    return name, count(width)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    for name in ("--users", "--items", "--pairs"):
        parser.add_argument(name, type=count, required=True)
    parser.add_argument("--feature", type=feature, action="append", default=[])
    parser.add_argument("--held_out", type=count)
    options = parser.parse_args()
    make(options.folder, options.users, options.items, options.pairs, dict(options.feature), options.held_out)


if __name__ == "__main__":
    main()
