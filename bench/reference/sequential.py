"""SASRec, GRU4Rec and KDSR with Tessera's default settings (loss `ce`) as stock PyTorch modules,
autograd and dense Adam. Written from the specifications, in two forms:

  a  that of the public frameworks: a row for each prefix, padded to the maximal length, the last
     position scored against all items. An epoch goes in batches of 2,048 rows, RecBole's own: an
     update of the dense tables every 128 prefixes would cost this form more.
  b  the careful one: a row for each user, padded to the longest of its batch, a target at every
     position, logits of valid positions only. Batches of 128 rows, as in Tessera, in plain shuffled
     order (bucketing by length is Tessera's).

KDSR stands in form b alone: a SASRec or GRU4Rec host, pairs within the rows as in the released
code, with tensors [B, L, L, d] of differences; what the teacher says of a pair is computed there
from its frozen codes, so that no [N, N] table is held.

Rows are padded on the right: no position reads what stands after it, so causal attention and the
GRU need no other mask. Recorded steps are repeated without dropout: record them with it at 0."""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

RENAMED = {"item_embedding": "items.weight", "position_embedding": "positions.weight",
           "encoder.w_in": "encoder.gru.weight_ih_l0", "encoder.w_hidden": "encoder.gru.weight_hh_l0",
           "encoder.w_out": "encoder.out.weight", "encoder.b_out": "encoder.out.bias",
           "gate.out": "gate.out.weight"}


class Block(nn.Module):
    """The original form: q = LN1(x); y = q + MHA(q; x, x); z = LN2(y); z + FFN(z). One head."""

    def __init__(self, d, rate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-8), nn.LayerNorm(d, eps=1e-8)
        for name in ("query", "key", "value", "out", "inner", "outer"):
            self.add_module(name, nn.Linear(d, d))
        self.drop = nn.Dropout(rate)

    def forward(self, x):
        q = self.norm1(x)
        heads = (part.unsqueeze(1) for part in (self.query(q), self.key(x), self.value(x)))
        seen = F.scaled_dot_product_attention(
            *heads, is_causal=True, dropout_p=self.drop.p if self.training else 0.0)
        z = self.norm2(q + self.out(seen.squeeze(1)))
        return z + self.drop(self.outer(self.drop(F.relu(self.inner(z)))))


class Transformer(nn.Module):
    def __init__(self, d, n_layers, rate):
        super().__init__()
        self.n_layers = n_layers
        for i in range(n_layers):
            self.add_module(str(i), Block(d, rate))
        self.norm = nn.LayerNorm(d, eps=1e-8)

    def forward(self, x):
        for i in range(self.n_layers):
            x = getattr(self, str(i))(x)
        return self.norm(x)


class Gru(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.gru = nn.GRU(d, hidden, bias=False, batch_first=True)
        self.out = nn.Linear(hidden, d)

    def forward(self, x):
        return self.out(self.gru(x)[0])


class Sequence(nn.Module):
    """`start`: initial weights under Tessera's names. Histories in time order as one array."""
    BETAS = (0.9, 0.999)
    FORMS, N_CHECKED = "ab", 50

    def __init__(self, data, start, form, max_length):
        super().__init__()
        if form not in self.FORMS:
            raise SystemExit(f"run.py: {type(self).__name__} has no form {form}")
        self.form, self.max_length = form, max_length
        self.batch = 2048 if form == "a" else 128
        rows = data.rows["train"]
        self.history = rows[np.argsort(rows[:, 0], kind="stable"), 1]
        counts = np.bincount(rows[:, 0], minlength=data.n_users)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        if form == "a":
            at = np.arange(len(self.history))
            own = np.repeat(self.offsets[:-1], counts)
            self.end = at[at > own]  # of the input, and the place of the target
            self.begin = np.maximum(own[at > own], self.end - max_length)
        else:
            self.end = self.offsets[1:][counts >= 2] - 1
            self.begin = np.maximum(self.offsets[:-1][counts >= 2], self.end - max_length)
        self.items = nn.Embedding(*start["item_embedding"].shape)
        self.build(start)
        self.load_state_dict({self.renamed(name): value for name, value in start.items()})

    def renamed(self, name):
        return RENAMED.get(name, name)

    def optimiser(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, betas=self.BETAS)

    def begin_epoch(self, epoch, optimiser):
        self.train()

    def padded(self, flat, begin, end):
        """items [B, T] with zeros after each row's end, and which are valid."""
        length = end - begin
        width = self.max_length if self.form == "a" else max(1, int(length.max()))
        valid = np.arange(width) < length[:, None]
        places = np.where(valid, begin[:, None] + np.arange(width), 0)
        return torch.from_numpy(np.where(valid, flat[places], 0)), torch.from_numpy(valid)

    def batches(self, rng):
        order = rng.permutation(len(self.end))
        for first in range(0, len(order), self.batch):
            rows = order[first:first + self.batch]
            begin, end = self.begin[rows], self.end[rows]
            items, valid = self.padded(self.history, begin, end)
            if self.form == "a":
                yield items, valid, torch.from_numpy(self.history[end])
            else:
                yield items, valid, self.padded(self.history, begin + 1, end + 1)[0][valid]

    def replay(self, of):
        """A step that bench_dump recorded."""
        self.eval()
        offsets = of["offsets"].numpy()
        items, valid = self.padded(of["items"].numpy(), offsets[:-1], offsets[1:])
        return items, valid, of["targets"]

    def position(self, valid):
        """The last item of a row has the last position."""
        shift = self.max_length - valid.sum(1, keepdim=True)
        return self.positions((torch.arange(valid.shape[1]) + shift).clamp(max=self.max_length - 1))

    def last(self, h, valid):
        return h[torch.arange(len(h)), valid.sum(1).clamp(min=1) - 1]

    def encode(self, items, valid):
        """Vectors of the next item at every position. [B, T, d]"""
        return self.encoder(self.inputs(items, valid))

    def loss(self, items, valid, targets):
        h = self.encode(items, valid)
        h = self.last(h, valid) if self.form == "a" else h[valid]
        return F.cross_entropy(h @ self.items.weight.T, targets)

    def ranker(self):
        """Scores of users [n] against all items, those of their histories -inf."""
        self.eval()

        def scores_of(users):
            begin, end = self.offsets[users], self.offsets[users + 1]
            items, valid = self.padded(self.history, np.maximum(begin, end - self.max_length), end)
            scores = self.last(self.encode(items, valid), valid) @ self.items.weight.T
            count = end - begin
            places = np.arange(count.sum()) + np.repeat(end - np.cumsum(count), count)
            scores[np.repeat(np.arange(len(users)), count), self.history[places]] = -torch.inf
            return scores

        return scores_of


class SASRec(Sequence):
    BETAS = (0.9, 0.98)
    DROPOUT = 0.5

    def build(self, start):
        d = self.items.embedding_dim
        self.positions = nn.Embedding(self.max_length, d)
        self.encoder = Transformer(d, 2, self.DROPOUT)

    def inputs(self, items, valid):
        x = self.items(items) * self.items.embedding_dim ** 0.5 + self.position(valid)
        return F.dropout(x, self.DROPOUT, self.training)


class GRU4Rec(Sequence):
    DROPOUT = 0.3

    def build(self, start):
        self.encoder = Gru(self.items.embedding_dim, start["encoder.w_hidden"].shape[1])

    def inputs(self, items, valid):
        return F.dropout(self.items(items), self.DROPOUT, self.training)


class Modality(nn.Module):
    def __init__(self, table, centroids):
        super().__init__()
        (n_items, d), (n_codes, _) = table.shape, centroids.shape
        self.table = nn.Embedding(n_items, d)
        self.student1, self.student2 = nn.Linear(d, d), nn.Linear(d, d)
        self.code_hidden, self.code_out = nn.Linear(d, d), nn.Linear(d, n_codes)
        self.register_buffer("codes", torch.empty(n_items, d))
        self.register_buffer("centroids", torch.empty_like(centroids))

    def teacher(self, items):
        """Correlations r and the nearest centroid to those of the sub-vectors. [B, L, L] each"""
        codes = self.codes[items]
        unit = F.normalize(codes, dim=2)
        parts = F.normalize(codes.unflatten(2, (self.centroids.shape[1], -1)), dim=3)
        rho = torch.einsum("bisk,bjsk->bijs", parts, parts)
        distance = self.centroids.square().sum(1) - 2 * rho @ self.centroids.T
        return unit @ unit.mT, distance.argmin(3)


class KDSR(Sequence):
    """Weights 4 and 0.5, tau 1.5, skd_form = code, the tables' rate 1/4, 1/2, 1 of the others' from
    epochs 0, 5, 10. Rows have at most pair_nodes items, so that none is left out of the pairs.
    Adam enlarges rounding in the code heads: this program in float64 leaves itself in float32 as fast
    as Tessera does (3e-5 by step 11), so 15 steps are compared."""
    FORMS, N_CHECKED = "b", 15
    DROPOUT, HOST_DROPOUT, SKD, CKD, TAU, STEPS = 0.4, 0.5, 4.0, 0.5, 1.5, (5, 10)

    def __init__(self, data, start, form, max_length):
        # The codes are what the tables start as; Tessera itself keeps parts of them only.
        start = {name: value for name, value in start.items() if not name.endswith((".units", ".shares"))}
        tables = [name for name in start if name.endswith(".table")]
        start |= {name[:-len("table")] + "codes": start[name] for name in tables}
        super().__init__(data, start, form, max_length)

    def build(self, start):
        d = self.items.embedding_dim
        self.gate = nn.Module()
        self.gate.hidden, self.gate.out = nn.Linear(d, d), nn.Linear(d, 1, bias=False)
        if "encoder.w_in" in start:
            self.positions, self.encoder = None, Gru(d, 2 * d)
        else:
            self.positions = nn.Embedding(self.max_length, d)
            self.encoder = Transformer(d, 2, self.HOST_DROPOUT)
        names = [name[:-len(".table")] for name in start if name.endswith(".table")]
        self.modalities = nn.ModuleDict(
            {name: Modality(start[f"{name}.table"], start[f"{name}.centroids"]) for name in names})
        self.present = {name: (start[f"{name}.codes"] != 0).any(1) for name in names}

    def renamed(self, name):
        first, _, rest = name.partition(".")
        if first in self.modalities:
            return f"modalities.{first}.{rest}" + (".weight" if rest == "table" else "")
        return RENAMED.get(name, name)

    def optimiser(self):
        slow = [m.table.weight for m in self.modalities.values()]
        others = [p for p in self.parameters() if all(p is not table for table in slow)]
        return torch.optim.Adam([{"params": others}, {"params": slow}], lr=1e-3)

    def begin_epoch(self, epoch, optimiser):
        self.train()
        waits = sum(epoch < step for step in self.STEPS)
        optimiser.param_groups[1]["lr"] = 1e-3 * 2.0 ** -waits

    def inputs(self, items, valid):
        """The gate over ID and modalities, in every slot."""
        parts = [self.items(items)] + [m.table(items) for m in self.modalities.values()]
        energy = torch.cat([self.gate.out(F.relu(self.gate.hidden(x))) for x in parts], 2)
        there = [torch.ones_like(valid)] + [self.present[name][items] for name in self.modalities]
        alpha = energy.masked_fill(~torch.stack(there, 2), -torch.inf).softmax(2)
        x = sum(alpha[:, :, k:k + 1] * part for k, part in enumerate(parts))
        x = F.dropout(x, self.DROPOUT, self.training)
        return x if self.positions is None else x + self.position(valid)

    def loss(self, items, valid, targets):
        total = super().loss(items, valid, targets)
        earlier = (items[:, :, None] == items[:, None, :]).tril(-1).any(2)
        for name, m in self.modalities.items():
            own = valid & ~earlier & self.present[name][items]
            pairs, n = own[:, :, None] & own[:, None, :], own.sum(1)
            r, codes = m.teacher(items)
            e = m.table(items)
            u = F.normalize(m.student2(m.student1(e)), dim=2, eps=1e-8)
            squares = ((u @ u.mT - r).square() * pairs).sum((1, 2)) / self.TAU ** 2
            skd = torch.sqrt((squares + 1e-8 * n.square())[n >= 2]).sum() / len(n)
            delta = (e[:, :, None] - e[:, None]).abs()  # [B, L, L, d]
            logits = m.code_out(F.relu(m.code_hidden(delta)))
            ckd = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none")
            ckd = (ckd.view_as(pairs) * pairs).sum() / n.square().sum()
            total = total + self.SKD * skd + self.CKD * ckd
        return total


MODELS = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "KDSR": KDSR}
