#!/usr/bin/env python3
"""run.py DATASET MODEL START.safetensors: the plain PyTorch program of a model (see models.py).

--check    repeats the 50 recorded steps of bench_dump and compares the losses: exit 1 above 1e-4
--epochs N trains N epochs and ranks the validation rows after each; one JSON line of times"""
import argparse
import json
import resource
import sys
import time

import numpy as np
import torch

from data import Data, read_safetensors
from models import MODELS

BATCH, K, RANK_BLOCK = 2048, 50, 4096


def negatives(users, data, trained, taken, rng):
    out = trained[rng.integers(len(trained), size=len(users))]
    while True:
        pairs = users * data.n_items + out
        again = taken[np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)] == pairs
        if not again.any():
            return out
        out[again] = trained[rng.integers(len(trained), size=int(again.sum()))]


def train_epoch(model, optimiser, data, trained, taken, rng):
    rows = data.rows["train"][rng.permutation(len(data.rows["train"]))]
    total = 0.0
    for begin in range(0, len(rows), BATCH):
        users, items = rows[begin:begin + BATCH].T
        optimiser.zero_grad()
        loss = model.loss(torch.from_numpy(users), torch.from_numpy(items),
                          torch.from_numpy(negatives(users, data, trained, taken, rng)), None)
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total


def evaluate(model, data, score=None, block_rows=RANK_BLOCK):
    """recall, precision, ndcg, hit, map, mrr at 5, 10, 20, 50 of the validation rows; score(users) is
    [users, items], by default the products of the model's vectors."""
    with torch.no_grad():
        if score is None:
            users, items = model.vectors()
            score = lambda block: users[block] @ items.T  # noqa: E731
        held = [[] for _ in range(data.n_users)]
        for u, i in data.rows["valid"]:
            held[u].append(i)
        asked = np.array([u for u in range(data.n_users) if held[u]])
        seen = data.rows["train"][np.argsort(data.rows["train"][:, 0], kind="stable")]
        starts = np.searchsorted(seen[:, 0], np.arange(data.n_users + 1))
        sums = {}
        for begin in range(0, len(asked), block_rows):
            block = asked[begin:begin + block_rows]
            scores = score(block)
            for row, u in enumerate(block):
                scores[row, torch.from_numpy(seen[starts[u]:starts[u + 1], 1])] = -np.inf
            top = torch.topk(scores, min(K, data.n_items), dim=1).indices.numpy()
            hits = np.stack([np.isin(top[row], held[u]) for row, u in enumerate(block)])
            n_held = np.array([len(held[u]) for u in block])
            discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
            ideal = np.concatenate([[0], np.cumsum(discount)])
            precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
            for k in (5, 10, 20, 50):
                h = hits[:, :k]
                found = h.sum(1)
                first = np.where(found > 0, h.argmax(1) + 1, np.inf)
                best = np.minimum(n_held, k)
                for name, value in (("recall", found / n_held), ("precision", found / k),
                                    ("hit", found > 0), ("mrr", 1 / first),
                                    ("ndcg", (h * discount[:k]).sum(1) / ideal[best]),
                                    ("map", (h * precision[:, :k]).sum(1) / best)):
                    sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + float(np.sum(value))
        return {name: value / len(asked) for name, value in sums.items()}


def check(model, optimiser, recorded):
    worst = 0.0
    for k, wanted in enumerate(recorded["loss"].tolist(), start=1):
        of = {name.split(".", 1)[1]: t for name, t in recorded.items() if name.startswith(f"{k}.")}
        masks = {name[5:]: (of["distinct_users" if name == "kept.user" else "distinct_items"], kept)
                 for name, kept in of.items() if name.startswith("kept.")}
        negative = of["negatives"].flatten() if "negatives" in of else None
        optimiser.zero_grad()
        loss = model.loss(of["users"], of["positives"], negative, masks)
        loss.backward()
        optimiser.step()
        worst = max(worst, abs(loss.item() - wanted))
    print(json.dumps({"steps": len(recorded["loss"]), "largest_loss_difference": worst}))
    return worst <= 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("start")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recorded = read_safetensors(options.start)
    data = Data(options.dataset)
    start = {name[5:]: t for name, t in recorded.items()
             if name.startswith("init.") and name[5:].split("/")[0] == name[5:]}
    start = {k: v for k, v in start.items()
             if not k.endswith((".m", ".v", ".last_step", ".step"))}
    model = MODELS[options.model](data, start)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    if options.check:
        sys.exit(0 if check(model, optimiser, recorded) else 1)
    del recorded
    rng = np.random.default_rng(1)
    trained = np.unique(data.rows["train"][:, 1])
    taken = np.unique(data.rows["train"] @ np.array([data.n_items, 1]))
    result = {"train_s": [], "eval_s": []}
    for _ in range(options.epochs):
        begin = time.perf_counter()
        train_epoch(model, optimiser, data, trained, taken, rng)
        result["train_s"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        result["valid"] = evaluate(model, data)
        result["eval_s"].append(time.perf_counter() - begin)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
