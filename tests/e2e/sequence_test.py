"""Sequence models from events to lists: train, resume, evaluate, recommend by user and by history."""
import json
import shutil

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

    def with_images(self, *split):
        """The ring's items with an image that says where on the ring they stand, and i12, never seen."""
        self.write("image.tsv", "".join(
            f"i{i}\t" + "\t".join(str(float((i * 7 + k * k) % 5)) for k in range(6)) + "\n" for i in range(13)))
        self.write("items.tsv", "item_id\ttitle\n" + "".join(f"i{i}\tThing {i}\n" for i in range(13)))
        self.succeeds("import", "events.tsv", "--items", "items.tsv", "--feature", "image=image.tsv",
                      "-o", "pictured", *split)

    KDSR = ("--embedding_size", "16", "--n_parts", "4", "--n_codes", "6", "--ae_epochs", "40")

    def test_bundles_keep_what_users_did_and_in_which_order(self):
        self.with_images("--split", "leave-one-out")
        models = (("SASRec", ("--loss", "bce")), ("GRU4Rec", ("--loss", "gbce", "--n_negatives", "4")),
                  ("BERT4Rec", ()), ("FDSA", ()), ("KDSR", (*self.KDSR, "--candidate", "fused")),
                  ("KDSR", (*self.KDSR, "--host", "sasrec", "--start", "mlp")),
                  ("KDSR", (*self.KDSR, "--host", "rgat")))
        for i, (model, flags) in enumerate(models):
            self.succeeds("train", "-d", "pictured", "-m", model, "-o", f"run{i}", "--protocol", "seq-mask",
                          "-j", "1", "--epochs", "2", "--learning_rate", "0.01", *flags)
            results = self.read_json(f"run{i}", "results.json")
            self.assertGreater(results["n_parameters"], 100)
            self.assertGreater(results["time_s"]["rank_test"], 0)
        shutil.move(self.path("pictured"), self.path("elsewhere"))
        rows = [line.split("\t") for line in self.read("elsewhere", "interactions.tsv").splitlines()]
        known = [row[1] for row in rows if row[0] == "u7" and row[-1] != "test"]
        self.assertEqual(len(known), 8)

        def asked(run, *who):
            done = self.succeeds("recommend", run, *who, "-n", "13", "--json")
            answer = json.loads(done.stdout)["answers"][0]
            self.assertEqual(answer["via"], "history")
            return [(one["id"], one["score"]) for one in answer["items"]]

        for i, (model, _) in enumerate(models):
            with self.subTest(model=model, run=i):
                by_user = asked(f"run{i}", "--users", "u7")
                self.assertEqual(by_user, asked(f"run{i}", "--history", ",".join(known)))
                self.assertNotEqual(by_user, asked(f"run{i}", "--history", ",".join(reversed(known))))
                self.assertEqual({item for item, _ in by_user}, {f"i{k}" for k in range(13)} - set(known))

    def test_the_released_log_is_a_curve_and_no_result(self):
        self.with_images("--split", "temporal-user", "--rounding", "floor")
        self.succeeds("train", "-d", "pictured", "-m", "KDSR", "-o", "run", "-j", "1", "--variant", "ratio20",
                      "--protocol", "ratio20", "--test-curve", "--epochs", "3", "--topk", "5,10", *self.KDSR)
        lines = [json.loads(line) for line in self.read("run", "test_curve.jsonl").splitlines()]
        self.assertEqual([line.get("epoch") for line in lines], [0, 1, 2, None])
        best = lines[-1]["best"]["recall@5"]
        self.assertEqual(best["value"], max(line["recall@5"] for line in lines[:-1]))
        self.assertIn("as_logged", lines[-1]["best"]["ndcg@5"])
        self.assertIsNone(lines[-1]["stop_epoch"])
        results = self.read_json("run", "results.json")
        self.assertNotIn("as_logged", json.dumps(results))
        self.assertEqual(results["test"]["recall@5"], lines[2]["recall@5"])  # the last epoch, not the best
        self.assertEqual(results["n_users"], 60)  # test rows: one of nine a user
        # No table takes it, and it has no valid set.
        for verb in (("compare", "-m", "KDSR,MC1", "-d", "pictured", "--protocol", "ratio20"),
                     ("compare", "run", "run"),
                     ("tune", "-m", "KDSR", "-d", "pictured", "--protocol", "ratio20", "--search", "tau=1,2")):
            self.fails(2, verb[0] + r" takes no protocol 'ratio20'.*no table", *verb)
        self.fails(2, r"without a valid set, 'data' has 60 valid rows.*temporal-user", "train", "-d", "data",
                   "-m", "MC1", "-o", "other", "--protocol", "ratio20")
        # Without --epochs its hundred run; other protocols still ask for them.
        self.fails(2, r"no validation rows", "train", "-d", "pictured", "-m", "KDSR", "-o", "other")

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

    def test_every_result_says_what_becomes_of_seen_items(self):
        for protocol, words, seen in (("recbole-seq", "recbole-seq, seen none", "none"),
                                      ("seq-none", "seq-none", "none"), ("seq-mask", "seq-mask", "mask"),
                                      ("strict", "strict, seen mask", "mask")):
            with self.subTest(protocol):
                done = self.succeeds("train", "-d", "data", "-m", "MC1", "-o", "run", "--protocol", protocol)
                self.assertIn(f"protocol {words}, seed", done.stdout)
                self.assertIn(f"Protocol: {words}\n", self.read("run", "train.log"))
                head, *rows = [line.split("\t") for line in self.read("run", "results.tsv").splitlines()]
                self.assertEqual([row[head.index("seen")] for row in rows], [seen, seen])
                results = self.read_json("run", "results.json")
                self.assertEqual((results["seen"], results["audit"]["seen"]), (seen, seen))
                self.assertIn(f"seen: {seen}", self.succeeds("evaluate", "run").stdout)
                done = self.succeeds("compare", "run")
                self.assertIn(f"protocol {words}", done.stdout)

    def test_recbole_seq_trains_on_prefixes(self):
        train = ("train", "-d", "data", "-m", "GRU4Rec", "-o", "run", "--protocol", "recbole-seq",
                 "--epochs", "1", "-j", "1")
        self.succeeds(*train)
        rows = self.read_json("run", "config.resolved.json")["settings"]["rows"]
        self.assertEqual(rows, {"value": "prefix", "origin": "protocol=recbole-seq"})
        self.assertNotIn("every prefix", self.read("run", "train.log"))
        done = self.succeeds(*train, "--rows", "user")
        self.assertEqual(self.read_json("run", "config.resolved.json")["settings"]["rows"]["value"], "user")
        self.assertIn("note: protocol recbole-seq trains on every prefix", done.stdout)

    def test_refusals(self):
        train = ("train", "-d", "data", "-o", "run", "--epochs", "1")
        self.fails(2, r"SASRec\.n_heads must divide embedding_size 64, got 3", *train, "-m", "SASRec",
                   "--n_heads", "3")
        self.fails(2, r"rows.*user.*chunk.*prefix", *train, "-m", "GRU4Rec", "--rows", "window")
        self.fails(3, r"KDSR needs item features", *train, "-m", "KDSR")
        self.fails(3, r"FDSA needs item features or a column", *train, "-m", "FDSA")
