"""evaluate: a run, a bundle, and lists that anyone made."""
import json
import os

from command_line import CommandLine

# Mask test of the protocol specification, section 5: train {0}, valid {3}, test {1}; a second user
# makes all six items known.
ROWS = ("user_id\titem_id\tsplit\n"
        "0\t0\ttrain\n0\t3\tvalid\n0\t1\ttest\n"
        "1\t2\ttrain\n1\t4\ttrain\n1\t5\ttrain\n1\t1\ttrain\n1\t3\ttrain\n")
LISTS = "0 0 .9\n0 1 .5\n0 2 .5\n0 3 .7\n0 4 .1\n0 5 .5\n"


class Lists(CommandLine):
    def setUp(self):
        super().setUp()
        self.write("events.tsv", ROWS)
        self.write("recs.txt", LISTS)
        self.succeeds("import", "events.tsv", "-o", "data")

    def evaluate(self, *flags):
        done = self.succeeds("evaluate", "--recs", "recs.txt", "-d", "data", "--json", *flags)
        return json.loads(done.stdout)

    def test_mask_test_of_the_specification(self):
        metrics = ("--metrics", "ndcg@2,ndcg@3")
        strict = self.evaluate(*metrics)
        self.assertEqual(strict["protocol"], "strict")
        self.assertEqual(strict["test"], {"ndcg@2": 1.0, "ndcg@3": 1.0})
        self.assertEqual(strict["audit"]["lists"]["masked_items_removed"], 2)
        mmrec = self.evaluate("--protocol", "mmrec", *metrics)
        self.assertAlmostEqual(mmrec["test"]["ndcg@2"], .63093, 5)
        self.assertIn("valid items compete", mmrec["audit"]["notes"][0])
        recbole = self.evaluate("--protocol", "recbole-seq", *metrics)
        self.assertEqual(recbole["test"], {"ndcg@2": 0.0, "ndcg@3": 0.5})

    def test_table_names_the_protocol_in_every_row(self):
        done = self.succeeds("evaluate", "--recs", "recs.txt", "-d", "data", "--metrics", "recall@2,mrr@6",
                             "--slices")
        rows = done.stdout.split("audit\n")[0].splitlines()[2:]
        self.assertEqual(len(rows), 3)
        self.assertTrue(all(row.startswith("strict ") for row in rows), done.stdout)
        self.assertRegex(done.stdout, r"recall@2 +1\.0000")
        for line in ("mask: train + valid", "users averaged: 1", "held out pairs: 1", "n items: 6"):
            self.assertIn(line, done.stdout)

    def test_per_user_rows(self):
        self.succeeds("evaluate", "--recs", "recs.txt", "-d", "data", "--metrics", "recall@2",
                      "--per-user", "-o", "rows.tsv")
        self.assertEqual(self.read("rows.tsv"), "user\tn_test\trecall@2\n0\t1\t1\n")

    def test_valid_split(self):
        self.assertEqual(self.evaluate("--split", "valid", "--metrics", "mrr@6")["valid"],
                         {"mrr@6": 1.0})

    def test_refusals(self):
        recs = ("evaluate", "--recs", "recs.txt", "-d", "data")
        self.fails(2, r"recal.*'recall'", *recs, "--metrics", "recal@5")
        self.fails(2, r"topk 7 .*6 items", *recs, "--topk", "7")
        self.fails(2, r"strickt.*strict", *recs, "--protocol", "strickt")
        self.fails(2, r"split 'tst'.*'test'", *recs, "--split", "tst")
        self.fails(2, r"auc", *recs, "--metrics", "auc")
        self.fails(2, r"use mrr@K", *recs, "--metrics", "recall,mrr")
        self.fails(2, r"use map@K", *recs, "--metrics", "map")
        self.fails(2, r"no setting 'learning_rate'", *recs, "--learning_rate", "1")
        self.fails(2, r"nothing to evaluate", "evaluate")
        self.fails(2, r"-d", "evaluate", "--recs", "recs.txt")
        self.fails(3, r"nowhere", "evaluate", "--recs", "nowhere", "-d", "data")
        self.fails(3, r"nowhere", "evaluate", "nowhere")
        self.fails(3, r"run or bundle", "evaluate", "data")
        self.write("bad.txt", "0 1 .5\n0 2\n")
        self.fails(3, r"bad\.txt:2", "evaluate", "--recs", "bad.txt", "-d", "data")


class Runs(CommandLine):
    def test_reference_trains_evaluates_and_recommends_alike(self):
        self.write("events.tsv", "user_id\titem_id\ttimestamp\n" + "".join(
            f"u{u}\ti{(u * 3 + k * k) % 17}\t{1000 + k}\n" for u in range(30) for k in range(7)))
        self.succeeds("import", "events.tsv", "-o", "data")
        for device in ("cpu", "reference"):
            self.succeeds("train", "-m", "LightGCN", "-d", "data", "-o", device, "--epochs", "5",
                          "--device", device)
        self.assertEqual(self.read_json("reference", "config.resolved.json")["settings"]["device"]["value"],
                         "reference")
        losses = [[json.loads(line)["loss"]["total"] for line in self.read(run, "metrics.jsonl").splitlines()
                   if '"phase":"train"' in line] for run in ("cpu", "reference")]
        self.assertEqual(len(losses[0]), 5)
        for a, b in zip(*losses):
            self.assertAlmostEqual(a, b, delta=1e-4 * a)
        found = [json.loads(self.succeeds("evaluate", "cpu/model", "-d", "data", "--json", "--device",
                                          device).stdout)["test"] for device in ("cpu", "reference")]
        self.assertEqual(found[0], found[1])
        lists = [self.succeeds("recommend", "cpu/model", "--users", "u1,u2", "--device", device).stdout
                 for device in ("cpu", "reference")]
        self.assertEqual([row.split("\t")[:3] for row in lists[0].splitlines()],
                         [row.split("\t")[:3] for row in lists[1].splitlines()])
        self.fails(2, r"device 'gpu' is not available: this build computes on cpu and reference",
                   "train", "-m", "BPR", "-d", "data", "--device", "gpu")

    def test_a_run_and_its_bundle_and_its_lists_give_the_same_numbers(self):
        rows = "user_id\titem_id\ttimestamp\n" + "".join(
            f"u{u}\ti{(u * 3 + k * k) % 17}\t{1000 + k}\n" for u in range(30) for k in range(7))
        self.write("events.tsv", rows)
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "leave-one-out")
        self.succeeds("train", "-d", "data", "-m", "Popularity", "-o", "run", "--topk", "5,10")
        wanted = self.read_json("run", "results.json")
        looks = wanted["test_looks"]

        done = self.succeeds("evaluate", "run", "--json", "--per-user")
        again = json.loads(done.stdout)
        self.assertEqual(again["test"], wanted["test"])
        self.assertEqual(again["audit"]["looks_at_test"], looks + 1)
        self.assertEqual(self.read_json("run", "results.json")["test_looks"], looks + 1)
        self.assertEqual(len(again["per_user"]), again["n_users"])
        valid = json.loads(self.succeeds("evaluate", "run", "--split", "valid", "--json").stdout)
        self.assertEqual(valid["valid"], wanted["valid"])
        self.assertEqual(self.read_json("run", "results.json")["test_looks"], looks + 1)

        bundle = self.succeeds("evaluate", os.path.join("run", "model"), "-d", "data", "--json")
        self.assertEqual(json.loads(bundle.stdout)["test"], wanted["test"])
        self.fails(2, r"-d DATASET", "evaluate", os.path.join("run", "model"))

        lists = self.succeeds("evaluate", "--recs", os.path.join("run", "recs_top50.tsv"), "-d", "data",
                              "--topk", "5,10", "--json")
        self.assertEqual(json.loads(lists.stdout)["test"], wanted["test"])

        self.succeeds("import", "data", "-o", "other", "--split", "random")
        self.fails(3, r"train rows", "evaluate", os.path.join("run", "model"), "-d", "other")
