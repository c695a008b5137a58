#!/usr/bin/env python3
"""large.py FOLDER shop|large [-j THREADS]: from files to lists, on made-up data of

shop: 500,000 users, 80,000 items, 5,000,000 clicks, features of 512 and 384 columns: VBPR and BM3, 10 epochs each
of batches of 32,768, and from each the lists of all users and the neighbours of all items.
large: 1,000,000 users, 300,000 items, 20,000,000 clicks, two features of 128 columns: LightGCN and BM3, one epoch
of batches of 131,072 and an evaluation of 20,000 users who hold out a pair.

Prints seconds and peak memory of each command. The files are made first and not timed."""
import argparse
import json
import os
import shutil

from made_up import write
from nightly import timed

SIZES = {"shop": (500_000, 80_000, 5_000_000, {"image": 512, "text": 384}, 20_000),
         "large": (1_000_000, 300_000, 20_000_000, {"image": 128, "text": 128}, 20_000)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("-j", "--threads", default="2")
    options = parser.parse_args()
    path = lambda name: os.path.join(options.folder, name)  # noqa: E731
    files = write(options.folder, *SIZES[options.size])
    total, highest = 0.0, 0.0

    def step(*arguments):
        nonlocal total, highest
        seconds, megabytes = timed(*arguments, "-q")
        total, highest = total + seconds, max(highest, megabytes)
        shown = " ".join(argument.replace(options.folder + "/", "") for argument in arguments)
        print(f"| `{shown}` | {seconds:.1f} | {megabytes:,.0f} |", flush=True)

    shutil.rmtree(path("data"), ignore_errors=True)
    step("import", *files, "-o", path("data"))
    shop = options.size == "shop"
    for model in ("VBPR", "BM3") if shop else ("LightGCN", "BM3"):
        run = path(model)
        shutil.rmtree(run, ignore_errors=True)
        step("train", "-d", path("data"), "-m", model, "--epochs", "10" if shop else "1", "--train_batch_size",
             "32768" if shop else "131072", "-j", options.threads, "-o", run, "--no-progress")
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            epochs = [(line["phase"], line["time_s"]) for line in map(json.loads, file)
                      if line.get("event") == "epoch" and "time_s" in line]
        for phase in ("train", "valid"):
            times = sorted(seconds for p, seconds in epochs if p == phase)
            print(f"| of it, {phase}: seconds of an epoch, median | {times[len(times) // 2]:.1f} | |", flush=True)
        if shop:
            step("recommend", run, "--users", "all", "-n", "50", "-o", path("lists.tsv"), "--no-progress")
            step("similar", run, "--items", "all", "-n", "50", "-o", path("similar.tsv"), "--no-progress")
    print(f"| all | {total:.0f} | {highest:,.0f} |")


if __name__ == "__main__":
    main()
