"""stdout holds the result and nothing else; with --json it is one document."""
import json
import os
import subprocess

import command_line
from command_line import CommandLine
from resume_test import events


class Output(CommandLine):
    def setUp(self):
        super().setUp()
        self.write("events.tsv", events(60, 40, 10))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user")

    def one_document(self, *arguments):
        done = self.succeeds(*arguments, "--json")
        return json.loads(done.stdout)

    def test_json_is_one_document(self):
        self.one_document("inspect", "events.tsv")
        self.one_document("import", "events.tsv", "-o", "again")
        results = self.one_document("train", "-m", "ItemKNN", "-d", "data", "-o", "run")
        self.assertIn("recall@20", results["test"])
        self.one_document("evaluate", "run")
        self.one_document("evaluate", "--recs", "run/recs_top50.tsv", "-d", "data")
        self.one_document("recommend", "run/model", "--users", "u1,u2", "-n", "3")
        self.one_document("similar", "run/model", "i1", "-n", "3")
        self.one_document("models")
        self.one_document("models", "BM3")
        self.one_document("doctor")

    def test_log_goes_to_stderr_only(self):
        done = self.succeeds("train", "-m", "BPR", "-d", "data", "-o", "run", "--epochs", "3")
        self.assertNotRegex(done.stdout, r"\b(INFO|WARN|ERROR)\b")
        self.assertRegex(done.stderr, r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO epoch 0 training "
                                      r"\[time: \d+\.\d\ds, train loss: \d+\.\d{4}")
        self.assertRegex(done.stderr, r"epoch 0 evaluating \[time: \d+\.\d\ds, valid_score: \d\.\d{6}\]")
        self.assertIn("Trainable parameters: ", done.stderr)
        self.assertNotIn("\r", done.stderr)  # no bar where nobody looks
        log = self.read("run", "train.log")
        self.assertIn("finished training, best epoch", log)

    def test_quiet_says_nothing_on_stderr(self):
        done = self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run", "-q")
        self.assertEqual(done.stderr, "")

    def test_recommendations_are_the_best_of_the_lists(self):
        self.succeeds("train", "-m", "ItemKNN", "-d", "data", "-o", "run")
        lines = self.succeeds("recommend", "run/model", "--users", "u3", "-n", "4").stdout.splitlines()
        self.assertEqual(lines[0].split("\t")[:4], ["user", "item", "rank", "score"])
        self.assertEqual([line.split("\t")[2] for line in lines[1:]], ["1", "2", "3", "4"])

    def test_evaluation_of_the_written_lists_gives_the_same_numbers(self):
        results = self.one_document("train", "-m", "ItemKNN", "-d", "data", "-o", "run")
        again = self.one_document("evaluate", "--recs", "run/recs_top50.tsv", "-d", "data")
        self.assertIn(f"{results['test']['recall@20']:.9f}",
                      [f"{x:.9f}" for x in numbers(again)])

    def test_popularity_by_hand(self):
        # u4's candidates are b and c after masking a; b has 3 train rows, c 2.
        rows = "user_id\titem_id\tsplit\n"
        for user, items in {"u1": "abc", "u2": "abc", "u3": "ab", "u4": "a"}.items():
            rows += "".join(f"{user}\t{item}\ttrain\n" for item in items)
        rows += "u4\tc\ttest\nu3\tc\tvalid\n"
        self.write("given.tsv", rows)
        self.succeeds("import", "given.tsv", "-o", "hand")
        results = self.one_document("train", "-m", "Popularity", "-d", "hand", "-o", "run",
                                    "--topk", "1,2")
        self.assertEqual(results["test"]["recall@1"], 0.0)
        self.assertEqual(results["test"]["recall@2"], 1.0)
        self.assertAlmostEqual(results["test"]["ndcg@2"], 0.6309297535714575)  # 1 / log2(3)

    def test_a_full_disk_under_stdout_is_an_error(self):
        for how, code in (("> /dev/full", 1), ("| head -c 10 > /dev/null", 0)):
            script = f'"$0" models --markdown {how}; exit ${{PIPESTATUS[0]}}'
            done = subprocess.run(["bash", "-c", script, command_line.PROGRAM],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual("cannot write the result" in done.stderr, code == 1, done.stderr)

    def test_help_and_version(self):
        self.assertRegex(self.succeeds("--version").stdout, r"^tessera \d+\.\d+\.\d+\n$")
        for verb in ("inspect", "import", "train", "evaluate", "recommend", "similar", "models",
                     "doctor", "demo"):
            self.assertIn(verb, self.succeeds("--help").stdout)
            self.assertIn("--json", self.succeeds(verb, "--help").stdout)

    def test_run_folder_has_what_the_conventions_name(self):
        self.succeeds("train", "-m", "BPR", "-d", "data", "-o", "run", "--epochs", "2")
        for name in ("config.resolved.json", "command.txt", "env.json", "data.json", "status.json",
                     "train.log", "metrics.jsonl", "results.json", "results.tsv", "per_user.tsv",
                     "recs_top50.tsv", "model/model.json", "model/weights.safetensors",
                     "checkpoints/best/weights.safetensors", "checkpoints/last/state.json",
                     "checkpoints/last/optimizer.safetensors"):
            self.assertTrue(os.path.exists(self.path("run", name)), name)
        # The resolved settings repeat the run.
        self.succeeds("train", "-m", "BPR", "-d", "data", "-o", "again", "-c",
                      "run/config.resolved.json")
        self.assertEqual(self.read("again", "recs_top50.tsv"), self.read("run", "recs_top50.tsv"))


def numbers(value):
    if isinstance(value, dict):
        for v in value.values():
            yield from numbers(v)
    elif isinstance(value, list):
        for v in value:
            yield from numbers(v)
    elif isinstance(value, float):
        yield value
