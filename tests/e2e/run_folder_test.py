"""What a run folder promises: nothing of somebody else's is lost, nothing is replaced before it is
checked, every look at test counts, damage is found, and its own files repeat it."""
import json
import os
import shutil
import signal
import struct

from bad_input_test import npy
from command_line import CommandLine
from resume_test import comparable, events


class RunFolder(CommandLine):
    BPR = ["train", "-m", "BPR", "-d", "data", "-j", "1", "--embedding_size", "8"]

    def setUp(self):
        super().setUp()
        self.write("events.tsv", events(80, 40, 20))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user")

    def looks(self, run):
        results = self.read_json(run, "results.json")
        self.assertEqual(results["audit"]["looks_at_test"], results["test_looks"])
        return results["test_looks"]

    def test_files_of_somebody_else_are_kept(self):
        self.write("precious/important.txt", "mine")
        self.write("precious/status.json", "{}")
        self.fails(2, r"not empty and holds no run", *self.BPR, "--epochs", "1", "-o", "precious")
        self.assertEqual(sorted(os.listdir(self.path("precious"))), ["important.txt", "status.json"])
        self.succeeds(*self.BPR, "--epochs", "1", "-o", "run")
        self.write("run/notes.txt", "mine")
        self.succeeds(*self.BPR, "--epochs", "2", "-o", "run")
        self.assertEqual(self.read("run", "notes.txt"), "mine")
        # Nor are they lost to a study, whose runs are begun again when they have no checkpoint.
        self.succeeds("compare", "-m", "BPR", "-d", "data", "-j", "1", "--embedding_size", "8",
                      "--epochs", "1", "--seeds", "1", "-o", "study")
        (run,) = os.listdir(self.path("study", "runs"))
        self.write(f"study/runs/{run}/notes.txt", "mine")
        os.remove(self.path("study", "runs", run, "results.json"))
        shutil.rmtree(self.path("study", "runs", run, "checkpoints"))
        self.succeeds("compare", "--resume", "study")
        self.assertEqual(self.read("study", "runs", run, "notes.txt"), "mine")

    def test_nothing_is_replaced_before_all_is_checked(self):
        self.succeeds(*self.BPR, "--epochs", "1", "-o", "run")
        before = self.tree("run")
        for words, bad in ((r"topk 999", ["--metrics", "recall@999"]),
                           (r"topk 999", ["--valid-metric", "recall@999"]),
                           (r"modality 'foo'", ["--metrics", "ild_foo@10"]),
                           (r"one valid row a user", ["--protocol", "seq-mask"]),
                           (r"epochs", ["--epochs", "0"])):
            done = self.fails(2, words, *self.BPR, *bad, "-o", "run")
            self.assertEqual(self.tree("run"), before, str(done))
            self.fails(2, words, *self.BPR, *bad, "-o", "new")
            self.assertFalse(os.path.exists(self.path("new")))
        rows = "".join(f"u{i % 9}\ti{i % 7}\ttrain\n" for i in range(63))
        self.write("given.tsv", "user_id\titem_id\tsplit\n" + rows)
        self.succeeds("import", "given.tsv", "-o", "no_valid")
        self.fails(2, r"no validation rows", "train", "-m", "BPR", "-d", "no_valid", "-o", "run")
        self.assertEqual(self.tree("run"), before)

    def test_a_run_always_has_a_best_epoch(self):
        for name, setting in (("none", ["--stopping_step", "0"]), ("tiny", ["--time_limit", "1e-9"])):
            self.succeeds(*self.BPR, "--epochs", "5", *setting, "-o", name)
            self.assertGreaterEqual(self.read_json(name, "results.json")["selection"]["epoch"], 0)
            self.succeeds("evaluate", name)

    def test_every_look_at_test_counts(self):
        self.succeeds(*self.BPR, "--epochs", "2", "-o", "run")
        for n in (2, 3):
            self.succeeds("evaluate", "run")
            self.assertEqual(self.looks("run"), n)
        self.succeeds("train", "--resume", "run", "--epochs", "4", "-j", "1")
        self.assertEqual(self.looks("run"), 4)
        self.assertEqual(self.read_json("run", "config.resolved.json")["settings"]["epochs"]["value"], 4)

    def test_results_of_a_run_that_went_on_are_no_end(self):
        self.succeeds(*self.BPR, "--epochs", "3", "-o", "run")

        def trained():
            return self.read("run", "metrics.jsonl").count('"phase":"train"')

        def stopped(*flags):
            before = trained()
            process = self.start("train", "--resume", "run", "-j", "1", *flags)
            self.wait_until(lambda: trained() > before + 2, process)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 4, stderr.decode())
            self.assertEqual(stderr.decode().splitlines()[-1],
                             "error: interrupted; go on with: tessera train --resume run")
            self.assertEqual(self.read_json("run", "status.json")["state"], "interrupted")
            for name in ("results.json", "results.tsv", "per_user.tsv", "recs_top50.tsv", "model"):
                self.assertFalse(os.path.exists(self.path("run", name)), name)

        stopped("--epochs", "100000", "--stopping_step", "100000")
        # As advised: nothing but the folder. What was printed before is no end of it.
        process = self.start("train", "--resume", "run")
        before = trained()
        self.wait_until(lambda: trained() > before + 2, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        self.assertEqual(process.returncode, 4)
        # A look at test of an interrupted run, and of the end before, still counts.
        self.succeeds("evaluate", "run")
        self.assertEqual(self.read_json("run", "status.json")["test_looks"], 2)
        self.succeeds("train", "--resume", "run", "--epochs", "5")
        self.assertEqual(self.looks("run"), 3)
        self.assertEqual(self.read_json("run", "status.json")["state"], "finished")
        self.assertNotIn("test_looks", self.read_json("run", "status.json"))

    def test_a_run_has_one_writer(self):
        process = self.start(*self.BPR, "--epochs", "100000", "--stopping_step", "100000", "-o", "run")
        self.wait_until(lambda: os.path.exists(self.path("run", "checkpoints", "last")), process)
        words = rf"^run is in use by process {process.pid} on host "
        self.fails(2, words, *self.BPR, "--epochs", "1", "-o", "run")
        self.fails(2, words, "train", "--resume", "run", "--epochs", "4")
        self.assertEqual(self.read_json("run", "status.json")["state"], "running")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # The kernel lets go of the lock of who was killed.
        self.succeeds(*self.BPR, "--epochs", "1", "-o", "run")
        self.assertFalse(os.path.exists(self.path("run", ".lock")))

    def test_a_run_goes_on_as_it_was_begun(self):
        self.succeeds(*self.BPR, "--epochs", "2", "-o", "run")
        before = self.tree("run")
        for words, flags in ((r"begun with learning_rate = 0\.001, got 5", ["--learning_rate", "5"]),
                             (r"begun with embedding_size = 8, got 4", ["--embedding_size", "4"]),
                             (r"begun with seed = 999, got 5", ["--seed", "5"]),
                             (r"begun with protocol = \"strict\", got \"mmrec\"", ["--protocol", "mmrec"]),
                             (r"a run of BPR, got -m LightGCN", ["-m", "LightGCN"])):
            self.fails(2, words, "train", "--resume", "run", "--epochs", "4", *flags)
            self.assertEqual(self.tree("run"), before)
        self.write("other.tsv", events(60, 30, 20))
        self.succeeds("import", "other.tsv", "-o", "other", "--split", "temporal-user")
        self.fails(3, r"train rows differ", "train", "--resume", "run", "--epochs", "4", "-d", "other")
        shutil.move(self.path("data"), self.path("moved"))
        self.succeeds("train", "--resume", "run", "--epochs", "3", "-d", "moved")
        self.assertEqual(self.read_json("run", "results.json")["n_epochs"], 3)

    def test_its_own_settings_repeat_it(self):
        self.succeeds(*self.BPR, "--epochs", "3", "--seed", "5", "-o", "run")
        self.succeeds("train", "-c", "run/config.resolved.json", "-o", "again")
        found, wanted = comparable(self.tree("again")), comparable(self.tree("run"))
        self.assertEqual(sorted(found), sorted(wanted))
        for name in wanted:
            self.assertEqual(found[name], wanted[name], name)

    def test_a_dataset_split_anew_is_refused(self):
        self.succeeds(*self.BPR, "--epochs", "1", "-o", "run")
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "leave-one-out")
        self.fails(3, r"has changed since run began: its train rows", "evaluate", "run")
        self.fails(3, r"has changed since run began: its train rows", "train", "--resume", "run",
                   "--epochs", "3")

    def test_a_flipped_bit_is_found(self):
        def flip(*parts):
            with open(self.path(*parts), "r+b") as file:
                file.seek(-3, os.SEEK_END)
                byte = file.read(1)[0]
                file.seek(-3, os.SEEK_END)
                file.write(bytes([byte ^ 1]))

        self.succeeds(*self.BPR, "--epochs", "2", "-o", "run")
        flip("run", "checkpoints", "last", "weights.safetensors")
        self.fails(3, r"weights\.safetensors.*sha256", "train", "--resume", "run", "--epochs", "4")
        flip("run", "checkpoints", "best", "weights.safetensors")
        self.fails(3, r"weights\.safetensors.*sha256", "evaluate", "run")
        flip("data", "interactions.tsv")
        self.fails(3, r"interactions\.tsv.*sha256", *self.BPR, "--epochs", "1", "-o", "other")

    def test_killed_before_its_first_checkpoint(self):
        slow = ["train", "-m", "LightGCN", "-d", "data", "-j", "1", "--epochs", "3"]
        self.succeeds(*slow, "-o", "unbroken")
        process = self.start(*slow, "-o", "stopped")
        self.wait_until(lambda: os.path.exists(self.path("stopped", "data.json")), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shutil.rmtree(self.path("stopped", "checkpoints"), ignore_errors=True)
        self.succeeds("train", "--resume", "stopped")
        found, wanted = comparable(self.tree("stopped")), comparable(self.tree("unbroken"))
        self.assertEqual(sorted(found), sorted(wanted))
        for name in wanted:
            self.assertEqual(found[name], wanted[name], name)

    def test_lists_of_cold_users_are_those_of_the_evaluation(self):
        self.succeeds("import", "events.tsv", "-o", "cold", "--split", "cold-user")
        for model in ("BPR", "ItemKNN"):
            self.succeeds("train", "-m", model, "-d", "cold", "-o", "run", "--epochs", "2")
            lists = self.succeeds("evaluate", "--recs", "run/recs_top50.tsv", "-d", "cold", "--json")
            self.assertEqual(json.loads(lists.stdout)["test"]["recall@20"],
                             self.read_json("run", "results.json")["test"]["recall@20"], model)

    def test_a_label_follows_the_paper_variant_everywhere(self):
        self.write("image_feat.npy", npy(40, 2, [float(i % 7) for i in range(80)]))
        self.write("image_feat.ids", "".join(f"i{i}\n" for i in range(40)))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user",
                      "--feature", "image=image_feat.npy")
        words = "from summaries, paper body not checked"
        done = self.succeeds("train", "-m", "BM3", "-d", "data", "--variant", "paper", "--epochs", "1",
                             "-o", "run")
        for text in (done.stdout, done.stderr, self.read("run", "results.json"),
                     self.read("run", "model", "MODEL_CARD.md")):
            self.assertIn(words, text)

    def test_a_short_flag_is_no_value(self):
        self.fails(2, r"epochs", "train", "-m", "BPR", "--epochs", "-d", "data")
        self.fails(2, r"topk 9 .*|no setting", "train", "-m", "BPR", "-d", "data", "--no_such", "-j", "1")

    def test_tensorboard_gets_the_curves(self):
        run = [*self.BPR, "--epochs", "3", "--tensorboard", "-o", "run"]
        self.succeeds(*run)
        lines = [json.loads(line) for line in self.read("run", "metrics.jsonl").splitlines()]
        wanted = {}
        for line in lines:
            if line["event"] != "epoch":
                continue
            wanted[f"{line['phase']}/time_s", line["epoch"]] = line["time_s"]
            if line["phase"] == "train":
                wanted["loss/total", line["epoch"]] = line["loss"]["total"]
            else:
                wanted["valid/recall@20", line["epoch"]] = line["recall@20"]
        self.assertEqual(len(wanted), 12)
        (name,) = os.listdir(self.path("run", "tb"))
        self.assertRegex(name, r"^events\.out\.tfevents\.\d+\.")
        found = scalars(self.path("run", "tb", name))
        for key, value in wanted.items():
            self.assertAlmostEqual(found[key], value, delta=1e-6 * abs(value) + 1e-12, msg=str(key))
        self.succeeds("train", "--resume", "run", "--epochs", "4")
        (name,) = os.listdir(self.path("run", "tb"))
        again = scalars(self.path("run", "tb", name))
        self.assertEqual({key: again[key] for key in found}, found)
        self.assertIn(("loss/total", 3), again)
        self.succeeds(*self.BPR, "--epochs", "1", "-o", "run")
        self.assertFalse(os.path.exists(self.path("run", "tb")))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def scalars(path):
    """{(tag, step): value} of a TensorBoard file, read by the formats' own descriptions: TFRecord, then
    Event {step 2, summary 5}, Summary {value 1}, Value {tag 1, simple_value 2}."""
    def masked(data):
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def number(data, at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value, at

    def fields(data):
        at = 0
        while at < len(data):
            key, at = number(data, at)
            if key & 7 == 0:
                value, at = number(data, at)
            else:
                size, at = number(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
                value, at = data[at:at + size], at + size
            yield key >> 3, value

    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    with open(path, "rb") as file:
        data = file.read()
    out, at, first = {}, 0, True
    while at < len(data):
        size, of_length = struct.unpack("<QI", data[at:at + 12])
        record = data[at + 12:at + 12 + size]
        (of_record,) = struct.unpack("<I", data[at + 12 + size:at + 16 + size])
        assert (of_length, of_record) == (masked(data[at:at + 8]), masked(record)), "bad CRC"
        at += 16 + size
        event = dict(fields(record))
        assert first == (event.get(3) == b"brain.Event:2"), "the first event names the version"
        first = False
        for _, value in fields(event.get(5, b"")):
            parts = dict(fields(value))
            out[parts[1].decode(), event[2]] = struct.unpack("<f", parts[2])[0]
    return out
