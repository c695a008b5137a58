#!/usr/bin/env python3
"""run.py DATASET MODEL START.safetensors: the plain PyTorch program of a model (see models.py and
sequential.py).

--check        repeats the 50 recorded steps of bench_dump (KDSR: 15): exit 1 where a loss differs by more than
               1e-4, of the loss where that is above 1 (float32 rounds to its size), or where a validation
               before the first step finds something else
--epochs N     trains N epochs and ranks the validation rows after each; one JSON line of times
--form a|b     of a sequence model
--max_length L of its rows"""
import argparse
import json
import sys
import time

import numpy as np
import torch

from data import Data, agree, peak_mb, read_safetensors
import models
import sequential

K, RANK_BLOCK = 50, 4096


def train_epoch(model, optimiser, epoch, rng):
    model.begin_epoch(epoch, optimiser)
    total = 0.0
    for batch in model.batches(rng):
        optimiser.zero_grad()
        loss = model.loss(*batch)
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total


def evaluate(model, data, block_rows=RANK_BLOCK):
    """recall, precision, ndcg, hit, map, mrr at 5, 10, 20, 50 of the validation rows."""
    with torch.no_grad():
        scores_of = model.ranker()
        held = [[] for _ in range(data.n_users)]
        for u, i in data.rows["valid"]:
            held[u].append(i)
        asked = np.array([u for u in range(data.n_users) if held[u]])
        sums = {}
        for begin in range(0, len(asked), block_rows):
            block = asked[begin:begin + block_rows]
            top = torch.topk(scores_of(block), min(K, data.n_items), dim=1).indices.numpy()
            n_held = np.array([len(held[u]) for u in block])
            if n_held.max() == 1:
                hits = top == np.array([held[u][0] for u in block])[:, None]
            else:
                hits = np.stack([np.isin(top[row], held[u]) for row, u in enumerate(block)])
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


def check_ranking(model, data, recorded):
    """Both rank before the first step with the same weights. Scores that round differently may swap two items:
    a metric may differ by what two users make of it, the first users' lists without their train items by one
    item in a thousand. Each difference as a share of its bound."""
    wanted = {name[6:]: t.item() for name, t in recorded.items() if name.startswith("valid.")}
    if not wanted:
        return {}
    found = evaluate(model, data)
    bound = 2 / wanted.pop("n_users")
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    out = {name: abs(found[name] - wanted[name]) / bound for name in wanted}
    lists = recorded["lists"].numpy()
    with torch.no_grad():
        top = torch.topk(model.ranker()(np.arange(len(lists))), lists.shape[1], dim=1).indices.numpy()
    out["lists"] = np.mean([~np.isin(a, b) for a, b in zip(lists, top)]) / 1e-3
    return out


def check(model, data, optimiser, recorded):
    ranking = check_ranking(model, data, recorded)
    differences = []
    losses = recorded["loss"].tolist()[:model.N_CHECKED]
    for k, wanted in enumerate(losses, start=1):
        of = {name.split(".", 1)[1]: t for name, t in recorded.items() if name.startswith(f"{k}.")}
        if "epoch" in of:
            model.begin_epoch(int(of["epoch"]), optimiser)
        optimiser.zero_grad()
        loss = model.loss(*model.replay(of))
        loss.backward()
        optimiser.step()
        differences.append(abs(loss.item() - wanted) / max(1.0, abs(wanted)))
    return agree({"losses": differences}, ranking)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("model", choices=[*models.MODELS, *sequential.MODELS])
    parser.add_argument("start")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=int, help="pairs, of models.py")
    parser.add_argument("--form", choices=["a", "b"], default="b")
    parser.add_argument("--max_length", type=int, default=50)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recorded = read_safetensors(options.start)
    data = Data(options.dataset)
    start = {name[5:]: t for name, t in recorded.items()
             if name.startswith("init.") and name[5:].split("/")[0] == name[5:]}
    start = {k: v for k, v in start.items()
             if not k.endswith((".m", ".v", ".last_step", ".step"))}
    if options.model in models.MODELS:
        model = models.MODELS[options.model](data, start)
    else:
        model = sequential.MODELS[options.model](data, start, options.form, options.max_length)
    if options.batch:
        model.BATCH = options.batch
    optimiser = model.optimiser()
    if options.check:
        sys.exit(0 if check(model, data, optimiser, recorded) else 1)
    del recorded
    rng = np.random.default_rng(1)
    result = {"train_s": [], "eval_s": []}
    for epoch in range(options.epochs):
        begin = time.perf_counter()
        train_epoch(model, optimiser, epoch, rng)
        result["train_s"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        result["valid"] = evaluate(model, data)
        result["eval_s"].append(time.perf_counter() - begin)
    result["peak_mb"] = peak_mb()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
