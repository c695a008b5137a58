#!/usr/bin/env python3
"""pamd.py DATASET START.safetensors: PAMD in plain PyTorch (stock operators, autograd, dense Adam),
written from the specification; two modalities or more, every item with all of them, default settings
with prep = pca (the prepared rows are in START) or none (the raw rows are in DATASET).

--check        repeats the 50 recorded steps of pretraining and of fine-tuning from bench_dump and
               compares the losses (of fine-tuning: a pair's): exit 1 above 1e-4
--pretrain N   N epochs of pretraining           --epochs N   N epochs of fine-tuning, each ranked
--products     the products alone that an epoch of pretraining needs, by torch.mm
One JSON line of seconds."""
import argparse
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from data import Data, agree, peak_mb, read_safetensors
from models import hider, negatives
from run import evaluate

TAU, RATE, DECAY = 0.5, 1e-3, 1e-5
ITEMS, PAIRS, RANKED = 100, 1024, 512  # a batch of pretraining, of fine-tuning; users ranked at once


def linear(recorded, name):
    weight = recorded[name + ".weight"]
    out = torch.nn.Linear(*weight.shape, bias=name + ".bias" in recorded)
    out.weight.data = weight.t().contiguous()
    if out.bias is not None:
        out.bias.data = recorded[name + ".bias"]
    return out


class Pamd(torch.nn.Module):
    """`recorded`: tensors by Tessera's names; x: the prepared rows by modality, [n_items, D]"""

    def __init__(self, recorded, x, counts):
        super().__init__()
        self.x, self.names, self.counts = x, list(x), counts
        self.encoder = torch.nn.ModuleDict({m: linear(recorded, m + ".encoder") for m in x})
        self.common = torch.nn.ModuleDict({m: linear(recorded, m + ".common") for m in x})
        self.decoder = torch.nn.ModuleDict({
            f"{a}_{b}": linear(recorded, f"{a}.to_{b}.decoder") for a in x for b in x if a != b})
        self.users = torch.nn.Embedding.from_pretrained(recorded["user_embedding"], freeze=False)
        self.items = torch.nn.Embedding.from_pretrained(recorded["item_embedding"], freeze=False)

    def split(self, m, items):
        e = self.encoder[m](self.x[m][items])
        c = self.common[m](e)
        return e, c, e - c

    # --- pretraining
    def pretraining_parameters(self):
        return [p for part in (self.encoder, self.common, self.decoder) for p in part.parameters()]

    def order(self, a, b, parts, items):
        target = self.x[b][items]
        p = torch.stack([F.cosine_similarity(target, self.decoder[f"{a}_{b}"](y), dim=1, eps=1e-12)
                         for y in (parts[1], parts[0], parts[2])]) / TAU
        l1 = torch.logsumexp(p, 0) - p[0]
        l2 = torch.logsumexp(p[1:], 0) - p[1]
        return (l1 + l2).mean()

    def pretraining_loss(self, items):
        parts = {m: self.split(m, items) for m in self.names}
        total, n_pairs = 0.0, 0
        for i, a in enumerate(self.names):
            for b in self.names[i + 1:]:
                sim = (parts[a][1] - parts[b][1]).pow(2).mean()
                ort = (parts[a][2] * parts[b][2]).sum(1).pow(2).mean()
                total = total + sim + ort + self.order(a, b, parts[a], items) + self.order(
                    b, a, parts[b], items)
                n_pairs += 1
        return total / n_pairs

    # --- fine-tuning
    def groups(self):
        tuned = [p for part in (self.encoder, self.common) for p in part.parameters()]
        return [{"params": tuned}, {"params": [self.users.weight, self.items.weight]}]

    def parts(self, items):
        split = [self.split(m, items) for m in self.names]
        return torch.stack([c for _, c, _ in split] + [s for _, _, s in split], 1)

    def pairs(self, p, parts, ids):
        a = (parts * p.unsqueeze(1)).sum(2)
        q = ids + (torch.softmax(a, 1).unsqueeze(2) * parts).sum(1)
        return (p * q).sum(1)

    def loss(self, u, i, j):
        distinct, places = torch.unique(torch.cat([i, j]), return_inverse=True)
        parts = self.parts(distinct)[places]
        p = self.users(u)
        y = self.pairs(torch.cat([p, p]), parts, self.items(torch.cat([i, j])))
        return F.softplus(-y[:len(u)]).sum() + F.softplus(y[len(u):]).sum()

    def ranker(self):
        parts = self.parts(torch.arange(len(self.counts))).permute(1, 2, 0).contiguous()
        ids = self.items.weight * (self.counts > 0).unsqueeze(1)

        def scores_of(block):
            p = self.users.weight[torch.from_numpy(block)]
            a = p @ parts
            return self.hide(p @ ids.T + (torch.softmax(a, 0) * a).sum(0), block)
        return scores_of


def step(optimiser, loss):
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def check(model, recorded):
    differences = {}
    adam = torch.optim.Adam(model.pretraining_parameters(), RATE, weight_decay=DECAY)
    steps = recorded["pre.loss"].tolist()
    differences["pretraining"] = [abs(step(adam, model.pretraining_loss(recorded[f"pre.{k}.items"])) - wanted)
                                  for k, wanted in enumerate(steps)]
    model = Pamd({n[5:]: t for n, t in recorded.items() if n.startswith("init.")}, model.x, model.counts)
    adam = torch.optim.Adam(model.groups(), RATE, weight_decay=DECAY)
    differences["fine_tuning"] = []
    for k, wanted in enumerate(recorded["loss"].tolist(), start=1):
        u, i, j = (recorded[f"{k}.{name}"].flatten() for name in ("users", "positives", "negatives"))
        differences["fine_tuning"].append(abs(step(adam, model.loss(u, i, j)) - wanted) / len(u))
    return agree(differences)


def products(model, seconds=10):
    """Seconds that the products of one epoch of pretraining take by themselves."""
    d = model.users.weight.shape[1]
    shapes = []
    for m in model.names:
        width = model.x[m].shape[1]
        shapes += [(ITEMS, width, d), (width, ITEMS, d)]  # encoder and its gradient
        for other in model.names:  # decoders of common, whole and specific, and both gradients
            if other != m:
                shapes += [(3 * ITEMS, d, width), (3 * ITEMS, width, d), (d, 3 * ITEMS, width)]
    operands = [(torch.randn(n, k), torch.randn(k, m)) for n, k, m in shapes]
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        for a, b in operands:
            torch.mm(a, b)
        times.append(time.perf_counter() - begin)
    steps = -(-len(model.counts) // ITEMS)
    flops = sum(2 * n * k * m for n, k, m in shapes) * steps
    return {"products_s": float(np.median(times)) * steps, "products_gflop": flops / 1e9}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("start")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--pretrain", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recorded = read_safetensors(options.start)
    data = Data(options.dataset)
    counts = torch.from_numpy(np.bincount(data.rows["train"][:, 1], minlength=data.n_items))
    x = {m: recorded.get(f"x.{m}", raw) for m, raw in data.features.items()}
    start = "start." if options.check else "init."  # pretraining begins before fine-tuning does
    model = Pamd({n[len(start):]: t for n, t in recorded.items() if n.startswith(start)}, x, counts)
    if options.check:
        sys.exit(0 if check(model, recorded) else 1)
    del recorded
    data.features = None
    result = {"pretrain_s": [], "train_s": [], "eval_s": []}
    if options.products:
        result.update(products(model))
    adam = torch.optim.Adam(model.pretraining_parameters(), RATE, weight_decay=DECAY)
    for _ in range(options.pretrain):
        begin = time.perf_counter()
        for items in torch.randperm(data.n_items).split(ITEMS):
            step(adam, model.pretraining_loss(items))
        result["pretrain_s"].append(time.perf_counter() - begin)
    adam = torch.optim.Adam(model.groups(), RATE, weight_decay=DECAY)
    rng = np.random.default_rng(1)
    model.hide = hider(data)
    for _ in range(options.epochs):
        begin = time.perf_counter()
        rows = data.rows["train"][rng.permutation(len(data.rows["train"]))]
        for users, items in (part.T for part in np.split(rows, range(PAIRS, len(rows), PAIRS))):
            other = negatives(users, data, rng)
            step(adam, model.loss(*map(torch.from_numpy, (users, items, other))))
        result["train_s"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        with torch.no_grad():
            result["valid"] = evaluate(model, data, RANKED)
        result["eval_s"].append(time.perf_counter() - begin)
    result["peak_mb"] = peak_mb()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
