"""Features made from features, from texts and by other programs, and what binds them to a split."""
import json
import math
import os
import random
import struct

from command_line import CommandLine


def npy(rows):
    head = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (len(rows), len(rows[0]))
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    return (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
            + b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))


def make_shop(test, n_items=60, n_users=40, length=8, taste=0, damaged=0):
    """Raw files of a small shop whose pictures and texts share factors, and its folder `shop`. With
    `taste` the users choose by these factors; of every `damaged` pictures one is another item's."""
    draw = random.Random(3)
    common = [[draw.gauss(0, 1) for _ in range(4)] for _ in range(n_items)]

    def factors(name, i):
        return common[(i + damaged) % n_items if name == "image" and damaged and i % damaged == 0 else i]

    def chosen():
        if not taste:
            return draw.sample(range(n_items), length)
        likes = [draw.gauss(0, taste) for _ in range(4)]
        noise = [-math.log(-math.log(1 - draw.random())) for _ in range(n_items)]
        return sorted(range(n_items), reverse=True,
                      key=lambda i: sum(a * z for a, z in zip(likes, common[i])) + noise[i])[:length]
    for name, width, gap in (("image", 12, 7), ("text", 9, 11)):
        mix = [[draw.gauss(0, 1) for _ in range(width)] for _ in range(4)]
        ids = [i for i in range(n_items) if i % gap]
        test.write(f"raw/{name}_feat.npy", npy(
            [[sum(factors(name, i)[k] * mix[k][j] for k in range(4)) + draw.gauss(0, .1)
              for j in range(width)] for i in ids]))
        test.write(f"raw/{name}_feat.ids", "".join(f"i{i}\n" for i in ids))
    rows = [f"u{u}\ti{i}\t{1000 + t}" for u in range(n_users) for t, i in enumerate(chosen())]
    test.write("raw/events.tsv", "user_id\titem_id\ttimestamp\n" + "\n".join(rows) + "\n")
    test.succeeds("import", "raw", "-o", "shop", "-q")
    return n_items


# Enough items and users, and enough that fits, for R2MR to rewrite.
LARGE = {"n_items": 240, "n_users": 240, "length": 16, "taste": 1, "damaged": 5}


class Features(CommandLine):
    def setUp(self):
        super().setUp()
        self.n_items = make_shop(self)

    def made(self, *arguments):
        return json.loads(self.succeeds("features", *arguments, "-q", "--json", "-j", "1").stdout)

    def test_pamd_supplies_every_model(self):
        made = self.made("shop", "--encoder", "pamd", "--pre_epochs", "20")
        self.assertEqual(list(made["features"]), ["common", "image_specific", "text_specific"])
        manifest = self.read_json("shop", "features.json")
        self.assertIsNone(manifest["common"]["valid_for"])
        self.assertEqual(manifest["common"]["encoder"]["settings"]["pre_epochs"], 20)
        self.assertEqual(manifest["common"]["source"]["sha256"]["image"], manifest["image"]["sha256"])
        ids = self.read("shop", "image_specific_feat.ids").split()
        self.assertNotIn("i7", ids)
        self.assertIn("i7", self.read("shop", "common_feat.ids").split())

        before = self.tree("shop")
        self.made("shop", "--encoder", "pamd", "--pre_epochs", "20")
        self.assertEqual(self.tree("shop"), before, "the same seed gives the same bytes")

        for model in ("VBPR", "BM3"):  # the three parts, and parts beside a raw modality
            for n, names in enumerate(("common,image_specific,text_specific", "common,image_specific,text")):
                self.succeeds("train", "-m", model, "-d", "shop", "--modalities", names, "--epochs", "2",
                              "-q", "-j", "1", "-o", f"{model}{n}")
                self.assertEqual(self.read_json(f"{model}{n}", "results.json")["modalities"],
                                 names.split(","))
        # What a model made is left out unless it is asked for.
        self.succeeds("train", "-m", "VBPR", "-d", "shop", "--epochs", "1", "-q", "-o", "raw-run")
        self.assertEqual(self.read_json("raw-run", "results.json")["modalities"], ["image", "text"])
        said = self.succeeds("features", "shop", "--encoder", "pamd", "--pre_epochs", "2", "-j", "1").stderr
        self.assertRegex(said, r"pretraining epoch 2 \[held-out loss: .*sim: .*l text to image: .*p_s: .*"
                               r"A: .*norm_c image: .*norm_s text: ")

    def test_what_has_seen_interactions_is_bound(self):
        made = self.made("shop", "--encoder", "pamd", "--pre_epochs", "10", "--epochs", "2",
                         "--export_stage", "finetuned")
        about = self.read_json("shop", "dataset.json")
        self.assertEqual(made["features"]["common"]["valid_for"], about["train_sha256"])
        self.succeeds("import", "shop", "-o", "other", "--split", "random", "--seed", "5", "-q")
        self.assertNotIn("common", self.read_json("other", "features.json"))

        train = ("train", "-m", "PAMD", "-d", "shop", "--epochs", "2", "--pre_epochs", "10", "-q",
                 "-j", "1")
        self.succeeds(*train, "-o", "run")
        made = self.made("shop", "--encoder", "run")
        self.assertEqual(made["features"]["common"]["valid_for"], about["train_sha256"])
        card = made["features"]["common"]["encoder"]
        self.assertEqual((card["seed"], card["trained"], card["settings"]["pre_epochs"]), (999, "run", 10))
        self.assertNotIn("epochs", card["settings"])
        self.fails(3, r"run has learned from other train rows than those of other",
                   "features", "other", "--encoder", "run", "-q")
        # Encoders that no interaction has changed may serve any items.
        self.succeeds(*train, "--freeze_pretrained", "true", "--seed", "7", "--export_norm", "zscore",
                      "-o", "frozen")
        made = self.made("other", "--encoder", "frozen/model")
        self.assertIsNone(made["features"]["common"]["valid_for"])
        card = made["features"]["common"]["encoder"]
        self.assertEqual((card["seed"], card["settings"]["export_norm"]), (7, "zscore"))
        # What was chosen in its training cannot be chosen again.
        self.fails(2, r"frozen keeps the export_norm that it was trained with",
                   "features", "other", "--encoder", "frozen", "--export_norm", "l2", "-q")
        self.fails(2, r"PAMD has no setting 'export_nrm' \(did you mean 'export_norm'",
                   "features", "other", "--encoder", "frozen/model", "--export_nrm", "l2", "-q")
        # Items of one modality are encoded by it.
        for name in ("image_feat.npy", "image_feat.ids"):
            os.remove(self.path(f"raw/{name}"))
        self.succeeds("import", "raw", "-o", "worded", "-q")
        made = self.made("worded", "--encoder", "frozen")
        self.assertEqual(sorted(made["features"]), ["common", "text_specific"])
        for name in ("text_feat.npy", "text_feat.ids"):
            os.remove(self.path(f"raw/{name}"))
        self.succeeds("import", "raw", "-o", "bare", "-q")
        self.fails(3, r"bare has none of the modalities that frozen encodes",
                   "features", "bare", "--encoder", "frozen", "-q")

    def test_r2mr_cleans_for_every_model(self):
        self.fails(2, r"R2MR has no setting 'export_spice' \(did you mean 'export_space'\?\)",
                   "features", "shop", "--encoder", "r2mr", "--export_spice", "raw", "-q")
        make_shop(self, **LARGE)
        items = [line.split("\t")[0] for line in self.read("shop", "item_map.tsv").splitlines()[1:]]
        with open(self.path("shop", "media.tsv"), "w", encoding="utf-8") as file:
            file.write("item_id\tmodality\tpath\tsha256\n")
            file.writelines(f"{item}\timage\timages/{item}.png\t{'0' * 64}\n" for item in items[1:])
        short = ("--embedding_size", "8", "--eta", "0.5", "--first_epochs", "40", "--later_epochs", "5",
                 "-q", "-j", "1")
        made = json.loads(self.succeeds("features", "shop", "--encoder", "r2mr", "--export_space", "raw",
                                        *short, "--json").stdout)
        about = self.read_json("shop", "dataset.json")
        self.assertEqual(list(made["features"]), ["image_r2mr", "text_r2mr"])
        self.assertEqual(made["features"]["image_r2mr"]["width"], 12)
        self.assertEqual(made["features"]["image_r2mr"]["valid_for"], about["train_sha256"])
        card = made["features"]["image_r2mr"]["encoder"]
        self.assertEqual((card["train_sha256"], card["seed"]), (about["train_sha256"], 999))
        self.assertEqual(made["files"], ["quality.json", "quality.tsv"])
        lines = [line.split("\t") for line in self.read("shop", "quality.tsv").splitlines()]
        self.assertEqual(lines[0], ["item", "modality", "present", "score", "null_score", "area",
                                    "status", "round", "source", "score_before"])
        self.assertEqual(len(lines) - 1, 2 * about["n_items"])
        report = self.read_json("shop", "quality.json")
        shown = [*report["worst"]["image"], *report["rewritten"]["random"]]
        self.assertGreater(len(shown), 0)
        for one in shown:
            self.assertEqual(one.get("picture"),
                             None if one["item"] == items[0] else f"images/{one['item']}.png")
        changed = [line for line in lines if line[6] == "rewritten"]
        self.assertEqual(report["rewritten"]["n"], len(changed))
        # One round, whatever rewrite_max says; what was filled in since the review has no null score.
        self.assertEqual([one["round"] for one in report["rounds"]], [0, 1])
        self.assertNotIn("skipped", report["rounds"][1])
        self.assertEqual(sum(report["rounds"][1]["accepted"].values()), len(changed))
        filled = [line for line in changed if line[2] == "0"]
        self.assertEqual({line[4] for line in filled}, {""})
        self.assertNotIn("", {line[4] for line in changed if line[2] == "1"})

        # Rows that were left alone keep their bytes; restored ones do all.
        def rows(name):
            with open(self.path("shop", f"{name}_feat.npy"), "rb") as file:
                body = file.read()[128:]
            ids = self.read("shop", f"{name}_feat.ids").split()
            size = len(body) // len(ids)
            return {i: body[r * size:(r + 1) * size] for r, i in enumerate(ids)}
        raw, cleaned, moved = rows("image"), rows("image_r2mr"), {l[0] for l in changed if l[1] == "image"}
        self.assertGreater(len(moved & set(raw)), 0, "no picture was rewritten")
        self.assertEqual(set(cleaned) - set(raw), {l[0] for l in filled if l[1] == "image"})
        known = {line[0] for line in lines[1:]}
        self.assertEqual({i for i in raw if i in known and raw[i] != cleaned[i]}, moved & set(raw))
        self.made("shop", "--encoder", "r2mr", "--export_space", "raw", "--restore", "true", *short[:-3])
        self.assertEqual(rows("image_r2mr"), {i: raw[i] for i in raw if i in known})
        made = self.made("shop", "--encoder", "r2mr", "--export_space", "raw", "--rewrite_every", "0",
                         *short[:-3])
        self.assertEqual(rows("image_r2mr"), {i: raw[i] for i in raw if i in known})
        self.assertEqual(self.read_json("shop", "quality.json")["rewritten"]["n"], 0)

        self.succeeds("train", "-m", "R2MR", "-d", "shop", "--epochs", "4", "--rewrite_every", "1",
                      "-o", "run", *short)
        self.assertIn("quality.tsv", self.tree("run"))
        self.assertGreater(self.read_json("run", "quality.json")["rewritten"]["n"], 0)
        for source in ("run", "run/model"):
            made = self.made("shop", "--encoder", source)
            self.assertEqual(made["features"]["text_r2mr"]["width"], 8)
        for model in ("VBPR", "BM3"):
            self.succeeds("train", "-m", model, "-d", "shop", "--modalities", "image_r2mr,text_r2mr",
                          "--epochs", "2", "-q", "-j", "1", "-o", model)
        # Good for this split only.
        self.succeeds("import", "shop", "-o", "other", "--split", "random", "--seed", "5", "-q")
        self.assertNotIn("image_r2mr", self.read_json("other", "features.json"))
        self.fails(3, r"run was trained on other items or train rows than those of other",
                   "features", "other", "--encoder", "run", "-q")
        self.succeeds("report", "shop", "-o", "quality.html", "-q")
        self.assertIn("Quality of item features", self.read("quality.html"))

    ENCODER = '''import json, sys
calls = open("calls", "a")
for line in sys.stdin:
    item = json.loads(line)
    calls.write(item["id"] + "\\n")
    if item["id"] == "i2":
        print(json.dumps({"id": "i2", "error": "no picture"}))
    elif item["id"] != "i3":
        text = item["text"]
        print(json.dumps({"id": item["id"], "vector": [len(text), text.count("a"), 1]}))
'''

    def shop_with_texts(self, titles):
        lines = [json.dumps({"item_id": f"i{i}", "title": title}) for i, title in enumerate(titles)]
        self.write("items.jsonl", "\n".join(lines) + "\n")
        self.succeeds("import", "raw/events.tsv", "--items", "items.jsonl", "--text", "title",
                      "--no-features", "-o", "texts", "-q")

    def test_tfidf_finds_alike_texts(self):
        kinds = ("red wool scarf", "steel kitchen knife", "wooden toy train", "garden rose seeds")
        self.shop_with_texts([f"{kinds[i % 4]} number {i}" for i in range(self.n_items)])
        made = self.made("texts", "--encoder", "tfidf", "--width", "8")
        entry = made["features"]["text"]
        self.assertEqual((entry["width"], entry["source"]["columns"]), (8, ["title"]))
        again = self.succeeds("features", "texts", "--encoder", "tfidf", "--width", "8", "-j", "1")
        self.assertIn("up to date", again.stderr)
        self.succeeds("train", "-m", "VBPR", "-d", "texts", "--epochs", "1", "-q", "-o", "run")
        alike = self.succeeds("similar", "run", "i0", "--by", "text", "-n", "5", "-q").stdout
        ids = [int(line.split("\t")[1][1:]) for line in alike.splitlines()[1:]]
        self.assertEqual([i % 4 for i in ids], [0] * len(ids), alike)

    def test_exec_counts_failures_and_sends_what_changed(self):
        self.shop_with_texts([f"a thing {i}" for i in range(self.n_items)])
        self.write("encode.py", self.ENCODER)
        exec_it = ("texts", "--encoder", "exec:python3 encode.py", "--modality", "mine")
        source = self.made(*exec_it)["features"]["mine"]["source"]
        self.assertEqual(source["failed"], 2)
        self.assertEqual(source["failures"],
                         {"errors of the command": 1, "requests without an answer": 1})
        self.assertNotIn("i2", self.read("texts", "mine_feat.ids").split())
        first = len(self.read("calls").split())
        self.made(*exec_it)
        self.assertEqual(self.read("calls").split()[first:], ["i2", "i3"])

        before = self.tree("texts")
        broken = ("features", "texts", "--modality", "mine", "-q", "--encoder")
        self.fails(3, r"exit code 3", *broken, "exec:exit 3")
        self.fails(3, r"no vector at all", *broken, "exec:true")
        self.fails(3, r"line 1: wanted", *broken, "exec:echo hello")
        self.fails(3, r"more than \d+ MiB", *broken, "exec:yes")
        self.fails(2, r"wanted a command", *broken, "exec:")
        self.fails(2, r"no column 'titel' \(did you mean 'title'", *broken, "exec:true", "--text",
                   "titel")
        self.assertEqual(self.tree("texts"), before)

    NPY_ENCODER = '''import json, struct, sys
rows = [[len(json.loads(line)["text"]), 1.5] for line in sys.stdin]
rows[2][0], rows[4][1] = float("nan"), float("-inf")
head = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 2), }" % len(rows)
head += " " * (63 - (10 + len(head)) % 64) + "\\n"
sys.stdout.buffer.write(b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(head)) + head.encode()
                        + b"".join(struct.pack("<2f", *row) for row in rows))
'''

    def test_exec_refuses_what_is_no_number(self):
        self.shop_with_texts([f"a thing {i}" for i in range(self.n_items)])
        wanted = {"vectors with entries that are no finite numbers": 2}
        ids = self.read("texts", "items.tsv").splitlines()
        self.write("answer_npy.py", self.NPY_ENCODER)
        self.write("answer_json.py", '''import json, sys
for n, line in enumerate(sys.stdin):
    first = None if n == 2 else 1e39 if n == 4 else n
    print(json.dumps({"id": json.loads(line)["id"], "vector": [first, 1.5]}))
''')
        for name in ("npy", "json"):
            entry = self.made("texts", "--encoder", f"exec:python3 answer_{name}.py", "--modality", name)
            source = entry["features"][name]["source"]
            self.assertEqual((source["failed"], source["failures"]), (2, wanted))
            self.assertEqual(entry["features"][name]["rows"], len(ids) - 3)
            self.assertEqual(len(self.read("texts", f"{name}_feat.ids").split()), len(ids) - 3)

    def test_dtype_and_batch(self):
        self.shop_with_texts([f"a thing {i}" for i in range(self.n_items)])
        self.write("encode.py", self.ENCODER)
        exec_it = ("texts", "--encoder", "exec:python3 encode.py", "--modality", "mine")

        def sent(*more):
            self.write("calls", "")
            entry = self.made(*exec_it, *more)["features"]["mine"]
            self.assertEqual(entry["source"]["failures"],
                             {"errors of the command": 1, "requests without an answer": 1})
            return entry["dtype"], len(self.read("calls").split())

        # The same rows in batches; the two that failed are sent again each time.
        self.assertEqual(sent(), ("float32", self.n_items))
        whole = self.tree("texts")["mine_feat.npy"]
        self.assertEqual(sent("--batch", "7", "--cache", "false"), ("float32", self.n_items))
        self.assertEqual(self.tree("texts")["mine_feat.npy"], whole)
        # Rows kept in float16 are not good enough for float32, the other way round they are.
        self.assertEqual(sent("--dtype", "float16"), ("float16", 2))
        self.assertEqual(sent("--dtype", "float16"), ("float16", 2))
        self.assertEqual(sent(), ("float32", self.n_items))

        for encoder in (("tfidf", "--width", "8"), ("pamd", "--pre_epochs", "2")):
            folder = "texts" if encoder[0] == "tfidf" else "shop"
            made = self.made(folder, "--encoder", *encoder, "--dtype", "float16")
            self.assertEqual({entry["dtype"] for entry in made["features"].values()}, {"float16"})
            again = self.made(folder, "--encoder", *encoder)
            self.assertEqual({entry["dtype"] for entry in again["features"].values()}, {"float32"})
        self.succeeds("train", "-m", "VBPR", "-d", "shop", "--modalities", "common,text", "--epochs", "1",
                      "-q", "-o", "run")

        before = self.tree("texts")
        self.fails(2, r"float8: wanted float16 or float32 \(did you mean 'float16'", "features", "texts",
                   "--encoder", "tfidf", "--dtype", "float8", "-q")
        self.fails(2, r"tfidf has no setting 'batch'", "features", "texts", "--encoder", "tfidf",
                   "--batch", "5", "-q")
        self.write("large.py", self.ENCODER.replace("len(text)", "70000"))
        self.fails(3, r"has the number 70000, and float16 ends at 65504", "features", "texts", "--encoder",
                   "exec:python3 large.py", "--modality", "mine", "--dtype", "float16", "-q")
        self.assertEqual(self.tree("texts"), before)

    def test_mistakes(self):
        before = self.tree("shop")
        self.fails(2, r"no encoder given", "features", "shop", "-q")
        self.fails(2, r"BM3 makes no features", "features", "shop", "--encoder", "bm3", "-q")
        self.fails(2, r"no model 'pand' \(did you mean 'PAMD'", "features", "shop", "--encoder",
                   "pand", "-q")
        self.fails(2, r"PAMD has no setting 'pre_epoch' \(did you mean 'pre_epochs'", "features",
                   "shop", "--encoder", "pamd", "--pre_epoch", "3", "-q")
        self.fails(3, r"at least two modalities", "features", "shop", "--encoder", "pamd",
                   "--modalities", "image", "-q")
        self.fails(2, r"'text' that was brought in from outside", "features", "shop", "--encoder",
                   "tfidf", "-q")
        self.assertEqual(self.tree("shop"), before)
