#!/usr/bin/env python3
"""MMSSL (variant = paper) in plain PyTorch: what Tessera's step is timed against.

    .venv/bin/python bench/reference/mmssl.py DATASET_FOLDER [--check START] [--steps 5]
                        [--threads 2] [--modalities image,audio] [--d_hidden 64,32]

Dense rows in the discriminator, double backward by autograd, torch.sparse.mm for propagation, stock
optimisers. Reads a folder made by `tessera import`; prints seconds a step, of one building of the
generated graphs, and peak memory. --check repeats the steps that bench_dump recorded without dropout
and Gumbel noise, with the adversary at weight 0.1, and exits with 1 where a loss differs by more than
1e-4. The formulas are those of tessera/models/mmssl.cpp; random numbers are torch's.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from data import Data, agree, peak_mb, read_safetensors

D, HEADS, LAYERS, BATCH = 64, 4, 2, 1024
ETA, OMEGA, TAU, CL_RATE, G_RATE, LAMBDA, ZETA, TOPK = 0.36, 0.55, 0.5, 0.003, 1e-4, 0.3, 1.0, 10
CHECK_G_RATE = 0.1  # enough for the critic to show, not so much that roundings grow


def read(folder, modalities):
    """Counts, train pairs as indices, by modality float32 rows [n_items, width], z-scored by column over the
    items that have one, and which have [n_items, 1] (rows of the others are 0), and their names."""
    data = Data(folder)
    items = Data.indices(folder / "item_map.tsv")
    manifest = json.loads((folder / "features.json").read_text())
    features = []
    names = modalities or sorted(manifest)
    for name in names:
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
    pairs = torch.from_numpy(np.unique(data.rows["train"], axis=0)).t()
    return data.n_users, data.n_items, pairs, features, names


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
    def __init__(self, n_users, n_items, pairs, features, names):
        super().__init__()
        self.shape, self.features, self.names = (n_users, n_items), features, names
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
        self.graphs = [(self.p_u, self.p_i) for _ in features]

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
            top[users.norm(dim=1) == 0] = -1
            self.graphs.append(self.graph_of(top))

    def graph_of(self, edges):
        """Both directions of a table [n_users, k] of items, -1: none."""
        u, at = (edges >= 0).nonzero().t()
        i = edges[u, at].long()
        return left(u, i, self.shape), left(i, u, self.shape[::-1])

    def attend(self, e):
        e = torch.stack(e, 1)
        n, m = e.shape[:2]
        q, k, v = ((e @ w if w is not None else e).view(n, m, HEADS, -1).transpose(1, 2)
                   for w in (self.query, self.key, None))
        w = torch.softmax(q @ k.transpose(2, 3) / (D // HEADS) ** 0.5, 3)
        return (w @ v).mean(2).reshape(n, D)

    def forward(self, dropout):
        content = [self.content(m, dropout) for m in range(len(self.features))]
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


def load(model, critic, start):
    """The weights that Tessera started from."""
    with torch.no_grad():
        for tensor, name in [(model.users, "user_embedding"), (model.items, "item_embedding"),
                             (model.query, "attention.query"), (model.key, "attention.key")]:
            tensor.copy_(start[f"init.{name}"])
        for linear, name in zip(model.linear, model.names):
            linear.weight.copy_(start[f"init.{name}.weight"])
            linear.bias.copy_(start[f"init.{name}.bias"])
        for layer, k in ((critic.net[0], "1"), (critic.net[4], "2"), (critic.net[8], "")):
            weight = start[f"init.discriminator.weight{k}"]
            layer.weight.copy_(weight.t() if k == "1" else weight.view_as(layer.weight))
            layer.bias.copy_(start[f"init.discriminator.bias{k}"])


class Trainer:
    """Both optimisers, and a step of each. `exact`: no Gumbel noise and no dropout."""

    def __init__(self, model, critic, pairs, g_rate, exact):
        self.model, self.critic, self.g_rate, self.exact = model, critic, g_rate, exact
        self.adam = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
        self.critic_adam = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.5, 0.9))
        self.observed = torch.zeros(model.shape, dtype=torch.bool)
        self.observed[pairs[0], pairs[1]] = True
        self.active = self.observed.any(1).nonzero()[:, 0]
        self.batch = min(BATCH, len(self.active))
        if exact:
            critic.eval()  # batch statistics all the same: none are tracked

    def draw(self):
        s = self.active[torch.randperm(len(self.active))[:self.batch]]
        mask = self.observed[s]
        return (s, torch.multinomial(mask.float(), 1)[:, 0],
                torch.multinomial((~mask).float(), 1)[:, 0], None)

    def step(self, s, positive, negative, alpha):
        mask, critic = self.observed[s], self.critic
        content, e, h_u, h_i = self.model(0.0 if self.exact else 0.2)

        def fake(detach):
            rows = [unit((u[s].detach() if detach else u[s]) @
                         unit(i.detach() if detach else i).t()) for u, i in content]
            return torch.cat(rows)

        generated = fake(True)
        noise = torch.zeros(mask.shape) if self.exact else \
            -torch.log(-torch.log(torch.rand(mask.shape).clamp(1e-12, 1 - 1e-7)))
        p = torch.softmax(noise.masked_fill(~mask, -torch.inf), 1)
        score = unit(h_u[s].detach()) @ unit(h_i.detach()).t()
        real = unit(p + ZETA * unit(score))
        alpha = torch.rand(len(generated), 1) if alpha is None else alpha[:, None]
        mixed = (alpha * real.repeat(len(content), 1) + (1 - alpha) * generated).requires_grad_()
        slope = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)[0]
        loss = critic(generated).mean() - critic(real).mean() \
            + LAMBDA * (slope.norm(dim=1) - 1).square().mean()
        self.critic_adam.zero_grad()
        loss.backward()
        self.critic_adam.step()

        u, hp, hn = h_u[s], h_i[positive], h_i[negative]
        total = -F.logsigmoid((u * (hp - hn)).sum(1)).mean()
        total = total + 1e-5 * 0.5 * sum(x.square().sum() for x in (u, hp, hn)) / self.batch
        total = total + 1e-5 * 0.5 * sum(x.square().sum() for c in content for x in c) \
            / self.model.shape[1]
        total = total + CL_RATE * sum(contrast(u, x[s]) for x, _ in e)
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        total = total - self.g_rate * critic(fake(False)).mean()
        self.adam.zero_grad()
        total.backward()
        self.adam.step()
        for parameter in critic.parameters():
            parameter.requires_grad_(True)
        return total.item()


def check(trainer, start):
    """Repeats Tessera's steps; the largest difference of a loss."""
    differences = []
    for k, wanted in enumerate(start["loss"].tolist(), start=1):
        for m, name in enumerate(trainer.model.names):
            if f"{k}.edges.{name}" in start:
                trainer.model.graphs[m] = trainer.model.graph_of(start[f"{k}.edges.{name}"])
        loss = trainer.step(start[f"{k}.users"], start[f"{k}.positives"],
                            start[f"{k}.negatives"].flatten(), start[f"{k}.alpha"])
        differences.append(abs(loss - wanted) / max(1.0, abs(wanted)))
    return agree({"losses": differences})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", metavar="START")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--modalities", default="")
    parser.add_argument("--d_hidden", default="")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(2022)
    names = [m for m in args.modalities.split(",") if m]
    n_users, n_items, pairs, features, names = read(args.folder, names)
    widths = [int(w) for w in args.d_hidden.split(",")] if args.d_hidden \
        else [n_items // 4, n_items // 8]
    model, critic = Mmssl(n_users, n_items, pairs, features, names), Discriminator(n_items, *widths)
    trainer = Trainer(model, critic, pairs, CHECK_G_RATE if args.check else G_RATE, bool(args.check))
    if args.check:
        start = read_safetensors(args.check)
        load(model, critic, start)
        sys.exit(0 if check(trainer, start) else 1)
    model.refresh()
    times = []
    for _ in range(args.steps):
        start = (time.perf_counter(), time.process_time())
        trainer.step(*trainer.draw())
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    seconds, cpu = zip(*(times[1:] or times))
    begin = time.perf_counter()
    model.refresh()
    print(json.dumps({"hidden": widths, "modalities": len(features), "batch": trainer.batch,
                      "step_s": float(np.median(seconds)), "step_cpu_s": float(np.median(cpu)),
                      "refresh_s": time.perf_counter() - begin,
                      "steps_an_epoch": pairs.shape[1] // trainer.batch + 1,
                      "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
