"""A dataset folder of Tessera as the plain programs read it, and the files of bench_dump."""
import functools
import json
import os
import struct
import warnings

import numpy as np
import torch


def peak_mb():
    """Peak memory of this program; ru_maxrss begins at that of the process which started it."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) / 1024


def agree(differences, ranking=None):
    """Prints the largest difference of two losses by name; whether there are any of each name, all of them
    numbers, none above 1e-4, and none of a ranking's metrics above its own bound (1)."""
    largest = {name: float(np.max(d, initial=0)) if d else np.inf for name, d in differences.items()}
    print(json.dumps({"steps": [len(d) for d in differences.values()], "metrics": len(ranking or {}),
                      "largest_loss_difference": float(np.max(list(largest.values()))), **largest,
                      "ranking": ranking or {}}))
    return (all(one <= 1e-4 for one in largest.values())  # NaN is not
            and all(one <= 1 for one in (ranking or {}).values()))


class Data:
    """Rows by split, in the file's order, which is that of time within a user; ids are the indices of
    the maps. trained: items of train rows; taken: user * n_items + item of train rows, both rising."""

    def __init__(self, folder):
        about = json.load(open(os.path.join(folder, "dataset.json"), encoding="utf-8"))
        self.n_users, self.n_items = about["n_users"], about["n_items"]
        users, items = (self.indices(os.path.join(folder, f"{kind}_map.tsv")) for kind in ("user", "item"))
        rows = {"train": [], "valid": [], "test": []}
        with open(os.path.join(folder, "interactions.tsv"), encoding="utf-8") as file:
            head = file.readline().rstrip("\n").split("\t")
            u, i, s = head.index("user_id"), head.index("item_id"), head.index("split")
            for line in file:
                cells = line.rstrip("\n").split("\t")
                if cells[s] in rows:
                    rows[cells[s]].append((users[cells[u]], items[cells[i]]))
        self.rows = {k: np.array(v, dtype=np.int64).reshape(-1, 2) for k, v in rows.items()}
        self.trained = np.unique(self.rows["train"][:, 1])
        self.taken = np.unique(self.rows["train"] @ np.array([self.n_items, 1]))
        self.folder = folder

    @functools.cached_property
    def features(self):
        """name -> float32 [n_items, width]; read when a model first asks."""
        names = sorted(f[:-9] for f in os.listdir(self.folder) if f.endswith("_feat.npy"))
        return {name: torch.from_numpy(np.load(os.path.join(self.folder, f"{name}_feat.npy"))
                                       .astype(np.float32)) for name in names}

    @staticmethod
    def indices(path):
        with open(path, encoding="utf-8") as file:
            next(file)
            return {raw: int(index) for raw, index in (line.rstrip("\n").split("\t") for line in file)}

    def adjacency(self):
        """A_hat as a COO tensor over users then items, as the public frameworks build it."""
        users, items = np.unique(self.rows["train"], axis=0).T
        n = self.n_users + self.n_items
        row = np.concatenate([users, items + self.n_users])
        col = np.concatenate([items + self.n_users, users])
        root = (np.bincount(row, minlength=n) + 1e-7) ** -0.5
        value = torch.from_numpy((root[row] * root[col]).astype(np.float32))
        return torch.sparse_coo_tensor(torch.from_numpy(np.stack([row, col])), value,
                                       (n, n)).coalesce()


warnings.filterwarnings("ignore", message="Sparse invariant")


def read_safetensors(path):
    kinds = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "BOOL": np.bool_,
             "U8": np.uint8, "F16": np.float16}
    with open(path, "rb") as file:
        head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        body = file.read()
    return {name: torch.from_numpy(np.frombuffer(body[slice(*e["data_offsets"])], dtype=kinds[
        e["dtype"]]).reshape(e["shape"]).copy()) for name, e in head.items() if name != "__metadata__"}
