#!/usr/bin/env python3
"""MMSSL (variant = paper) in plain PyTorch: what Tessera's step is timed against.

    .venv/bin/python bench/reference/mmssl.py DATASET_FOLDER [--steps 5] [--threads 2]
                                              [--modalities image,audio] [--d_hidden 64,32]

Dense rows in the discriminator, double backward by autograd, torch.sparse.mm for propagation, stock
optimisers. Reads a folder made by `tessera import`; prints seconds a step and peak memory. The
formulas are those of tessera/models/mmssl.cpp; random numbers are torch's.
"""
import argparse
import csv
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

D, HEADS, LAYERS, BATCH = 64, 4, 2, 1024
ETA, OMEGA, TAU, CL_RATE, G_RATE, LAMBDA, ZETA, TOPK = 0.36, 0.55, 0.5, 0.003, 1e-4, 0.3, 1.0, 10


def read(folder, modalities):
    """Train pairs as indices, and by modality float32 rows [n_items, width], z-scored by column over the
    items that have one, and which have [n_items, 1]; rows of the others are 0."""
    def ids(name):
        with open(folder / name) as lines:
            rows = [line.rstrip("\n").split("\t") for line in lines]
        return {raw: int(index) for raw, index in rows if index.isdigit()}

    users, items = ids("user_map.tsv"), ids("item_map.tsv")
    with open(folder / "interactions.tsv") as lines:
        pairs = [(users[r["user_id"]], items[r["item_id"]])
                 for r in csv.DictReader(lines, delimiter="\t") if r["split"] == "train"]
    manifest = json.loads((folder / "features.json").read_text())
    features = []
    for name in modalities or manifest:
        rows = np.load(folder / manifest[name]["file"]).astype(np.float32)
        named = folder / (manifest[name]["ids"] or "-")
        raw = named.read_text().split("\n") if named.exists() else map(str, range(len(rows)))
        of, at = zip(*((row, items[i]) for row, i in enumerate(raw) if i in items))
        own = rows[list(of)]
        full = np.zeros((len(items), rows.shape[1]), np.float32)
        has = np.zeros((len(items), 1), np.float32)
        full[list(at)] = (own - own.mean(0)) / (own.std(0) + 1e-8)
        has[list(at)] = 1
        features.append((torch.from_numpy(full), torch.from_numpy(has)))
    return len(users), len(items), torch.tensor(sorted(set(pairs))).t(), features


def unit(x):
    return F.normalize(x, dim=1, eps=1e-12)


def sparse(rows, cols, values, shape):
    return torch.sparse_coo_tensor(torch.stack([rows, cols]), values, shape).coalesce()


def left(rows, cols, shape):
    """Entries 1/sqrt(degree of the row)."""
    degree = torch.bincount(rows, minlength=shape[0]).float().clamp_min(1)
    return sparse(rows, cols, degree[rows].rsqrt(), shape)


class Discriminator(torch.nn.Module):
    def __init__(self, n_items, h1, h2):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(n_items, h1), torch.nn.LeakyReLU(0.2),
            torch.nn.BatchNorm1d(h1, track_running_stats=False), torch.nn.Dropout(0.31),
            torch.nn.Linear(h1, h2), torch.nn.LeakyReLU(0.2),
            torch.nn.BatchNorm1d(h2, track_running_stats=False), torch.nn.Dropout(0.5),
            torch.nn.Linear(h2, 1), torch.nn.Sigmoid())
        for layer in self.net:
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.kaiming_normal_(layer.weight, a=0.2)
                torch.nn.init.zeros_(layer.bias)

    def forward(self, rows):
        return self.net(rows)[:, 0]


class Mmssl(torch.nn.Module):
    def __init__(self, n_users, n_items, pairs, features):
        super().__init__()
        self.shape, self.features = (n_users, n_items), features
        u, i = pairs
        self.p_u, self.p_i = left(u, i, (n_users, n_items)), left(i, u, (n_items, n_users))
        du = torch.bincount(u, minlength=n_users).float().clamp_min(1)
        di = torch.bincount(i, minlength=n_items).float().clamp_min(1)
        weight = (du[u] * di[i]).rsqrt()
        self.a = sparse(u, i, weight, (n_users, n_items))
        self.a_t = sparse(i, u, weight, (n_items, n_users))
        def xavier(rows, cols):
            return torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(rows, cols)))

        self.users, self.items = xavier(n_users, D), xavier(n_items, D)
        self.query, self.key = xavier(D, D), xavier(D, D)
        self.linear = torch.nn.ModuleList(torch.nn.Linear(f.shape[1], D) for f, _ in features)
        for linear in self.linear:  # the biases start as torch's own do
            torch.nn.init.xavier_uniform_(linear.weight)
        self.graphs = [(self.p_u, self.p_i)] * len(features)

    def content(self, m, rate):
        rows, has = self.features[m]
        x = F.dropout(self.linear[m](rows) * has, rate)  # an item without the modality: 0, no bias
        users = torch.sparse.mm(self.p_u, x)
        return users, torch.sparse.mm(self.p_i, users)

    @torch.no_grad()
    def refresh(self):
        self.graphs = []
        for m in range(len(self.features)):
            users, items = (unit(x) for x in self.content(m, 0.0))
            top = torch.cat([(users[b:b + BATCH] @ items.t()).topk(TOPK)[1]
                             for b in range(0, len(users), BATCH)])
            own = (users.norm(dim=1) > 0).nonzero()[:, 0]
            u, i = own.repeat_interleave(TOPK), top[own].flatten()
            self.graphs.append((left(u, i, self.shape), left(i, u, self.shape[::-1])))

    def attend(self, e):
        e = torch.stack(e, 1)
        n, m = e.shape[:2]
        q, k, v = ((e @ w if w is not None else e).view(n, m, HEADS, -1).transpose(1, 2)
                   for w in (self.query, self.key, None))
        w = torch.softmax(q @ k.transpose(2, 3) / (D // HEADS) ** 0.5, 3)
        return (w @ v).mean(2).reshape(n, D)

    def forward(self):
        content = [self.content(m, 0.2) for m in range(len(self.features))]
        e = [(torch.sparse.mm(pu, self.items), torch.sparse.mm(pi, self.users))
             for pu, pi in self.graphs]
        u = self.users + ETA * unit(self.attend([x for x, _ in e]))
        i = self.items + ETA * unit(self.attend([x for _, x in e]))
        sum_u, sum_i = u, i
        for _ in range(LAYERS):
            u, i = torch.sparse.mm(self.a, i), torch.sparse.mm(self.a_t, u)
            sum_u, sum_i = sum_u + u, sum_i + i
        u = sum_u / (LAYERS + 1) + OMEGA * sum(unit(x) for x, _ in content)
        i = sum_i / (LAYERS + 1) + OMEGA * sum(unit(x) for _, x in content)
        return content, e, u, i


def contrast(h, e):
    h, e = unit(h), unit(e)
    own = e @ e.t() / TAU
    own.fill_diagonal_(-torch.inf)
    logits = torch.cat([e @ h.t() / TAU, own], 1)
    return F.cross_entropy(logits, torch.arange(len(h)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modalities", default="")
    parser.add_argument("--d_hidden", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(2022)
    n_users, n_items, pairs, features = read(args.folder, [m for m in args.modalities.split(",") if m])
    widths = [int(w) for w in args.d_hidden.split(",")] if args.d_hidden \
        else [n_items // 4, n_items // 8]
    model, critic = Mmssl(n_users, n_items, pairs, features), Discriminator(n_items, *widths)
    adam = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    critic_adam = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.5, 0.9))
    observed = torch.zeros(n_users, n_items, dtype=torch.bool)
    observed[pairs[0], pairs[1]] = True
    active = observed.any(1).nonzero()[:, 0]
    batch = min(BATCH, len(active))
    model.refresh()
    times = []
    for _ in range(args.steps):
        start = (time.perf_counter(), time.process_time())
        s = active[torch.randperm(len(active))[:batch]]
        mask = observed[s]
        positive = torch.multinomial(mask.float(), 1)[:, 0]
        negative = torch.multinomial((~mask).float(), 1)[:, 0]
        content, e, h_u, h_i = model()

        def fake(detach):
            rows = [unit((u[s].detach() if detach else u[s]) @
                         unit(i.detach() if detach else i).t()) for u, i in content]
            return torch.cat(rows)

        generated = fake(True)
        noise = -torch.log(-torch.log(torch.rand(mask.shape).clamp(1e-12, 1 - 1e-7)))
        p = torch.softmax(noise.masked_fill(~mask, -torch.inf), 1)
        score = unit(h_u[s].detach()) @ unit(h_i.detach()).t()
        real = unit(p + ZETA * unit(score))
        alpha = torch.rand(len(generated), 1)
        mixed = (alpha * real.repeat(len(content), 1) + (1 - alpha) * generated).requires_grad_()
        slope = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)[0]
        loss = critic(generated).mean() - critic(real).mean() \
            + LAMBDA * (slope.norm(dim=1) - 1).square().mean()
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()

        u, hp, hn = h_u[s], h_i[positive], h_i[negative]
        total = -F.logsigmoid((u * (hp - hn)).sum(1)).mean()
        total = total + 1e-5 * 0.5 * sum(x.square().sum() for x in (u, hp, hn)) / batch
        total = total + 1e-5 * 0.5 * sum(x.square().sum() for c in content for x in c) / n_items
        total = total + CL_RATE * sum(contrast(u, x[s]) for x, _ in e)
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        total = total - G_RATE * critic(fake(False)).mean()
        adam.zero_grad()
        total.backward()
        adam.step()
        for parameter in critic.parameters():
            parameter.requires_grad_(True)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        print(f"step {len(times)}: {times[-1][0]:.2f} s, {times[-1][1]:.2f} s of CPU, "
              f"loss {total.item():.4f}, slope {slope.norm(dim=1).mean().item():.3f}", flush=True)
    rest = times[1:] or times
    print(json.dumps({"hidden": widths, "modalities": len(features), "batch": batch,
                      "seconds_a_step": min(t for t, _ in rest),
                      "cpu_seconds_a_step": min(c for _, c in rest),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


if __name__ == "__main__":
    main()
