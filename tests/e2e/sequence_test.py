"""Sequence models from events to lists: train, resume, evaluate, recommend by user and by history."""
import json

from command_line import CommandLine


class Sequences(CommandLine):
    def setUp(self):
        super().setUp()
        # Users walk round a ring of 12 items, each from its own start: what follows i is i + 1.
        rows = "user_id\titem_id\ttimestamp\n" + "".join(
            f"u{u}\ti{(u * 5 + t) % 12}\t{1000 + t}\n" for u in range(60) for t in range(9))
        self.write("events.tsv", rows)
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "leave-one-out")

    def train(self, model, *flags):
        self.succeeds("train", "-d", "data", "-m", model, "-o", "run", "--protocol", "seq-none",
                      "-j", "1", *flags)
        return self.read_json("run", "results.json")

    def test_a_history_is_answered_by_what_follows_it(self):
        for model, flags in (("MC1", ()), ("SASRec", ("--epochs", "40", "--train_batch_size", "8",
                                                      "--embedding_size", "16",
                                                      "--hidden_dropout", "0.1",
                                                      "--attention_dropout", "0.1",
                                                      "--learning_rate", "0.01")),
                             ("GRU4Rec", ("--epochs", "30", "--train_batch_size", "8",
                                          "--learning_rate", "0.01"))):
            with self.subTest(model):
                results = self.train(model, "--topk", "1,5", *flags)
                self.assertGreater(results["test"]["hit@1"], .9)
                self.assertEqual(results["audit"]["mask"], "none")
                done = self.succeeds("recommend", "run", "--history", "i3,i4,i5", "-n", "1", "--json")
                answer = json.loads(done.stdout)["answers"][0]
                self.assertEqual((answer["via"], answer["items"][0]["id"]), ("history", "i6"))
                if model == "MC1":  # no trained model has ever seen a walk backwards
                    done = self.succeeds("recommend", "run", "--history", "i5,i4,i3", "-n", "1",
                                         "--no-filter-seen", "--json")
                    self.assertEqual(json.loads(done.stdout)["answers"][0]["items"][0]["id"], "i4")
                # A known user is answered from train and valid rows, so by the test item.
                done = self.succeeds("recommend", "run", "--users", "u0", "-n", "1", "--json")
                answer = json.loads(done.stdout)["answers"][0]
                self.assertEqual((answer["via"], answer["items"][0]["id"]), ("history", "i8"))
                # The run's lists and its bundle say the same numbers as the run.
                for what in (("run/model", "-d", "data"), ("--recs", "run/recs_top50.tsv", "-d", "data")):
                    done = self.succeeds("evaluate", *what, "--protocol", "seq-none", "--metrics",
                                         "hit@1,ndcg@5", "--json")
                    test = json.loads(done.stdout)["test"]
                    self.assertAlmostEqual(test["hit@1"], results["test"]["hit@1"], 6)
                    self.assertAlmostEqual(test["ndcg@5"], results["test"]["ndcg@5"], 6)

    def test_order_matters_to_those_who_read_it(self):
        for model, least in (("MC1", .3), ("Popularity", 0)):
            self.train(model, "--topk", "1,5")
            done = self.succeeds("evaluate", "run", "--shuffle-histories", "--json")
            answer = json.loads(done.stdout)
            plain, shuffled = answer["test"]["ndcg@5"], answer["shuffled_histories"]["ndcg@5"]
            if least:
                self.assertLess(shuffled["value"], (1 - least) * plain)
                self.assertAlmostEqual(shuffled["change"], shuffled["value"] / plain - 1, 12)
            else:
                self.assertEqual(shuffled["value"], plain)
        self.assertIn("does the model read the order", self.succeeds("evaluate", "run",
                                                                     "--shuffle-histories").stdout)
        self.fails(2, r"--shuffle-histories wants a run", "evaluate", "--recs", "run/recs_top50.tsv", "-d",
                   "data", "--shuffle-histories")

    def test_refusals(self):
        train = ("train", "-d", "data", "-o", "run", "--epochs", "1")
        self.fails(2, r"SASRec\.n_heads must divide embedding_size 64, got 3", *train, "-m", "SASRec",
                   "--n_heads", "3")
        self.fails(2, r"rows.*user.*chunk.*prefix", *train, "-m", "GRU4Rec", "--rows", "window")
        self.fails(3, r"KDSR needs item features", *train, "-m", "KDSR")
        self.fails(3, r"FDSA needs item features or a column", *train, "-m", "FDSA")
