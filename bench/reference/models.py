"""BPR, LightGCN, VBPR and BM3 with Tessera's default settings, in the form in which the public
frameworks compute them: COO products, whole-table projections, autograd, dense Adam over all tables.
Written from the specifications. `start` holds the initial weights under Tessera's names."""
import numpy as np
import torch
import torch.nn.functional as F


def negatives(users, data, rng):
    trained, taken = data.trained, data.taken
    out = trained[rng.integers(len(trained), size=len(users))]
    while True:
        pairs = users * data.n_items + out
        again = taken[np.minimum(np.searchsorted(taken, pairs), len(taken) - 1)] == pairs
        if not again.any():
            return out
        out[again] = trained[rng.integers(len(trained), size=int(again.sum()))]


def hider(data):
    """A function that sets scores [n, items] of users [n] to -inf at the items of their train rows."""
    seen = data.rows["train"][np.argsort(data.rows["train"][:, 0], kind="stable")]
    starts = np.searchsorted(seen[:, 0], np.arange(data.n_users + 1))

    def hide(scores, users):
        for row, u in enumerate(users):
            scores[row, torch.from_numpy(seen[starts[u]:starts[u + 1], 1])] = -torch.inf
        return scores

    return hide


def l2(rows, batch):
    return sum((r * r).sum() for r in rows) / (2 * batch)


def bpr(u, p, n):
    return -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean()


def lightgcn_layers(adjacency, x, n_layers):
    layers = [x]
    for _ in range(n_layers):
        layers.append(torch.sparse.mm(adjacency, layers[-1]))
    return torch.stack(layers, 1).mean(1)


class Model(torch.nn.Module):
    BATCH, N_CHECKED = 2048, 50

    def __init__(self, data, start):
        super().__init__()
        self.data, self.n_users, self.n_items = data, data.n_users, data.n_items
        self.weights = torch.nn.ParameterDict(
            {k.replace(".", "_"): torch.nn.Parameter(v) for k, v in start.items()})

    def __getitem__(self, name):
        return self.weights[name]

    def optimiser(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def begin_epoch(self, epoch, optimiser):
        pass

    def batches(self, rng):
        rows = self.data.rows["train"]
        rows = rows[rng.permutation(len(rows))]
        for begin in range(0, len(rows), self.BATCH):
            users, items = rows[begin:begin + self.BATCH].T
            yield (torch.from_numpy(users), torch.from_numpy(items),
                   torch.from_numpy(negatives(users, self.data, rng)), None)

    def replay(self, of):
        """A step that bench_dump recorded, with its dropout masks."""
        masks = {name[5:]: (of["distinct_users" if name == "kept.user" else "distinct_items"], kept)
                 for name, kept in of.items() if name.startswith("kept.")}
        negative = of["negatives"].flatten() if "negatives" in of else None
        return of["users"], of["positives"], negative, masks

    def ranker(self):
        """Scores of users [n] against all items, those of their train rows -inf."""
        users, items = self.vectors()
        hide = hider(self.data)
        return lambda block: hide(users[block] @ items.T, block)


class BPR(Model):
    def loss(self, u, p, n, masks):
        rows = self["user_embedding"][u], self["item_embedding"][p], self["item_embedding"][n]
        return bpr(*rows) + 1e-4 * l2(rows, len(u))

    def vectors(self):
        return self["user_embedding"], self["item_embedding"]


class LightGCN(Model):
    N_LAYERS = 3

    def __init__(self, data, start):
        super().__init__(data, start)
        self.adjacency = data.adjacency()

    def vectors(self):
        x = torch.cat([self["user_embedding"], self["item_embedding"]])
        return torch.split(lightgcn_layers(self.adjacency, x, self.N_LAYERS),
                           [self.n_users, self.n_items])

    def loss(self, u, p, n, masks):
        hu, hi = self.vectors()
        layer0 = self["user_embedding"][u], self["item_embedding"][p], self["item_embedding"][n]
        return bpr(hu[u], hi[p], hi[n]) + 1e-4 * l2(layer0, len(u))


class VBPR(Model):
    def __init__(self, data, start):
        super().__init__(data, start)
        self.features = torch.cat(list(data.features.values()), 1)

    def items(self):
        f = self.features
        return (torch.cat([self["item_embedding"], f @ self["projection"].T], 1),
                self["item_bias"] + f @ self["visual_bias"].T)

    def vectors(self):
        items, offset = self.items()
        users = self["user_embedding"]
        return torch.cat([users, torch.ones(len(users), 1)], 1), torch.cat([items, offset], 1)

    def loss(self, u, p, n, masks):
        (items, offset), users = self.items(), self["user_embedding"][u]
        margin = ((users * items[p]).sum(1) + offset[p, 0]) - ((users * items[n]).sum(1) + offset[n, 0])
        d = self["item_embedding"].shape[1]
        reg = l2([users, items[p][:, :d], items[n][:, :d]], len(u))
        reg_bias = l2([self["item_bias"][p], self["item_bias"][n]], len(u))
        return -F.logsigmoid(margin).mean() + 1e-2 * reg + 1e-2 * reg_bias


class BM3(Model):
    N_LAYERS, DROPOUT, CL, REG = 1, 0.5, 2.0, 0.1

    def __init__(self, data, start):
        super().__init__(data, start)
        self.adjacency = data.adjacency()
        self.modalities = list(data.features)

    def tables(self):
        x = torch.cat([self["user_embedding"], self["item_embedding"]])
        hu, hi = torch.split(lightgcn_layers(self.adjacency, x, self.N_LAYERS),
                             [self.n_users, self.n_items])
        return hu, hi + self["item_embedding"]

    def predict(self, x):
        return F.linear(x, self["predictor_weight"], self["predictor_bias"])

    def vectors(self):
        hu, hi = self.tables()
        return self.predict(hu), self.predict(hi)

    def dropped(self, table, mask):
        """Whole-table dropout; with a given mask (rows, kept) on those rows."""
        with torch.no_grad():
            if mask is None:
                return F.dropout(table, self.DROPOUT)
            out = table.clone()
            rows, kept = mask
            out[rows] = table[rows] * kept / (1 - self.DROPOUT)
            return out

    def loss(self, u, p, n, masks):
        hu, hi = self.tables()
        masks = masks or {}
        target_u, target_i = self.dropped(hu, masks.get("user")), self.dropped(hi, masks.get("item"))
        online_u, online_i = self.predict(hu), self.predict(hi)

        def away(a, b):
            return 1 - F.cosine_similarity(a, b, dim=-1).mean()

        total = away(online_u[u], target_i[p]) + away(online_i[p], target_u[u])
        for name in self.modalities:
            x = F.linear(self[f"{name}_features"], self[f"{name}_projection_weight"],
                         self[f"{name}_projection_bias"])
            target, online = self.dropped(x, masks.get(name)), self.predict(x)
            total = total + self.CL * (away(online[p], target_i[p]) + away(online[p], target[p]))
        return total + self.REG * (hu.norm() + hi.norm()) / self.n_items


MODELS = {"BPR": BPR, "LightGCN": LightGCN, "VBPR": VBPR, "BM3": BM3}
