#!/usr/bin/env python3
"""The nightly batch on made-up data: bench/nightly.py FOLDER [--users 500000] [--items 80000].

Writes events without held-out rows, imports them, trains one epoch of BPR (its vectors cost what any
factor model's cost), then times `similar --items all` and `recommend --users all`, 50 each, and prints
seconds and peak memory as rows for docs/performance.md. A folder that has the run already is used again.
"""
import argparse
import os
import random
import subprocess
import sys
import time

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "tessera")


def timed(*arguments):
    """Seconds and peak memory in MB of the program's own process."""
    start = time.time()
    process = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"tessera {' '.join(arguments)}: status {status}")
    return time.time() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=80_000)
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    path = lambda name: os.path.join(options.folder, name)  # noqa: E731
    os.makedirs(options.folder, exist_ok=True)
    if not os.path.exists(path("run/results.json")):
        draw = random.Random(999)
        with open(path("events.tsv"), "w", encoding="utf-8") as out:
            out.write("user_id\titem_id\tsplit\n")
            for item in range(options.items):  # every item once, so that all have a vector
                out.write(f"{item % options.users}\t{item}\ttrain\n")
            for user in range(options.users):
                for _ in range(4):  # popular items have low numbers
                    item = min(int(draw.paretovariate(0.5) - 1), draw.randrange(options.items))
                    out.write(f"{user}\t{item}\ttrain\n")
        for arguments in (("import", path("events.tsv"), "--split", "given", "-o", path("data"), "-q"),
                          ("train", "-m", "BPR", "-d", path("data"), "-o", path("run"), "--epochs", "1",
                           "--train_batch_size", "65536", "-j", options.threads, "-q")):
            seconds, megabytes = timed(*arguments)
            print(f"{arguments[0]}: {seconds:.1f} s, {megabytes:.0f} MB", file=sys.stderr)
    with open(path("some.txt"), "w", encoding="utf-8") as out:
        out.writelines(f"{user}\n" for user in range(options.users // 10))
    for arguments in (("similar", path("run"), "--items", "all", "-n", "50", "-o", path("similar.tsv")),
                      ("recommend", path("run"), "--users-file", path("some.txt"), "-n", "50", "-o",
                       path("some.tsv")),
                      ("recommend", path("run"), "--users", "all", "-n", "50", "-o", path("lists.tsv"))):
        seconds, megabytes = timed(*arguments, "-q", "--no-progress")
        print(f"| {options.items:,} items, {options.users:,} users | `{' '.join(arguments)}` | "
              f"{seconds:.1f} s, {megabytes:.0f} MB |")


if __name__ == "__main__":
    main()
