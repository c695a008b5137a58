"""compare and tune: tables that a kill cannot change, anyone's lists, and what is refused."""
import collections
import json
import os
import re
import signal

from command_line import CommandLine
from resume_test import events

COSTS = {"train_s", "epoch_s", "step_ms", "eval_s", "best_s", "peak_rss_mb"}


def rows_of(text):
    """A TSV of ours: comment lines apart, then rows as dictionaries."""
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    head = lines[0].split("\t")
    return [dict(zip(head, line.split("\t"))) for line in lines[1:]]


def without_costs(text):
    return [{k: v for k, v in row.items() if k not in COSTS} for row in rows_of(text)]


class Studies(CommandLine):
    SMALL = ("--embedding_size", "8", "--train_batch_size", "256", "-j", "1", "--no-progress", "-q")

    def setUp(self):
        super().setUp()
        self.write("events.tsv", events(150, 60, 12))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user")

    def killed_and_continued(self, arguments, times=3):
        """Kills the command again and again, each time after some more epochs, then lets it end."""
        for n in range(1, times + 1):
            process = self.start(*arguments)

            def epochs():
                found = 0
                for folder, _, files in os.walk(self.path("killed", "runs")):
                    if "metrics.jsonl" in files:
                        with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
                            found += file.read().count('"phase":"train"')
                return found

            self.wait_until(lambda wanted=15 * n: epochs() >= wanted, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self.assertFalse(os.path.exists(self.path("killed", "table.md")))
        self.succeeds(*arguments)


class Compare(Studies):
    ROWS = ("compare", "-m", "BPR,small=BPR[embedding_size=4,reg_weight=0.01],LightGCN,Popularity",
            "-d", "data", "--seeds", "2", "--epochs", "40", "--stopping_step", "100")

    def test_killed_three_times_gives_the_tables_of_an_unbroken_one(self):
        self.killed_and_continued((*self.ROWS, *self.SMALL, "-o", "killed"))
        self.succeeds(*self.ROWS, *self.SMALL, "-o", "whole")
        self.assertEqual(without_costs(self.read("killed", "table.tsv")),
                         without_costs(self.read("whole", "table.tsv")))
        self.assertEqual(rows_of(self.read("killed", "comparisons.tsv")),
                         rows_of(self.read("whole", "comparisons.tsv")))
        # Once more on a finished study: nothing is trained, and other tests may be asked for.
        before = self.tree("killed", "runs")
        done = self.succeeds(*self.ROWS, *self.SMALL, "-o", "killed", "--against", "all", "--test", "t",
                             "--correct", "bonferroni")
        self.assertEqual(self.tree("killed", "runs"), before)
        self.assertIn("bonferroni) over the 6 comparisons", done.stdout)
        again = self.succeeds("compare", "--resume", "killed")
        self.assertIn("holm) over the 3 comparisons", again.stdout)
        self.assertEqual(self.tree("killed", "runs"), before)
        # Another comparison does not go there.
        self.fails(2, r"killed holds another study: its settings", *self.ROWS, *self.SMALL, "-o", "killed",
                   "--epochs", "9")
        self.fails(2, r"leave them out", "compare", "--resume", "killed", "-d", "data")
        self.fails(2, r"made by 'compare'", "tune", "--resume", "killed")

    def test_a_table_says_what_made_it_and_children_are_run_folders(self):
        done = self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "data", "-o", "study", "-q",
                             "--format", "md,latex,tsv")
        sha = self.read_json("data", "dataset.json")["split_sha256"]
        for text in (done.stdout, self.read("study", "table.md"), self.read("study", "table.tsv"),
                     self.read("study", "table.tex")):
            self.assertIn("tessera compare -m Popularity,ItemKNN", text)
            self.assertIn(sha, text)
            self.assertIn("protocol strict", text)
            self.assertIn("999, 1000, 1001", text)
            self.assertIn("looks at test: 6", text)
        self.assertIn("Recall@20", self.read("study", "table.md"))
        run = os.path.join("study", "runs", "ItemKNN_data_s1000")
        shown = json.loads(self.succeeds("evaluate", self.path(run), "--json").stdout)
        row = rows_of(self.read("study", "table.tsv"))[1]
        self.assertEqual(float(row["test_recall@20_mean"]), shown["test"]["recall@20"])
        self.assertIn("study folder", self.succeeds("inspect", "study").stdout)
        # The same runs compared as given folders, seeds by seeds.
        runs = [os.path.join("study", "runs", f"{m}_data_s{s}")
                for m in ("Popularity", "ItemKNN") for s in (999, 1000, 1001)]
        given = json.loads(self.succeeds("compare", *runs, "--json").stdout)
        found = [row["test"]["recall@20"]["mean"] for row in given["tables"][0]["rows"]]
        wanted = [float(row["test_recall@20_mean"])
                  for row in rows_of(self.read("study", "table.tsv"))]
        self.assertEqual(found, wanted)
        self.assertEqual(given["n_comparisons"], 1)

    def test_lists_of_another_program_equal_ours_to_the_digit(self):
        # Popularity in a few lines of Python: lists of train counts, ties to the smaller index.
        split = collections.defaultdict(lambda: collections.defaultdict(set))
        counts = collections.Counter()
        for line in self.read("data", "interactions.tsv").splitlines()[1:]:
            user, item, *_, label = line.split("\t")
            split[label][user].add(item)
            counts[item] += label == "train"
        index = dict(line.split("\t") for line in self.read("data", "item_map.tsv").splitlines()[1:])
        items = sorted(index, key=lambda item: (-counts[item], int(index[item])))
        lines = []
        for user in split["test"]:
            seen = split["train"][user] | split["valid"][user]
            best = [item for item in items if item not in seen][:20]
            lines += [f"{user}\t{item}\t{-rank}" for rank, item in enumerate(best)]
        for seed in ("s999", "s1000"):
            self.write(f"{seed}.tsv", "\n".join(lines) + "\n")
        self.succeeds("compare", "-m", "Popularity,mine=recs:s999.tsv+s1000.tsv,once=recs:s999.tsv", "-d",
                      "data", "--seeds", "2", "-o", "study", "-q")
        ours, mine, once = rows_of(self.read("study", "table.tsv"))
        for metric in ("recall@10", "recall@20", "ndcg@10", "ndcg@20"):
            self.assertEqual(ours[f"test_{metric}_mean"], mine[f"test_{metric}_mean"])
            self.assertEqual(ours[f"test_{metric}_mean"], once[f"test_{metric}_mean"])
            self.assertEqual(mine[f"test_{metric}_sd"], "0.0")
            self.assertEqual(once[f"test_{metric}_sd"], "")
        for row in rows_of(self.read("study", "comparisons.tsv")):
            self.assertEqual((row["mean_difference"], row["p"]), ("0.0", "1.0"))

    def test_several_datasets_and_ablations(self):
        vectors = "".join(f"i{i}\t{(i % 4) / 4}\t{(i % 3) / 3}\n" for i in range(60))
        self.write("image.tsv", vectors)
        self.succeeds("import", "events.tsv", "-o", "pictured", "--split", "random", "--feature",
                      "image=image.tsv")
        done = self.succeeds("compare", "-m", "Popularity,BM3", "--ablations", "-d", "pictured", "--seeds",
                             "1", "--epochs", "2", *self.SMALL, "-o", "study", "--json")
        result = json.loads(done.stdout)
        labels = [row["label"] for row in result["tables"][0]["rows"]]
        self.assertEqual(labels[:2], ["Popularity", "BM3"])
        self.assertIn("BM3, no alignment", labels)
        self.assertIn("BM3, features permuted", labels)
        self.assertIn("BM3, image alone", labels)
        self.assertEqual(result["n_comparisons"], len(labels) - 1)
        done = self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "data", "-d", "pictured", "--seeds",
                             "1", "-q", "--json", "-o", "both")
        result = json.loads(done.stdout)
        self.assertEqual([t["dataset"] for t in result["tables"]], ["data", "pictured"])
        self.assertEqual(result["n_comparisons"], 2)

    def test_without_test_rows_the_valid_columns_are_labelled(self):
        rows = [line for line in self.read("data", "interactions.tsv").splitlines()
                if not line.endswith("test")]
        self.write("held.tsv", "\n".join(rows) + "\n")
        self.succeeds("import", "held.tsv", "-o", "held", "--split", "given")
        done = self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "held", "--seeds", "1", "-q", "-o",
                             "study")
        self.assertIn("Recall@20 (valid)", done.stdout)
        self.assertIn("looks at test: 0", done.stdout)

    def test_refusals(self):
        compare = ("compare", "-d", "data", "-o", "study")
        self.fails(2, r"LightGCM.*'LightGCN'", *compare, "-m", "LightGCM,BPR")
        self.fails(2, r"no setting 'reg_wieght'.*'reg_weight'", *compare, "-m", "BPR[reg_wieght=1]")
        self.fails(2, r"'\[' without '\]'", *compare, "-m", "BPR[reg_weight=1")
        self.fails(2, r"'\]' without '\['", *compare, "-m", "BPR]")
        self.fails(2, r"name=value", *compare, "-m", "BPR[0.5]")
        self.fails(2, r"two rows are called 'BPR'", *compare, "-m", "BPR,BPR")
        self.fails(2, r"protocol is the same for all rows", *compare, "-m", "BPR,x=BPR[protocol=mmrec]")
        self.fails(2, r"no rows", *compare)
        self.fails(2, r"no dataset", "compare", "-m", "BPR")
        self.fails(2, r"no test 'wilcoxn'.*'wilcoxon'", *compare, "-m", "BPR", "--test", "wilcoxn")
        self.fails(2, r"no correction 'hlm'.*'holm'", *compare, "-m", "BPR", "--correct", "hlm")
        self.fails(2, r"no format 'html'", *compare, "-m", "BPR", "--format", "html")
        self.fails(2, r"--against 'BPRR'.*'BPR'", *compare, "-m", "BPR,Popularity", "--against", "BPRR")
        self.fails(2, r"--test-metric 'recall@7'", *compare, "-m", "BPR", "--test-metric", "recall@7")
        self.fails(2, r"--seeds is how many", *compare, "-m", "BPR", "--seeds", "0")
        self.fails(2, r"--seeds 'x'", *compare, "-m", "BPR", "--seeds", "x")
        self.fails(2, r"named twice", *compare, "-m", "BPR", "--seeds", "7,7")
        self.fails(2, r"--ablations", *compare, "-m", "Popularity", "--ablations")
        self.fails(2, r"no protocol|protocol must be", *compare, "-m", "BPR", "--protocol", "strickt")
        self.fails(2, r"no setting 'n_layers'", *compare, "-m", "BPR", "--n_layers", "2")
        self.fails(2, r"topk 100", *compare, "-m", "BPR", "--topk", "100")
        self.fails(3, r"row 'BM3' on 'data'.*features", *compare, "-m", "BM3", "--seeds", "1")
        self.fails(3, r"nowhere", "compare", "-m", "BPR", "-d", "nowhere", "-o", "s2")
        self.fails(3, r"lists\.tsv", *compare, "-m", "mine=recs:lists.tsv")
        self.fails(2, r"not empty", "compare", "-m", "BPR", "-d", "data", "-o", "data")
        self.fails(3, r"nowhere", "compare", "nowhere")
        self.fails(3, r"no run folder", "compare", "data")
        self.fails(3, r"no study", "compare", "--resume", "data")
        self.fails(2, r"not both", "compare", "data", "-m", "BPR", "-d", "data")
        self.fails(2, r"--sedds.*'--seeds'|no setting 'sedds'", *compare, "-m", "BPR", "--sedds", "3")

    def test_protocols_never_share_a_table(self):
        for protocol in ("strict", "mmrec"):
            self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", protocol, "--protocol", protocol,
                          "-q")
        self.fails(2, r"mmrec.*strict.*never share", "compare", "a=strict", "b=mmrec")


class Tune(Studies):
    SEARCH = ("tune", "-m", "LightGCN", "-d", "data", "--search", "n_layers=1,2", "--search",
              "learning_rate=[0.001, 0.01]", "--epochs", "40", "--stopping_step", "100", "--seeds", "2")

    def test_killed_three_times_gives_the_tables_of_an_unbroken_one(self):
        self.killed_and_continued((*self.SEARCH, *self.SMALL, "-o", "killed"))
        self.succeeds(*self.SEARCH, *self.SMALL, "-o", "whole")
        for name in ("trials.tsv", "sensitivity.tsv", "table.tsv"):
            self.assertEqual(without_costs(self.read("killed", name)),
                             without_costs(self.read("whole", name)), name)
        trials = rows_of(self.read("whole", "trials.tsv"))
        self.assertEqual([(t["n_layers"], t["learning_rate"]) for t in trials],
                         [("1", "0.001"), ("1", "0.01"), ("2", "0.001"), ("2", "0.01")])
        # The trials never saw test; the winner's runs did, once each.
        for t in range(4):
            results = self.read_json("whole", "runs", f"t{t}", "results.json")
            self.assertIsNone(results["test"])
            self.assertEqual(results["test_looks"], 0)
        for seed in (999, 1000):
            results = self.read_json("whole", "runs", f"LightGCN_data_s{seed}", "results.json")
            self.assertEqual(results["test_looks"], 1)
        best = max(trials, key=lambda t: float(t["valid_recall@20"]))
        table = self.read("whole", "table.md")
        self.assertIn(f"The winner: trial {best['trial']}", table)
        self.assertIn("looks at test: 2, one a run", table)
        sensitivity = rows_of(self.read("whole", "sensitivity.tsv"))
        of_one = [float(t["valid_recall@20"]) for t in trials if t["n_layers"] == "1"]
        self.assertAlmostEqual(float(sensitivity[0]["mean"]), sum(of_one) / 2, 12)
        again = self.succeeds("tune", "--resume", "killed", "-q")
        self.assertIn("4 trials", again.stdout)
        self.fails(2, r"holds another study", *self.SEARCH, *self.SMALL, "-o", "killed", "--epochs", "9")

    def test_search_of_files(self):
        self.write("ours.yaml", "embedding_size: 8\nsearch:\n  learning_rate: loguniform(1e-4, 1e-2)\n"
                                "  reg_weight: uniform(0, 0.1)\n")
        done = self.succeeds("tune", "-m", "BPR", "-d", "data", "-c", "ours.yaml", "--trials", "3", "--seeds",
                             "0", "--epochs", "2", "-j", "1", "-q", "-o", "random", "--json")
        result = json.loads(done.stdout)
        self.assertEqual((result["sampler"], len(result["trials"]), result["test_looks"]), ("random", 3, 0))
        for trial in result["trials"]:
            self.assertTrue(1e-4 <= float(trial["settings"]["learning_rate"]) <= 1e-2)
        self.write("mmrec.yaml", "embedding_size: 8\nn_layers: [1, 2]\nreg_weight: [0.1, 0.01]\n"
                                 "seed: [999]\nhyper_parameters: [\"n_layers\", \"reg_weight\", \"seed\"]\n")
        done = self.succeeds("tune", "-m", "LightGCN", "-d", "data", "-c", "mmrec.yaml", "--seeds", "0",
                             "--epochs", "1", "-j", "1", "-q", "-o", "grid", "--json")
        result = json.loads(done.stdout)
        self.assertEqual((result["sampler"], len(result["trials"])), ("grid", 4))

    def test_refusals(self):
        tune = ("tune", "-d", "data", "-m", "LightGCN", "-o", "study")
        self.fails(2, r"nothing to search", *tune)
        self.fails(2, r"name=values", *tune, "--search", "n_layers")
        self.fails(2, r"no setting 'n_layer'.*'n_layers'", *tune, "--search", "n_layer=1,2")
        self.fails(2, r"n_layers must be between", *tune, "--search", "n_layers=1,99")
        self.fails(2, r"no such range.*'loguniform'", *tune, "--search", "learning_rate=logunifrm(1,2)")
        self.fails(2, r"a below b", *tune, "--search", "learning_rate=uniform(2,1)")
        self.fails(2, r"above 0", *tune, "--search", "learning_rate=loguniform(0,1)")
        self.fails(2, r"named twice", *tune, "--search", "n_layers=1,1")
        self.fails(2, r"no sampler 'gird'.*'grid'", *tune, "--search", "n_layers=1,2", "--sampler", "gird")
        self.fails(2, r"a grid needs lists", *tune, "--search", "learning_rate=uniform(0,1)", "--sampler",
                   "grid")
        self.fails(2, r"2 points", *tune, "--search", "n_layers=1,2", "--sampler", "grid", "--trials", "5")
        self.fails(2, r"--trials must be at least 1", *tune, "--search", "n_layers=1,2", "--trials", "0")
        self.fails(2, r"cannot be searched", *tune, "--search", "protocol=strict,mmrec")
        self.fails(2, r"no model", "tune", "-d", "data", "--search", "n_layers=1,2")
        self.fails(2, r"no dataset", "tune", "-m", "BPR", "--search", "reg_weight=1,2")
        self.fails(2, r"one dataset", "tune", "-m", "BPR", "-d", "data", "-d", "data", "--search", "epochs=1,2")
        self.fails(3, r"nowhere", "tune", "-m", "BPR", "-d", "nowhere", "--search", "epochs=1,2")


class Nightly(CommandLine):
    def setUp(self):
        super().setUp()
        self.write("events.tsv", events(60, 40, 8))
        hidden = "".join(json.dumps({"item_id": f"i{i}", "title": f"thing {i}", "is_hidden": str(int(i < 3))})
                         + "\n" for i in range(40))
        self.write("items.jsonl", hidden)
        self.succeeds("import", "events.tsv", "--items", "items.jsonl", "--item-id", "item_id", "-o", "data",
                      "--split", "temporal-user")
        self.succeeds("train", "-m", "BPR", "-d", "data", "-o", "run", "--epochs", "2", "-j", "1", "-q")

    def table(self, *arguments):
        lines = self.succeeds(*arguments).stdout.splitlines()
        head = lines[0].split("\t")
        return [dict(zip(head, line.split("\t"))) for line in lines[1:]]

    def test_all_users_within_the_listed_items_and_never_hidden_ones(self):
        self.write("stock.txt", "".join(f"i{i}\n" for i in range(0, 20)) + "not-an-item\n")
        rows = self.table("recommend", "run/model", "--users", "all", "-n", "5", "--only", "stock.txt")
        self.assertEqual({row["user"] for row in rows}, {f"u{u}" for u in range(60)})
        allowed = {f"i{i}" for i in range(3, 20)}
        self.assertTrue({row["item"] for row in rows} <= allowed)
        everything = self.table("recommend", "run/model", "--users", "all", "-n", "40")
        self.assertTrue({row["item"] for row in everything}.isdisjoint({"i0", "i1", "i2"}))
        some = [row for row in everything if row["user"] in ("u7", "u3")]
        alone = self.table("recommend", "run/model", "--users", "u3,u7", "-n", "40")
        self.assertEqual(some, alone)
        done = self.succeeds("recommend", "run/model", "--users", "all", "-n", "5", "-o", "out.tsv")
        self.assertEqual(done.stdout.strip(), "out.tsv")
        self.assertEqual(len(self.read("out.tsv").splitlines()), 1 + 60 * 5)
        answers = json.loads(self.succeeds("recommend", "run/model", "--users", "all", "--json").stdout)
        self.assertEqual(len(answers["answers"]), 60)

    def test_all_items(self):
        self.write("stock.txt", "".join(f"i{i}\n" for i in range(0, 20)))
        rows = self.table("similar", "run/model", "--items", "all", "-n", "4", "--only", "stock.txt")
        self.assertEqual(len({row["item"] for row in rows}), 37)
        self.assertTrue({row["neighbour"] for row in rows} <= {f"i{i}" for i in range(3, 20)})
        whole = self.table("similar", "run/model", "--items", "all", "-n", "4")
        alone = self.table("similar", "run/model", "i9", "-n", "4")
        self.assertEqual([row for row in whole if row["item"] == "i9"], alone)

    def test_refusals(self):
        self.write("none.txt", "\n")
        self.write("strangers.txt", "x\ny\n")
        recommend = ("recommend", "run/model", "--users", "all")
        self.fails(3, r"no ids", *recommend, "--only", "none.txt")
        self.fails(2, r"none of its ids", *recommend, "--only", "strangers.txt")
        self.fails(3, r"nowhere", *recommend, "--only", "nowhere")
        self.fails(2, r"choose one", *recommend, "--users-file", "strangers.txt")
        self.fails(2, r"one user", *recommend, "--history", "i5")
        self.fails(2, r"-n must be", *recommend, "-n", "1000")
        self.fails(2, r"choose one", "similar", "run/model", "i5", "--items", "all")
        self.fails(2, r"no item given", "similar", "run/model")
        self.fails(2, r"cannot compare by 'imgae'", "similar", "run/model", "--items", "all", "--by", "imgae")


class KnownSets(CommandLine):
    def test_strangers_are_not_named(self):
        self.write("events.tsv", events(60, 40, 8))
        self.assertFalse(re.search(r"this is", self.succeeds("inspect", "events.tsv").stdout))
