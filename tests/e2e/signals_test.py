"""SIGINT and SIGTERM end every verb soon and leave nothing half-written; -o follows links and writes
to devices and pipes."""
import glob
import os
import random
import signal
import stat
import time

from command_line import CommandLine
from resume_test import events


class Signals(CommandLine):
    def end(self, process, how, seconds=1.0):
        """Sends the signal; the program ends in time, as interrupted and in one line."""
        process.send_signal(how)
        start = time.time()
        _, stderr = process.communicate(timeout=60)
        # The time that a machine busy with other tests needs to take a process down is not counted.
        self.assertLess(time.time() - start, seconds + 0.5)
        self.assertEqual(process.returncode, 130, stderr)
        lines = [line for line in stderr.decode().splitlines() if line.startswith("error: ")]
        self.assertEqual(len(lines), 1, stderr)
        self.assertRegex(lines[0], "interrupted")

    def large_file(self):
        draw = random.Random(1)
        block = "".join(f"{draw.randrange(100000)}\t{draw.randrange(50000)}\t{draw.randrange(10 ** 9)}\n"
                        for _ in range(400000))
        self.write("events.tsv", "user_id\titem_id\ttimestamp\n" + block * 12)

    def test_import_and_inspect(self):
        self.large_file()
        self.write("out-before/keep", "x")
        for how in (signal.SIGINT, signal.SIGTERM):
            with self.subTest("while reading", how=how):
                process = self.start("import", "events.tsv", "-o", "out")
                time.sleep(0.5)
                self.end(process, how)
                self.assertEqual(sorted(os.listdir(self.folder)), ["events.tsv", "out-before"])
            with self.subTest("inspect", how=how):
                process = self.start("inspect", "events.tsv")
                time.sleep(0.5)
                self.end(process, how)
        with self.subTest("while writing"):
            process = self.start("import", "events.tsv", "-o", "out", "--core", "2")
            self.wait_until(lambda: glob.glob(self.path(".out.*.tmp", "interactions.tsv")), process)
            self.end(process, signal.SIGTERM)
            self.assertEqual(sorted(os.listdir(self.folder)), ["events.tsv", "out-before"])

    def small_bundle(self):
        self.write("events.tsv", events(60, 40, 10))
        self.succeeds("import", "events.tsv", "-o", "data", "--split", "temporal-user")
        self.succeeds("train", "-m", "Popularity", "-d", "data", "-o", "run")

    def test_recommend_to_a_pipe_that_nobody_reads(self):
        self.small_bundle()
        os.mkfifo(self.path("pipe"))
        process = self.start("recommend", "run/model", "--users", "all", "-o", "pipe")
        time.sleep(1)
        self.end(process, signal.SIGTERM)
        self.assertTrue(stat.S_ISFIFO(os.stat(self.path("pipe")).st_mode))

    def test_encoder_that_ignores_sigterm(self):
        self.write("events.tsv", events(60, 40, 10))
        titles = "item_id\ttitle\n" + "".join(f"i{n}\tsong {n}\n" for n in range(40))
        self.write("items.tsv", titles)
        self.succeeds("import", "events.tsv", "--items", "items.tsv", "-o", "data")
        mark = self.path("started")
        command = f"exec:trap '' TERM INT; echo $$ > {mark}; while :; do sleep 1; done"
        before = self.tree("data")
        process = self.start("features", "data", "--encoder", command)
        self.wait_until(lambda: os.path.exists(mark) and self.read("started").endswith("\n"), process)
        self.end(process, signal.SIGINT)
        with self.assertRaises(ProcessLookupError):
            os.kill(int(self.read("started")), 0)
        self.assertEqual(self.tree("data"), before)

    def test_outputs_follow_links_and_write_to_devices(self):
        self.small_bundle()
        ask = ("recommend", "run/model", "--users", "all", "-o")
        self.succeeds(*ask, "plain.tsv")
        wanted = self.read("plain.tsv")
        os.makedirs(self.path("far"))
        for link, target in (("list", "far/list"), ("nul", "/dev/null"), ("set", "far/set")):
            os.symlink(target, self.path(link))
        self.succeeds(*ask, "list")
        self.succeeds(*ask, "nul")
        self.assertEqual(self.read("far", "list"), wanted)
        self.succeeds("import", "events.tsv", "-o", "set")
        self.succeeds("import", "events.tsv", "-o", "set", "--split", "temporal-user")
        self.assertTrue(os.path.isfile(self.path("far", "set", "dataset.json")))
        for link in ("list", "nul", "set"):
            self.assertTrue(os.path.islink(self.path(link)), link)
        self.assertEqual(sorted(os.listdir(self.path("far"))), ["list", "set"])
        # stdout holds the result and nothing else, however it is called.
        self.assertEqual(self.succeeds(*ask, "/dev/stdout").stdout, wanted)
        self.fails(1, "cannot write /dev/full: No space left on device", *ask, "/dev/full")
