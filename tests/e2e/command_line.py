"""What the end-to-end tests share: run the program in a clean folder and compare what it says."""
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PROGRAM = os.path.join(ROOT, "build", "tessera")  # run.py --program replaces it
NUMBER = re.compile(r"[-+]?\d+\.\d+(?:[eE][-+]?\d+)?")


def real_data(name):
    """The folder of a real data set, or a skip with one clear line."""
    folder = os.path.join(os.environ.get("TESSERA_DATA") or os.path.join(ROOT, "data"), name)
    if not os.path.isdir(folder):
        raise unittest.SkipTest(f"no $TESSERA_DATA/{name}")
    return folder


class Done:
    def __init__(self, arguments, code, stdout, stderr):
        self.arguments, self.code, self.stdout, self.stderr = arguments, code, stdout, stderr

    def __str__(self):
        return (f"tessera {' '.join(self.arguments)}\n  exit {self.code}\n"
                f"  stdout: {self.stdout[-2000:]}\n  stderr: {self.stderr[-2000:]}")


class CommandLine(unittest.TestCase):
    """Each test runs in an empty folder of its own, which is also the working directory."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="tessera-e2e-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, content):
        place = self.path(name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return place

    def read(self, *parts):
        with open(self.path(*parts), encoding="utf-8") as file:
            return file.read()

    def read_json(self, *parts):
        return json.loads(self.read(*parts))

    def run_program(self, *arguments, stdin=None, timeout=600, largest_file=None):
        """`largest_file`: bytes after which a write fails, as on a disk that is full."""
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        arguments = [str(a) for a in arguments]
        done = subprocess.run([PROGRAM, *arguments], cwd=self.folder, input=stdin, timeout=timeout,
                              capture_output=True, text=True, errors="backslashreplace",
                              preexec_fn=limit if largest_file else None)
        return Done(arguments, done.returncode, done.stdout, done.stderr)

    def succeeds(self, *arguments, **more):
        done = self.run_program(*arguments, **more)
        self.assertEqual(done.code, 0, str(done))
        return done

    def fails(self, code, words, *arguments, **more):
        """Ends with `code` and one line on stderr that matches the regex `words`; stdout is clean (but
        for the report that import prints first)."""
        done = self.run_program(*arguments, **more)
        self.assertEqual(done.code, code, str(done))
        if arguments[0] != "import":
            self.assertEqual(done.stdout, "", str(done))
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(lines), 1, f"wanted one line 'error: ...'\n{done}")
        message = lines[0][len("error: "):]
        self.assertRegex(message, words, str(done))
        names = "|".join(("Popularity", "ItemKNN", "BPR", "LightGCN", "VBPR", "BM3", "FREEDOM", "MGCN",
                          "MMSSL", "PAMD", "R2MR", "SASRec", "GRU4Rec", "MC1", "BERT4Rec", "FDSA",
                          "KDSR"))
        self.assertRegex(message, rf"^({names}|[^A-Z])", f"starts upper case: {message}")
        return done

    def start(self, *arguments):
        """The program in the background, for tests that interrupt it."""
        process = subprocess.Popen([PROGRAM, *[str(a) for a in arguments]], cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(lambda: (process.poll() is None and process.kill(), process.communicate()))
        return process

    def wait_until(self, holds, process, seconds=120):
        """Waits until `holds()`; fails when the program ends or the time is over before."""
        end = time.time() + seconds
        while not holds():
            self.assertIsNone(process.poll(), "the program ended too early")
            self.assertLess(time.time(), end, "nothing happened in time")
            time.sleep(0.01)

    def same_text(self, found, wanted, tolerance=1e-4):
        """Equal texts, numbers with a point within the tolerance."""
        self.assertEqual(NUMBER.sub("#", found), NUMBER.sub("#", wanted))
        for a, b in zip(NUMBER.findall(found), NUMBER.findall(wanted)):
            self.assertLessEqual(abs(float(a) - float(b)), tolerance, f"{a} against {b}")

    def tree(self, *parts):
        """Every file under a folder and its bytes, by relative path."""
        top = self.path(*parts)
        found = {}
        for folder, _, files in os.walk(top):
            for name in files:
                place = os.path.join(folder, name)
                with open(place, "rb") as file:
                    found[os.path.relpath(place, top)] = file.read()
        return found
