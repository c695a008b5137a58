#!/usr/bin/env python3
"""growth.py [-m MODEL]... [--axis NAME]... [-j THREADS]: how time and memory grow.

Made-up datasets along one axis at a time: pairs (users and items with them), users, items, width of a feature,
number of modalities. An epoch has 50 steps whatever the size, 2,000 users hold out a pair. Prints seconds of an
epoch (the faster of two) and peak memory for each size, the exponent of a line through the logarithms of size and
seconds, and those of seconds and of memory between the two largest sizes; 1 is linear."""
import argparse
import json
import os
import subprocess
import tempfile

import numpy as np

from made_up import PROGRAM, make

BASE = {"users": 12_500, "items": 5_000, "pairs": 100_000, "width": 128, "modalities": 2}
AXES = {
    "pairs": [{"pairs": n, "users": n // 8, "items": n // 20} for n in (10_000, 100_000, 1_000_000, 3_000_000)],
    "users": [{"users": n, "pairs": 1_000_000} for n in (30_000, 100_000, 300_000, 900_000)],
    "items": [{"items": n, "pairs": 1_000_000, "users": 100_000} for n in (10_000, 30_000, 100_000, 300_000)],
    "width": [{"width": n} for n in (128, 512, 2048, 8192)],
    "modalities": [{"modalities": n} for n in (1, 2, 4, 8)],
}
WITHOUT_FEATURES = ("BPR", "LightGCN")


def measure(size, models, threads, folder):
    data = make(folder, size["users"], size["items"], size["pairs"],
                {f"m{k}": size["width"] for k in range(size["modalities"])}, held_out=2000)
    with open(os.path.join(data, "dataset.json"), encoding="utf-8") as file:
        n_train = json.load(file)["n_train"]
    out = {}
    for model in models:
        run = os.path.join(folder, model)
        subprocess.run([PROGRAM, "train", "-d", data, "-m", model, "--epochs", "2", "--train_batch_size",
                        str(-(-n_train // 50)), "-j", str(threads), "-o", run, "-q", "--no-progress"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            seconds = [line["time_s"] for line in map(json.loads, file)
                       if line.get("event") == "epoch" and line.get("phase") == "train"]
        with open(os.path.join(run, "results.json"), encoding="utf-8") as file:
            out[model] = min(seconds), json.load(file)["peak_rss_mb"]
    return out


def exponent(sizes, values):
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--axis", action="append", choices=list(AXES))
    parser.add_argument("-j", "--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    models = options.model or ["BPR", "LightGCN", "VBPR", "BM3"]
    for axis in options.axis or AXES:
        chosen = [m for m in models if axis not in ("width", "modalities") or m not in WITHOUT_FEATURES]
        sizes, rows = [size[axis] for size in AXES[axis]], []
        for size in AXES[axis]:
            with tempfile.TemporaryDirectory(prefix="tessera-growth-") as folder:
                rows.append(measure({**BASE, **size}, chosen, options.threads, folder))
        for model in chosen:
            seconds, peaks = zip(*[row[model] for row in rows])
            cells = "; ".join(f"{s:.3g} s {mb:.0f} MB" for s, mb in zip(seconds, peaks))
            fits = exponent(sizes, seconds), exponent(sizes[-2:], seconds[-2:]), exponent(sizes[-2:], peaks[-2:])
            print(f"| {axis} {' '.join(f'{n:,}' for n in sizes)} | {model} | {cells} | "
                  f"{' | '.join(f'{e:.2f}' for e in fits)} |", flush=True)


if __name__ == "__main__":
    main()
