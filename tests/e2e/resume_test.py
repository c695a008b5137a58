"""A run that was killed or interrupted ends as one that was not; an import leaves all or nothing."""
import json
import os
import random
import shutil
import signal
import time

from command_line import CommandLine

TIMES = {"time", "time_s", "train", "eval", "epoch_median", "samples_per_s", "rss_mb", "gpu_mb",
         "peak_rss_mb", "peak_gpu_mb", "run", "created"}


def events(n_users, n_items, each):
    """Users of four kinds, who take items of their kind more often."""
    draw = random.Random(5)
    lines = ["user_id\titem_id\ttimestamp"]
    for user in range(n_users):
        taken = set()
        while len(taken) < each:
            item = draw.randrange(n_items)
            if item % 4 == user % 4 or draw.random() < 0.2:
                taken.add(item)
        for place, item in enumerate(sorted(taken, key=lambda i: draw.random())):
            lines.append(f"u{user}\ti{item}\t{1000000 + place * 1000 + user}")
    return "\n".join(lines) + "\n"


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items()
                if k not in TIMES and not k.endswith("_s")}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def comparable(tree):
    """Files that must be equal, and JSON with times and memory left out."""
    out = {}
    for name, content in tree.items():
        base = os.path.basename(name)
        if base in ("train.log", "command.txt", "env.json", "config.resolved.json", "MODEL_CARD.md"):
            continue
        if base.endswith(".jsonl"):
            out[name] = [without_times(json.loads(line)) for line in content.splitlines()]
        elif base.endswith(".json"):
            out[name] = without_times(json.loads(content))
        else:
            out[name] = content
    return out


class Resume(CommandLine):
    MODEL = ["-m", "LightGCN", "-d", "data", "--epochs", "40", "--stopping_step", "100",
             "--embedding_size", "16", "--train_batch_size", "256", "-j", "1"]

    def setUp(self):
        super().setUp()
        self.write("events.tsv", events(300, 120, 20))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user")

    def n_epochs(self, run):
        try:
            return self.read(run, "metrics.jsonl").count('"phase":"train"')
        except FileNotFoundError:
            return 0

    def stopped_after(self, n, how):
        for run in ("stopped", "unbroken"):
            shutil.rmtree(self.path(run), ignore_errors=True)
        process = self.start("train", *self.MODEL, "-o", "stopped")
        self.wait_until(lambda: self.n_epochs("stopped") >= n, process)
        process.send_signal(how)
        _, stderr = process.communicate(timeout=120)
        return process.returncode, stderr.decode()

    def check_same_as_unbroken(self):
        self.succeeds("train", *self.MODEL, "-o", "unbroken")
        found, wanted = comparable(self.tree("stopped")), comparable(self.tree("unbroken"))
        self.assertEqual(sorted(found), sorted(wanted))
        for name in wanted:
            self.assertEqual(found[name], wanted[name], name)

    def test_killed_run_resumes_to_the_same_bits(self):
        for n in (1, 7):
            with self.subTest(epochs=n):
                code, _ = self.stopped_after(n, signal.SIGKILL)
                self.assertEqual(code, -signal.SIGKILL)
                self.succeeds("train", "--resume", "stopped")
                self.check_same_as_unbroken()

    def test_run_killed_twice_resumes_to_the_same_bits(self):
        self.stopped_after(2, signal.SIGKILL)
        process = self.start("train", "--resume", "stopped")
        self.wait_until(lambda: self.n_epochs("stopped") >= 12, process)
        process.kill()
        process.communicate()
        self.succeeds("train", "--resume", "stopped")
        self.check_same_as_unbroken()

    def test_interrupted_run_says_how_to_go_on(self):
        for how in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=how):
                code, stderr = self.stopped_after(3, how)
                self.assertEqual(code, 4, stderr)
                self.assertIn("--resume", stderr.splitlines()[-1])
                status = self.read_json("stopped", "status.json")
                self.assertEqual((status["state"], status["exit_code"]), ("interrupted", 4))
                self.succeeds("train", "--resume", "stopped")
                self.assertEqual(self.read_json("stopped", "status.json")["state"], "finished")
                self.check_same_as_unbroken()

    def test_full_disk_leaves_the_old_checkpoint(self):
        self.stopped_after(3, signal.SIGINT)
        before = self.tree("stopped", "checkpoints")
        done = self.fails(1, r"cannot write stopped/checkpoints/(last|best)/weights\.safetensors: File "
                          r"too large; what was there before is unchanged",
                          "train", "--resume", "stopped", largest_file=12000)
        self.assertEqual(self.tree("stopped", "checkpoints"), before, str(done))
        self.succeeds("train", "--resume", "stopped")
        self.check_same_as_unbroken()

    def test_same_command_twice_gives_the_same_run(self):
        self.succeeds("train", *self.MODEL, "-o", "stopped")
        self.check_same_as_unbroken()


class KilledImport(CommandLine):
    def test_leaves_the_old_folder_or_none(self):
        self.write("events.tsv", events(3000, 500, 40))
        for delay in (0.3, 0.6, 1.0, 1.5):
            process = self.start("import", "events.tsv", "-o", "data", "--split", "random")
            time.sleep(delay)
            process.kill()
            process.communicate()
            if os.path.exists(self.path("data")):
                break
        if os.path.exists(self.path("data")):
            self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run")
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "random")
        before = self.tree("data")
        for delay in (0.3, 0.7, 1.1):
            process = self.start("import", "events.tsv", "-o", "data", "--split", "temporal-user")
            time.sleep(delay)
            process.kill()
            process.communicate()
            split = self.read_json("data", "dataset.json")["split"]
            if "random" in json.dumps(split):
                self.assertEqual(self.tree("data"), before)
            self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run")
