#!/usr/bin/env python3
"""R2MR in plain PyTorch: what Tessera's epochs and rewriting rounds are timed against.

    r2mr.py DATASET START.safetensors [--check] [--epochs N] [--round N] [--dense] [--variant paper]

START is written by bench_r2mr. --check repeats its recorded steps and compares the losses (exit 1
above 1e-4); --epochs times training epochs, --round one rewriting round whose rewriter trains N
epochs. COO products, autograd, dense AdamW over whole tables; scores edge by edge, or with --dense in
the published form: a [users, items] matrix of sigmoids in half precision, masked by the train rows.
calibrated: scores are constants of an epoch. paper: they are taken anew in every step. Written from
the specification; random numbers are torch's."""
import argparse
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from data import Data, agree, peak_mb, read_safetensors
from models import negatives

BATCH, EPOCHS, DROPOUT, LAYERS, REG, RATE = 1024, 70, 0.3, 2, 1e-4, 1e-3
ETA = 0.5  # of a round; 0: auto. Random features carry no consensus, so that auto would exclude them
FLOOR = {"calibrated": 1e-3, "paper": 0.0}


class Edges:
    """Train pairs, and sums over the users of each item of the mean sigmoid of their products."""

    def __init__(self, pairs, n_users, n_items, dense=False):
        self.users, self.items = (torch.from_numpy(np.ascontiguousarray(c)) for c in pairs.T)
        self.n_users, self.n_items, self.dense = n_users, n_items, dense
        self.degree = torch.bincount(self.items, minlength=n_items).clamp(min=1).float()
        if dense:
            self.mask = torch.zeros(n_items, n_users, dtype=torch.half)
            self.mask[self.items, self.users] = 1

    def scores(self, y, p, scale):
        if self.dense:
            s = torch.sigmoid((y @ p.T / scale).half()) * self.mask
            return s.sum(1, dtype=torch.float32) / self.degree
        s = torch.sigmoid((y[self.items] * p[self.users]).sum(1) / scale)
        return torch.zeros(self.n_items).index_add(0, self.items, s) / self.degree


class Ranking(torch.nn.Module):
    def __init__(self, data, start, variant, dense):
        super().__init__()
        self.data, self.variant = data, variant
        self.n_users, self.n_items = data.n_users, data.n_items
        self.adjacency = data.adjacency()
        self.edges = Edges(np.unique(data.rows["train"], axis=0), data.n_users, data.n_items, dense)
        degree = torch.bincount(self.edges.users, minlength=data.n_users).clamp(min=1).float()
        value = (degree[self.edges.users] * self.edges.degree[self.edges.items]).rsqrt()
        self.to_items = torch.sparse_coo_tensor(
            torch.stack([self.edges.items, self.edges.users]), value,
            (data.n_items, data.n_users)).coalesce()
        self.modalities = list(data.features)
        self.present = {m: (start[f"{m}.rows"].abs().sum(1) > 0).float()[:, None]
                        for m in self.modalities}
        names = ["user_embedding"] + [f"{m}.user_ids" for m in self.modalities]
        if variant == "paper":
            names += ["item_embedding", "review.taste.weight"]
            names += [f"review.rows.{m}.weight" for m in self.modalities]
            names += [f"{m}.rows" for m in self.modalities]
        self.weights = torch.nn.ParameterDict(
            {n.replace(".", "_"): torch.nn.Parameter(start[n]) for n in names})
        self.rows = {m: start[f"{m}.rows"] for m in self.modalities}
        self.constant = start["scores"]

    def forward(self, kept=None, training=True):
        w, users = self.weights, self.weights["user_embedding"]
        if not training:
            dropped = users
        elif kept is None:
            dropped = F.dropout(users, DROPOUT)
        else:
            dropped = users * kept / (1 - DROPOUT)
        paper = self.variant == "paper"
        if paper:
            h, p = w["item_embedding"], dropped @ w["review_taste_weight"]
        else:
            h = torch.tanh(torch.sparse.mm(self.to_items, dropped))
        left, right = [], []
        for at, m in enumerate(self.modalities):
            e = w[f"{m}_rows"] * self.present[m] if paper else self.rows[m]
            s = self.edges.scores(e @ w[f"review_rows_{m}_weight"], p, 1) if paper \
                else self.constant[:, at]
            s = s[:, None]
            f = (s + FLOOR[self.variant]) * e + (1 - s) * h
            layer = torch.cat([F.normalize(w[f"{m}_user_ids"]), F.normalize(f)])
            total = layer
            for _ in range(LAYERS):
                layer = torch.sparse.mm(self.adjacency, layer)
                total = total + layer
            u, i = torch.split(total, [self.n_users, self.n_items])
            left.append(u)
            right.append(i)
        return torch.cat(left, 1), torch.cat(right, 1)

    def loss(self, users, positives, negatives, kept=None):
        u, i = self(kept)
        u, p, n = u[users], i[positives], i[negatives]
        reg = sum((x * x).sum() for x in (u, p, n)) / (2 * len(users))
        return -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean() + REG * reg


def train_epoch(model, optimiser, epoch, rng, n_steps):
    """Seconds of an epoch, from its first n_steps where that is not 0."""
    data = model.data
    pairs = np.unique(data.rows["train"], axis=0)
    for group in optimiser.param_groups:
        group["lr"] = RATE * max(0, 1 - epoch / EPOCHS)
    rows = pairs[rng.permutation(len(pairs))]
    n_batches = -(-len(rows) // BATCH)
    rows = rows[:n_steps * BATCH] if n_steps else rows
    start = time.perf_counter()
    for begin in range(0, len(rows), BATCH):
        users, items = rows[begin:begin + BATCH].T
        optimiser.zero_grad()
        loss = model.loss(torch.from_numpy(users), torch.from_numpy(items),
                          torch.from_numpy(negatives(users, data, rng)))
        loss.backward()
        optimiser.step()
        loss.item()
    return (time.perf_counter() - start) * (n_batches / n_steps if n_steps else 1)


# --- review and rewriter -----------------------------------------------------------------------
class Block(torch.nn.Module):
    def __init__(self, n_in, n_out, gain=0.1):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(n_in, n_out), torch.nn.LayerNorm(n_out)
        torch.nn.init.xavier_uniform_(self.linear.weight)
        torch.nn.init.constant_(self.norm.weight, gain)

    def forward(self, x):
        y = self.linear(x)
        return y + self.norm(y)


def chain(*widths):
    return torch.nn.Sequential(*(Block(a, b) for a, b in zip(widths, widths[1:])))


class Gan(torch.nn.Module):
    """Preset small, two modalities."""

    def __init__(self, d=64, prompt=32):
        super().__init__()
        self.prompts = torch.nn.Parameter(torch.randn(2, prompt))
        self.codes = torch.nn.Parameter(torch.nn.init.xavier_normal_(torch.empty(128, 16)))
        self.encoder, self.decoder = chain(d + prompt, 128, 256, 128), chain(128, 128, 256, d)
        self.judge = torch.nn.Sequential(chain(d, 64, 32), torch.nn.Linear(32, 1))
        inner = [p for n, p in self.named_parameters() if not n.startswith("judge")]
        self.adam = torch.optim.AdamW(inner, 2e-3, (0.5, 0.9), 1e-8, 0.01)
        self.judge_adam = torch.optim.Adam(self.judge.parameters(), 5e-5, (0.5, 0.9))

    def load(self, start):
        with torch.no_grad():
            self.prompts.copy_(start["prompts"])
            self.codes.copy_(start["codes"])
            for name, blocks in (("encoder", self.encoder), ("decoder", self.decoder),
                                 ("discriminator", self.judge[0])):
                for k, block in enumerate(blocks):
                    block.linear.weight.copy_(start[f"{name}.{k}.weight"].T)
                    block.linear.bias.copy_(start[f"{name}.{k}.bias"])
                    block.norm.weight.copy_(start[f"{name}.{k}.gain"])
                    block.norm.bias.copy_(start[f"{name}.{k}.shift"])
            self.judge[1].weight.copy_(start["discriminator.logit.weight"].T)
            self.judge[1].bias.copy_(start["discriminator.logit.bias"])

    def forward(self, source, direction):
        z = self.encoder(torch.cat([source, self.prompts[direction]], 1))
        slots = z.reshape(-1, 16)
        with torch.no_grad():
            index = (self.codes.square().sum(1) - 2 * slots @ self.codes.T).argmin(1)
        z_q = self.codes[index].view_as(z)
        return self.decoder(z + (z_q - z).detach()), z, z_q

    def step(self, source, target, direction):
        fake, z, z_q = self(source, direction)
        loss = 0.1 * (F.softplus(-self.judge(target)).mean()
                      + F.softplus(self.judge(fake.detach())).mean())
        self.judge_adam.zero_grad()
        loss.backward()
        self.judge_adam.step()
        for p in self.judge.parameters():
            p.requires_grad_(False)
        distance = (fake - target).abs().mean()
        loss = distance + (z_q.detach() - z).square().mean() \
            + 0.1 * (z_q - z.detach()).square().mean() + 0.1 * F.softplus(-self.judge(fake)).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        for p in self.judge.parameters():
            p.requires_grad_(True)
        return distance.item()


class Reviewer:
    """One of two: taught on `taught`, asked about `asked` (pairs)."""

    def __init__(self, data, taught, asked, d, n_modalities, dense):
        self.pairs, self.n_items = taught, data.n_items
        self.users = np.unique(taught[:, 0])
        self.taken = np.sort(taught @ np.array([data.n_items, 1]))
        asked = asked[np.isin(asked[:, 0], self.users)]
        self.edges = Edges(asked, data.n_users, data.n_items, dense)
        self.n_asked = torch.bincount(self.edges.items, minlength=data.n_items)
        self.tastes = torch.nn.Parameter(torch.randn(data.n_users, d) / d ** 0.5)
        self.taste, *self.rows = (torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(d, d)))
                                  for _ in range(1 + n_modalities))
        self.adam = torch.optim.AdamW([self.tastes, self.taste, *self.rows], 5e-3, weight_decay=0.01)
        self.scale = d ** 0.5

    def epoch(self, tables, batch, rng):
        order = rng.permutation(len(self.pairs))
        for begin in range(0, len(order), batch):
            users, items = self.pairs[order[begin:begin + batch]].T
            others = self.users[rng.integers(len(self.users), size=len(users))]
            for _ in range(5):
                pairs = others * self.n_items + items
                again = self.taken[np.minimum(np.searchsorted(self.taken, pairs),
                                              len(self.taken) - 1)] == pairs
                if not again.any():
                    break
                others[again] = self.users[rng.integers(len(self.users), size=int(again.sum()))]
            users, items, others = map(torch.from_numpy, (users, items, others))
            own, other = (F.dropout(self.tastes[j], DROPOUT) @ self.taste for j in (users, others))
            loss = 0
            for table, weight in zip(tables, self.rows):
                y = table[items] @ weight
                loss = loss + F.softplus(-(y * own).sum(1) / self.scale).mean() \
                    + F.softplus((y * other).sum(1) / self.scale).mean()
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()

    @torch.no_grad()
    def sums(self, m, table):
        s = self.edges.scores(table @ self.rows[m], self.tastes @ self.taste, self.scale)
        return s * self.edges.degree


def rewriting_round(data, tables, n_epochs, dense):
    """Seconds of a round after a reviewer's warm-up, which is not timed, and the items in the high area."""
    rng = np.random.default_rng(1)
    pairs = np.unique(data.rows["train"], axis=0)
    fold = rng.integers(2, size=len(pairs))
    d, n_modalities = tables[0].shape[1], len(tables)
    reviewers = [Reviewer(data, pairs[fold == f], pairs[fold != f], d, n_modalities, dense)
                 for f in range(2)]
    n = sum(r.n_asked for r in reviewers)
    batch = 8192 if len(pairs) > 100_000 else 1024
    scored = n > 0

    def scores(m, table):
        return sum(r.sums(m, table) for r in reviewers) / n.clamp(min=1)

    def review():
        s = torch.stack([scores(m, table) for m, table in enumerate(tables)], 1)
        eta = []
        for m, table in enumerate(tables):
            index = (scored & (table.abs().sum(1) > 0)).nonzero()[:, 0]
            null = 0.0
            for _ in range(4):
                other = table.clone()
                other[index] = table[index[torch.randperm(len(index))]]
                null += scores(m, other)[index].mean().item() / 4
            auto = (null + s[index, m].median().item()) / 2
            eta.append(ETA if ETA else auto)
        return s, eta

    for _ in range(min(20, -(-800 * 2 * batch // len(pairs)))):
        for r in reviewers:
            r.epoch(tables, batch, rng)
    begin = time.perf_counter()
    for _ in range(2):
        for r in reviewers:
            r.epoch(tables, batch, rng)
    s, eta = review()
    high = torch.stack([scored & (s[:, m] >= eta[m]) & (t.abs().sum(1) > 0)
                        for m, t in enumerate(tables)], 1)
    both = high.all(1).nonzero()[:, 0].numpy()
    gan = Gan(d)
    train = np.stack([np.tile(both, 2), np.repeat([0, 1], len(both))], 1)
    for _ in range(n_epochs):
        order = train[rng.permutation(len(train))]
        for at in range(0, len(order), 128):
            item, direction = map(torch.from_numpy, order[at:at + 128].T)
            forth = (direction == 0)[:, None]
            a, b = tables[0][item], tables[1][item]
            gan.step(torch.where(forth, a, b), torch.where(forth, b, a), direction)
    for to in range(2):
        wanted = (high[:, 1 - to] & ~high[:, to]).nonzero()[:, 0]
        with torch.no_grad():
            rows = gan(tables[1 - to][wanted], torch.full((len(wanted),), 1 - to))[0]
        candidate = tables[to].clone()
        candidate[wanted] = rows
        accepted = wanted[scores(to, candidate)[wanted] > eta[to]]
        tables[to] = tables[to].index_copy(0, accepted, candidate[accepted])
    for m, table in enumerate(tables):
        scores(m, table)
    return time.perf_counter() - begin, len(both)


def check(data, start, recorded, options):
    model = Ranking(data, start, options.variant, options.dense)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    differences = {"epoch": []}
    n_batches = -(-len(model.edges.users) // BATCH)
    for k, wanted in enumerate(recorded["loss"].tolist(), start=1):
        optimiser.param_groups[0]["lr"] = RATE * (1 - (k - 1) // n_batches / EPOCHS)
        optimiser.zero_grad()
        loss = model.loss(*(recorded[f"{k}.{n}"].flatten() for n in
                            ("users", "positives", "negatives")), recorded[f"{k}.kept"])
        loss.backward()
        optimiser.step()
        differences["epoch"].append(abs(loss.item() - wanted))
    if "gan.loss" in recorded:
        differences["rewriter"] = []
        gan = Gan()
        gan.load({n[9:]: t for n, t in recorded.items() if n.startswith("gan.init.")})
        for k, wanted in enumerate(recorded["gan.loss"].tolist(), start=1):
            found = gan.step(*(recorded[f"gan.{k}.{n}"] for n in ("source", "target", "direction")))
            differences["rewriter"].append(abs(found - wanted))
    return agree(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("start")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--round", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--steps", type=int, default=0, help="of an epoch, 0: all; its time is scaled up to a whole one")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--variant", choices=["calibrated", "paper"], default="calibrated")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    recorded = read_safetensors(options.start)
    data = Data(options.dataset)
    start = {name[5:]: t for name, t in recorded.items() if name.startswith("init.")}
    if options.check:
        sys.exit(0 if check(data, start, recorded, options) else 1)
    result = {}
    if options.epochs:
        model = Ranking(data, start, options.variant, options.dense)
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
        rng = np.random.default_rng(1)
        result["train_s"] = [train_epoch(model, optimiser, epoch, rng, options.steps)
                             for epoch in range(options.epochs)]
    if options.round:
        tables = [start[f"{m}.rows"] for m in data.features]
        result["round_s"], result["high"] = rewriting_round(data, tables, options.round, options.dense)
    result["peak_mb"] = peak_mb()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
