#!/usr/bin/env python3
"""Recall of runs by how many train rows a user has.

    .venv/bin/python bench/by_train_rows.py DATASET LABEL=RUN[,RUN]... [--metric recall@20]

A label's runs (seeds) are averaged user by user, from their per_user.tsv. For users with 1, 2, 3 and
more train rows: the mean of each label, and the first label minus it with a 95 % interval of 10,000
bootstrap resamples of users."""
import argparse
import csv
from collections import Counter
from pathlib import Path

import numpy as np

RESAMPLES, CHUNK = 10_000, 500


def values_of(runs, metric):
    """user -> mean over the runs"""
    sums = Counter()
    for run in runs:
        with open(Path(run) / "per_user.tsv", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                sums[row["user"]] += float(row[metric]) / len(runs)
    return sums


def interval(x, rng):
    means = np.concatenate([x[rng.integers(0, len(x), (CHUNK, len(x)))].mean(1)
                            for _ in range(RESAMPLES // CHUNK)])
    return np.percentile(means, [2.5, 97.5])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("rows", nargs="+", metavar="LABEL=RUN[,RUN]")
    parser.add_argument("--metric", default="recall@20")
    options = parser.parse_args()
    for row in options.rows:
        if "=" not in row:
            parser.error(f"expected LABEL=RUN, got '{row}'")
        for run in row.split("=", 1)[1].split(","):
            if not (Path(run) / "per_user.tsv").is_file():
                parser.error(f"'{run}' has no per_user.tsv: give finished run folders")
            with open(Path(run) / "per_user.tsv", encoding="utf-8") as file:
                known = file.readline().rstrip("\n").split("\t")
            if options.metric not in known:
                parser.error(f"no metric '{options.metric}' in '{run}': it has {', '.join(known[2:])}")
    if not (options.dataset / "interactions.tsv").is_file():
        parser.error(f"'{options.dataset}' is no dataset folder")
    with open(options.dataset / "interactions.tsv", encoding="utf-8") as file:
        trained = Counter(row["user_id"] for row in csv.DictReader(file, delimiter="\t")
                          if row["split"] == "train")
    rows = {label: values_of(runs.split(","), options.metric)
            for label, runs in (row.split("=", 1) for row in options.rows)}
    first = next(iter(rows.values()))
    groups = {"1": lambda n: n == 1, "2": lambda n: n == 2, "3": lambda n: n == 3, "more": lambda n: n > 3}
    groups = {name: [u for u in first if inside(trained[u])] for name, inside in groups.items()}
    print("| train rows of a user | " + " | ".join(f"{g} ({len(u)} users)" for g, u in groups.items()) + " |")
    print("|---" * (len(groups) + 1) + "|")
    rng = np.random.default_rng(1)
    for label, of in rows.items():
        cells = []
        for users in groups.values():
            own = np.array([of[u] for u in users])
            cell = f"{own.mean():.4f}" if users else "-"
            if users and of is not first:
                difference = np.array([first[u] for u in users]) - own
                low, high = interval(difference, rng)
                cell += f" ({difference.mean():+.4f} [{low:+.4f}, {high:+.4f}])"
            cells.append(cell)
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
