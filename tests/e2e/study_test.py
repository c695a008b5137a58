"""compare and tune: tables that a kill cannot change, anyone's lists, and what is refused."""
import collections
import json
import os
import re
import shutil
import signal
import struct
import subprocess

import command_line
from command_line import CommandLine, real_data
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

    def killed_and_continued(self, arguments, times=3, by=None):
        """Kills the command again and again, each time after some more epochs, then lets it end: the
        command itself, or another one `by` which it goes on."""
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
        self.succeeds(*(by or arguments))

    def diverged(self, *parts):
        """Makes a finished child one that diverged, as a run leaves it."""
        folder = self.path(*parts)
        os.remove(os.path.join(folder, "results.json"))
        shutil.rmtree(os.path.join(folder, "checkpoints"), ignore_errors=True)
        self.write(os.path.join(folder, "status.json"), json.dumps({
            "state": "failed", "exit_code": 5, "epoch": 1, "error": "epoch 1: loss part 'bpr' is nan"}))


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
            self.assertIn("protocol strict, seen mask", text)
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

    def test_children_never_share_a_folder(self):
        for name in ("a_b", "b", "shop 1", "shop-1"):
            self.succeeds("import", "events.tsv", "-o", name, "--split", "random", "-q")
        self.fails(2, r"row 'x' on 'a_b' and row 'x_a' on 'b' would share the folder \S+x_a_b_s999",
                   "compare", "-m", "x=BPR,x_a=Popularity", "-d", "a_b", "-d", "b", "-o", "study")
        self.fails(2, r"'shop 1' and .*'shop-1' would share", "compare", "-m", "Popularity", "-d", "shop 1",
                   "-d", "shop-1", "-o", "study")
        self.fails(2, r"would share its folder", "compare", "-m", "shop 1=BPR,shop-1=Popularity", "-d", "b",
                   "-o", "study")
        self.assertFalse(os.path.exists(self.path("study")))

    def test_a_finished_child_is_the_plans(self):
        compare = ("compare", "-m", "Popularity,ItemKNN", "-d", "data", "--seeds", "2", "-q", "-o", "study")
        self.succeeds(*compare)
        runs = self.path("study", "runs")

        def replaced(child, other):
            place = os.path.join(runs, child)
            shutil.move(place, self.path("kept"))
            shutil.copytree(other, place)

        def restored(child):
            shutil.rmtree(os.path.join(runs, child))
            shutil.move(self.path("kept"), os.path.join(runs, child))

        replaced("ItemKNN_data_s999", os.path.join(runs, "Popularity_data_s999"))
        self.fails(3, r"ItemKNN_data_s999 holds a run of model Popularity, the study's has ItemKNN", *compare)
        restored("ItemKNN_data_s999")
        replaced("ItemKNN_data_s999", os.path.join(runs, "ItemKNN_data_s1000"))
        self.fails(3, r"a run of seed 1000, the study's has 999", *compare)
        restored("ItemKNN_data_s999")
        self.succeeds("import", "events.tsv", "-o", "other", "--split", "random")
        self.succeeds("train", "-m", "ItemKNN", "-d", "other", "-o", "run", "-q")
        replaced("ItemKNN_data_s999", self.path("run"))
        self.fails(3, r"a run of dataset \S*other, ", *compare)
        about = self.read_json("run", "data.json")
        config = self.read_json("run", "config.resolved.json")
        config["dataset"] = self.read_json("kept", "config.resolved.json")["dataset"]
        self.write("study/runs/ItemKNN_data_s999/config.resolved.json", json.dumps(config))
        self.fails(3, f"split_sha256 {about['split_sha256']}", *compare)
        restored("ItemKNN_data_s999")
        self.succeeds(*compare)

    def lists(self, name, rows, dataset="data"):
        """Lists of the first `rows` items for all test users of a dataset."""
        users, items = [], []
        for line in self.read(dataset, "interactions.tsv").splitlines()[1:]:
            user, item, *_, label = line.split("\t")
            users += [user] if label == "test" and user not in users else []
            items += [item] if item not in items else []
        self.write(name, "".join(f"{u}\t{i}\t{-r}\n" for u in users for r, i in enumerate(items[:rows])))

    def test_lists_are_checked_before_anything_runs(self):
        self.lists("mine.tsv", 30)
        compare = ("compare", "-m", "Popularity,mine=recs:mine.tsv", "-d", "data", "--seeds", "1", "-o", "study")
        self.fails(2, r"row 'mine' on 'data': metric 'mrr'.*use mrr@K", *compare, "--metrics", "recall@20,mrr")
        self.fails(2, r"row 'mine' on 'data': metric 'map'.*use map@K", *compare, "--metrics", "map,recall@20")
        self.fails(2, r"row 'mine' on 'data': metric 'auc'", *compare, "--metrics", "auc,recall@20")
        self.write("mine.tsv", "u1\ti1\t.5\nu1\ti2\n")
        self.fails(3, r"row 'mine' on 'data': mine\.tsv:2", *compare)
        os.remove(self.path("mine.tsv"))
        self.fails(3, r"row 'mine' on 'data': no file of lists mine\.tsv", *compare)
        self.assertFalse(os.path.exists(self.path("study")))

    def test_what_lists_lack_is_noted(self):
        self.lists("mine.tsv", 25)
        with open(self.path("mine.tsv"), "a", encoding="utf-8") as file:
            file.write("nobody\ti1\t1\nu1\tnothing\t1\nu1\tnothing2\t1\n")
            file.write(self.read("mine.tsv").splitlines()[0] + "\n")
        done = self.succeeds("compare", "-m", "Popularity,mine=recs:mine.tsv", "-d", "data", "--seeds", "1",
                             "-q", "-o", "study")
        for text in (done.stdout, self.read("study", "table.md")):
            self.assertIn("- note: mine: 1 rows of users that 'data' does not have; 2 rows of items that "
                          "'data' does not have; 1 rows that repeat an item of their list; ", text)
            self.assertRegex(text, r"\d+ users with a list shorter than the largest K")

    def test_lists_by_dataset(self):
        self.succeeds("import", "events.tsv", "-o", "other", "--split", "random")
        for name in ("data", "other"):
            self.lists(f"lists/{name}.tsv", 50, name)
        done = self.succeeds("compare", "-m", "Popularity,mine=recs:lists/{dataset}.tsv", "-d", "data", "-d",
                             "other", "--seeds", "1", "-q", "--json", "-o", "study")
        for table in json.loads(done.stdout)["tables"]:
            name = table["dataset"]
            self.assertEqual(table["rows"][1]["recs"], [f"lists/{name}.tsv"])
            alone = json.loads(self.succeeds("evaluate", "--recs", f"lists/{name}.tsv", "-d", name,
                                             "--json").stdout)
            self.assertEqual(table["rows"][1]["test"]["recall@20"]["mean"], alone["test"]["recall@20"])
        self.fails(2, r"\{dataset\}", "compare", "-m", "mine=recs:lists/data.tsv", "-d", "data", "-d", "other",
                   "-o", "study2")

    def test_folds_never_share_a_table(self):
        self.succeeds("import", "events.tsv", "-o", "folds", "--split", "k-fold:3")
        for model in ("Popularity", "ItemKNN"):
            for fold in ("0", "1"):
                self.succeeds("train", "-m", model, "-d", "folds", "--fold", fold, "-o", f"{model}{fold}", "-q")
        done = self.succeeds("compare", "Popularity0", "ItemKNN1", "--json")
        result = json.loads(done.stdout)
        self.assertEqual([table["dataset"] for table in result["tables"]], ["folds, fold 0", "folds, fold 1"])
        self.assertEqual(result["n_comparisons"], 0)
        done = self.succeeds("compare", "Popularity0", "ItemKNN0", "Popularity1", "ItemKNN1")
        self.assertIn("folds, fold 1: Popularity - ItemKNN", done.stdout)
        self.assertRegex(done.stdout, r"dataset folds, fold 0: split k-fold.*, fold 0, seed 999")
        done = self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "folds", "--fold", "2", "--seeds", "1",
                             "-q", "-o", "study")
        self.assertRegex(done.stdout, r"split k-fold.*, fold 2, seed 999")

    def test_resumed_tables_name_the_command_that_began_the_study(self):
        self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "data", "-q", "-o", "study")
        for flags in ((), ("--test", "t")):
            self.succeeds("compare", "--resume", "study", "-q", *flags)
            for name in ("table.md", "table.tsv", "table.tex", "comparisons.tsv"):
                text = self.read("study", name)
                self.assertIn("command: tessera compare -m Popularity,ItemKNN -d data", text)
                self.assertEqual("asked for by: tessera compare --resume study" in text, bool(flags))

    def test_a_run_that_diverges_leaves_a_row_with_fewer_seeds(self):
        compare = ("compare", "-m", "Popularity,wild=BPR[learning_rate=1e30]", "-d", "data",
                   "--seeds", "2", "--epochs", "3", *self.SMALL, "-o", "study")
        done = self.run_program(*compare)
        self.assertEqual(done.code, 5, str(done))
        self.assertIn("2 of the runs of 'wild' on 'data' diverged", done.stderr)
        self.assertRegex(done.stdout, r"note: wild, seed 1000: .*(nan|inf|NaN)")
        self.assertRegex(done.stdout, r"\| wild +\| +- \|")
        before = self.tree("study", "runs")
        self.assertEqual(self.run_program(*compare).code, 5)  # and is not tried again
        self.assertEqual(self.tree("study", "runs"), before)
        # One of two seeds: the row stands on the other.
        self.succeeds("compare", "-m", "Popularity,ItemKNN", "-d", "data", "--seeds", "2", "-q", "-o", "half")
        self.diverged("half", "runs", "ItemKNN_data_s1000")
        done = self.run_program("compare", "--resume", "half")
        self.assertEqual(done.code, 5, str(done))
        self.assertIn("note: ItemKNN, seed 1000: epoch 1: loss part 'bpr' is nan", done.stdout)
        self.assertEqual([row["seeds"] for row in rows_of(self.read("half", "table.tsv"))], ["999,1000", "999"])

    def test_cold_column(self):
        self.succeeds("import", "events.tsv", "-o", "cold", "--split", "cold-item")
        done = self.succeeds("compare", "-m", "ItemKNN,Popularity", "-d", "cold", "--seeds", "1", "-q", "-o",
                             "study")
        self.assertIn("cold Recall@20", done.stdout)
        for row in rows_of(self.read("study", "table.tsv")):
            results = self.read_json("study", "runs", f"{row['row']}_cold_s999", "results.json")
            self.assertEqual(row["cold_metric"], "recall@20")
            self.assertEqual(float(row["cold_mean"]), results["slices"]["cold"]["metrics"]["recall@20"])
            self.assertEqual(float(row["cold_only_mean"]),
                             results["slices"]["cold_only"]["metrics"]["recall@20"])

    def test_fdr_and_another_test_metric(self):
        self.succeeds("compare", "-m", "Popularity,ItemKNN,BPR", "-d", "data", "--seeds", "1", "--epochs", "2",
                      *self.SMALL, "--against", "all", "--correct", "fdr", "--test-metric", "NDCG@10", "-o",
                      "study")
        rows = [row for row in rows_of(self.read("study", "comparisons.tsv")) if row["test"] == "wilcoxon"]
        self.assertEqual(len(rows), 3)
        means = {row["row"]: float(row["test_ndcg@10_mean"]) for row in rows_of(self.read("study", "table.tsv"))}
        # Benjamini and Hochberg: p_(i) m / i, the least of the larger ones.
        wanted, least = {}, 1.0
        for rank, row in reversed(list(enumerate(sorted(rows, key=lambda row: float(row["p"])), 1))):
            least = min(least, float(row["p"]) * 3 / rank)
            wanted[row["a"], row["b"]] = least
        for row in rows:
            self.assertEqual(row["metric"], "ndcg@10")
            self.assertAlmostEqual(float(row["mean_difference"]), means[row["a"]] - means[row["b"]], 12)
            self.assertAlmostEqual(float(row["p_adjusted"]), wanted[row["a"], row["b"]], 12)
        table = self.read("study", "table.md")
        self.assertIn("corrected (fdr) over the 3 comparisons of this table: M = 3 for t, M = 3 for wilcoxon.",
                      table)
        self.assertIn("p t, fdr", table)

    def test_no_test_over_seeds_that_change_nothing(self):
        done = self.succeeds("compare", "-m", "Popularity,ItemKNN,BPR", "-d", "data", "--seeds", "5", "--epochs",
                             "1", *self.SMALL, "--against", "all", "-o", "study", "--format", "md,tsv")
        for row in rows_of(self.read("study", "comparisons.tsv")):
            if row["test"] == "t over seeds":
                self.assertEqual((row["p"], row["p_adjusted"]), ("", ""))
        self.assertIn("M = 0 for t over seeds; those left out have no value", done.stdout)
        self.assertIn("the same for all of them: Popularity, ItemKNN.", done.stdout)
        # Two rows that vary have one; the others are not counted in its correction.
        done = self.succeeds("compare", "-m", "BPR,Popularity,small=BPR[embedding_size=4]", "-d", "data",
                             "--seeds", "5", "--epochs", "1", *self.SMALL, "-o", "two")
        self.assertIn("M = 1 for t over seeds", done.stdout)
        values = {row["b"]: row for row in rows_of(self.read("two", "comparisons.tsv"))
                  if row["test"] == "t over seeds"}
        self.assertEqual(values["Popularity"]["p"], "")
        self.assertEqual(values["small"]["p"], values["small"]["p_adjusted"])
        self.assertTrue(0 < float(values["small"]["p"]) <= 1)

    def test_changed_features_are_another_study(self):
        def pictured(divisor):
            shutil.rmtree(self.path("pictured"), ignore_errors=True)
            self.write("image.tsv", "".join(f"i{i}\t{(i % 4) / divisor}\t1\n" for i in range(60)))
            self.succeeds("import", "events.tsv", "-o", "pictured", "--split", "random", "--feature",
                          "image=image.tsv")
        pictured(4)
        compare = ("compare", "-m", "Popularity", "-d", "pictured", "--seeds", "1", "-q", "-o", "study")
        tune = ("tune", "-m", "BPR", "-d", "pictured", "--search", "n_negatives=1", "--seeds", "0", "--epochs",
                "1", *self.SMALL, "-o", "tuned")
        self.succeeds(*compare)
        self.succeeds(*tune)
        pictured(5)
        words = r"has changed: its features\.\S*image\.sha256 are"
        self.fails(3, words, *compare)
        self.fails(3, words, "compare", "--resume", "study")
        self.fails(3, words, *tune)
        self.fails(3, words, "tune", "--resume", "tuned")
        pictured(4)
        self.succeeds(*compare)

    def test_control_characters_break_no_line(self):
        self.succeeds("compare", "-m", "a|b=Popularity,\n\tItemKNN", "-d", "data", "--seeds", "1", "-q", "-o",
                      "study")
        text = self.read("study", "table.tsv")
        self.assertIn(r"a|b=Popularity,\n\tItemKNN", text.splitlines()[0])
        self.assertEqual([row["row"] for row in rows_of(text)], ["a|b", "ItemKNN"])
        self.assertIn(r"| a\|b ", self.read("study", "table.md"))
        self.assertTrue(all(line[:1] in "#|-" or line[:1].isupper() for line in
                            self.read("study", "table.md").splitlines()))
        self.fails(2, r"a label is one line", "compare", "-m", "a\tb=Popularity", "-d", "data", "-o", "s2")
        self.fails(2, r"a label is one line", "compare", "x\ty=study/runs/ItemKNN_data_s999")

    def test_a_folder_that_was_only_begun_is_taken(self):
        os.makedirs(self.path("study", "runs"))
        self.succeeds("compare", "-m", "Popularity", "-d", "data", "--seeds", "1", "-q", "-o", "study")

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

    def test_random_search_killed_and_resumed_draws_the_same(self):
        search = ("tune", "-m", "BPR", "-d", "data", "--search",
                  "learning_rate=loguniform(0.000123456789,0.0123456789)", "--search",
                  "reg_weight=uniform(0,0.0987654321)", "--sampler", "random", "--trials", "3", "--epochs", "30",
                  "--stopping_step", "100", "--seeds", "1")
        self.killed_and_continued((*search, *self.SMALL, "-o", "killed"), times=1,
                                  by=("tune", "--resume", "killed", "-q", "--no-progress"))
        self.succeeds(*search, *self.SMALL, "-o", "whole")
        self.assertEqual(without_costs(self.read("killed", "trials.tsv")),
                         without_costs(self.read("whole", "trials.tsv")))
        for row in rows_of(self.read("killed", "trials.tsv")):
            settings = self.read_json("killed", "runs", f"t{row['trial']}", "config.resolved.json")["settings"]
            for name in ("learning_rate", "reg_weight"):
                self.assertEqual(float(row[name]), float(settings[name]["value"]))
        command = self.read("whole", "trials.tsv").splitlines()[0]
        for name in ("trials.tsv", "sensitivity.tsv", "table.md", "table.tsv"):
            self.assertIn(command.replace("whole", "killed")[2:], self.read("killed", name), name)

    def test_what_diverges_costs_no_table(self):
        search = ("tune", "-m", "BPR", "-d", "data", "--search", "n_negatives=1,2", "--epochs", "2", "--seeds",
                  "2", *self.SMALL, "-o", "study")
        self.succeeds(*search)
        self.diverged("study", "runs", "BPR_data_s1000")
        done = self.run_program(*search)
        self.assertEqual(done.code, 5, str(done))
        self.assertRegex(done.stderr, r"1 of the 2 runs of the winner, trial \d, diverged")
        note = "note: the winner's seed 1000 is left out: epoch 1: loss part 'bpr' is nan"
        self.assertIn(note, done.stdout)
        self.assertIn("looks at test: 1, one a run", done.stdout)
        self.assertEqual(rows_of(self.read("study", "table.tsv"))[0]["seeds"], "999")
        self.diverged("study", "runs", "BPR_data_s999")
        for name in ("trials.tsv", "sensitivity.tsv", "table.md"):
            os.remove(self.path("study", name))
        self.assertEqual(self.run_program(*search).code, 5)
        self.assertEqual(len(rows_of(self.read("study", "trials.tsv"))), 2)
        self.assertEqual(len(rows_of(self.read("study", "sensitivity.tsv"))), 2)
        self.assertIn(note, self.read("study", "table.md"))
        # A trial that diverges is told in its row; a search of nothing else ends with 5.
        wild = ("tune", "-m", "BPR", "-d", "data", "--epochs", "3", "--seeds", "1", *self.SMALL)
        done = self.succeeds(*wild, "--search", "learning_rate=0.01,1e30", "-o", "wild")
        self.assertRegex(done.stdout, r"\| +1e30 \| +diverged")
        done = self.run_program(*wild, "--search", "learning_rate=1e30,1e31", "-o", "wilder")
        self.assertEqual(done.code, 5, str(done))
        self.assertEqual(len(rows_of(self.read("wilder", "trials.tsv"))), 2)

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

    def test_where_nothing_is_named_the_models_own_grid_is_searched(self):
        done = self.succeeds("tune", "-m", "LightGCN", "-d", "data", "--reg_weight", "0.01", "--trials", "1",
                             "--sampler", "random", "--seeds", "0", "--epochs", "1", *self.SMALL, "-o", "own",
                             "--json")
        result = json.loads(done.stdout)
        self.assertIn("n_layers", result["search"])
        self.assertNotIn("reg_weight", result["search"])  # it was given
        self.assertIn("reg_weight", result["settings"])

    def test_refusals(self):
        tune = ("tune", "-d", "data", "-m", "LightGCN", "-o", "study")
        self.fails(2, r"nothing to search", "tune", "-d", "data", "-m", "Popularity", "-o", "study")
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

    def test_exclude(self):
        self.write("sold.txt", "".join(f"i{i}\n" for i in range(10, 40)))
        self.write("nothing.txt", "")
        self.write("blank.txt", "\n\n")
        whole = self.table("recommend", "run/model", "--users", "all", "-n", "5")
        rows = self.table("recommend", "run/model", "--users", "all", "-n", "5", "--exclude", "sold.txt")
        self.assertTrue({row["item"] for row in rows} <= {f"i{i}" for i in range(3, 10)})
        neighbours = ("similar", "run/model", "--items", "all", "-n", "4")
        rows = self.table(*neighbours, "--exclude", "sold.txt")
        self.assertTrue({row["neighbour"] for row in rows} <= {f"i{i}" for i in range(3, 10)})
        # A night on which nothing is sold out.
        for name in ("nothing.txt", "blank.txt"):
            self.assertEqual(self.table("recommend", "run/model", "--users", "all", "-n", "5", "--exclude", name),
                             whole)
            self.assertEqual(self.table(*neighbours, "--exclude", name), self.table(*neighbours))
            self.fails(3, r"no ids", "recommend", "run/model", "--users", "all", "--only", name)

    def test_a_reader_that_goes_away(self):
        for arguments in (("recommend", "run/model", "--users", "all", "-n", "37", "--json"),
                          ("similar", "run/model", "--items", "all", "-n", "36", "--json")):
            self.assertGreater(len(self.succeeds(*arguments).stdout), 1 << 16)  # more than a pipe holds
            process = self.start(*arguments)
            self.assertEqual(process.stdout.read(1), b"{")
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
            self.assertEqual(process.wait(), 0)

    def test_memory_does_not_grow_with_the_lists(self):
        def peak_mb(n_users):
            rows = "".join(f"u{u}\ti{(u * 7 + j * 13) % 300}\t{j}\n" for u in range(n_users) for j in range(3))
            self.write(f"{n_users}.tsv", "user_id\titem_id\ttimestamp\n" + rows)
            name = f"of{n_users}"
            self.succeeds("import", f"{n_users}.tsv", "-o", name, "--split", "leave-one-out", "-q")
            self.succeeds("train", "-m", "Popularity", "-d", name, "-o", f"{name}-run", "-q")
            process = subprocess.Popen([command_line.PROGRAM, "recommend", f"{name}-run/model", "--users", "all",
                                        "-n", "50", "-j", "1", "-q", "-o", "lists.tsv"], cwd=self.folder,
                                       stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.assertEqual(process.returncode, 0)
            return usage.ru_maxrss / 1024, os.path.getsize(self.path("lists.tsv")) / 2**20
        few, _ = peak_mb(2000)
        many, lists = peak_mb(40000)
        self.assertGreater(lists, 30)
        self.assertLess(many - few, 20)  # the users themselves: ids and what each has seen

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


def npy(rows, width):
    """A float32 matrix of ones as .npy."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + struct.pack("<f", 1) * (rows * width)


class KnownSets(CommandLine):
    def test_strangers_are_not_named(self):
        self.write("events.tsv", events(60, 40, 8))
        self.assertFalse(re.search(r"this is", self.succeeds("inspect", "events.tsv").stdout))

    def test_movielens_is_named(self):
        source = os.path.join(real_data("ml-100k"), "u.data")
        self.assertIn("this is ML-100K", self.succeeds("inspect", source).stdout)
        done = self.succeeds("import", source, "-o", "ml", "--split", "leave-one-out")
        self.assertIn("this is ML-100K, leave-one-out split", done.stdout + done.stderr)
        self.assertIn("this is ML-100K, leave-one-out split", self.succeeds("inspect", "ml").stdout)
        done = self.succeeds("import", source, "-o", "four", "--min-rating", "4")
        self.assertEqual(self.read_json("four", "dataset.json")["n_interactions"], 55375)
        # A row is missing: the name, and what differs.
        with open(source, encoding="utf-8") as file:
            self.write("cut/u.data", "".join(file.readlines()[1:]))
        self.assertIn("this is ML-100K, but: 99,999 interactions, 100,000 expected",
                      self.succeeds("inspect", "cut/u.data").stdout)

    def test_every_import_line_of_the_docs_runs(self):
        with open(os.path.join(command_line.ROOT, "docs", "datasets.md"), encoding="utf-8") as file:
            table = file.read().split("## The papers' sets")[1]
        lines = re.findall(r"^\| ([^|]+) \|[^|]*\| ([^|]+) \| `tessera (import (\S+) [^`]+)` \|", table, re.M)
        self.assertEqual(len(lines), 13)
        outputs = []
        for number, (name, source, command, place) in enumerate(lines):
            with self.subTest(name):
                top = f"set{number}"
                os.makedirs(self.path(top))
                users = [(u, [(u + i) % 20 for i in range(6)]) for u in range(20)]
                if place.endswith("/") and "MMSSL" in source + name or "--ids dense" in command:
                    for part, items in (("train", slice(0, 4)), ("val", slice(4, 5)), ("test", slice(5, 6))):
                        self.write(f"{top}/{place}{part}.json", json.dumps({str(u): i[items] for u, i in users}))
                elif place.endswith("/"):
                    self.write(f"{top}/{place}x.inter", "userID\titemID\trating\ttimestamp\tx_label\n" + "".join(
                        f"{u}\t{item}\t5\t{n}\t{max(0, n - 3)}\n" for u, i in users for n, item in enumerate(i)))
                elif place.endswith(".txt"):
                    self.write(f"{top}/{place}", "".join(f"{u} {' '.join(map(str, i[:4 + u % 3]))}\n"
                                                         for u, i in users))
                else:
                    mark = "\t" if place == "u.data" else "::"
                    self.write(f"{top}/{place}", "".join(mark.join(map(str, (u, item, 4, 881250949 + n))) + "\n"
                                                         for u, i in users for n, item in enumerate(i)))
                if place.endswith("/"):
                    for modality in ("image", "text"):
                        self.write(f"{top}/{place}{modality}_feat.npy", npy(20, 3))
                arguments = command.split()
                output = arguments[arguments.index("-o") + 1]
                done = subprocess.run([command_line.PROGRAM, *arguments], cwd=self.path(top), text=True,
                                      capture_output=True)
                self.assertEqual(done.returncode, 0, f"{command}\n{done.stderr}")
                self.assertEqual(self.read_json(top, output, "dataset.json")["n_users"], 20)
                if place.endswith("/"):
                    self.assertEqual(set(self.read_json(top, output, "features.json")), {"image", "text"})
                outputs.append(output)
        self.assertEqual(len(set(outputs)), 13)
