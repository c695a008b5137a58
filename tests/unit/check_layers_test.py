"""tools/check_layers on small trees: what is right passes, each kind of wrong include fails."""
import os
import subprocess
import sys
import tempfile
import unittest

TOOL = os.path.join(os.path.dirname(__file__), "..", "..", "tools", "check_layers")


def run(files):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            place = os.path.join(root, path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "w", encoding="utf-8") as file:
                file.write(text)
        done = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True)
        return done.returncode, done.stdout


class CheckLayers(unittest.TestCase):
    def refused(self, path, include, words):
        code, output = run({path: f"#include {include}\n"})
        self.assertEqual(code, 1, output)
        self.assertIn(f"{path}:1: ", output)
        self.assertIn(words, output)

    def passes(self, path, include):
        code, output = run({path: f"// a comment\n#include {include}\n"})
        self.assertEqual((code, output), (0, ""))

    def test_right_includes_pass(self):
        self.passes("tessera/model/a.h", '"tessera/ops/adam.h"')  # model > data > ops
        self.passes("tessera/study/a.cpp", '"tessera/base/error.h"')
        self.passes("tessera/ops/a.cpp", "<torch/torch.h>")
        self.passes("tessera/read/a.cpp", "<arrow/api.h>")
        self.passes("tessera/base/a.cpp", "<sys/mman.h>")
        self.passes("tessera/base/a.cpp", "<vector>")
        self.passes("cli/a.cpp", "<CLI/CLI.hpp>")
        self.passes("tests/unit/a_test.cpp", '"tests/planted.h"')

    def test_includes_that_point_up_are_refused(self):
        self.refused("tessera/base/a.h", '"tessera/data/dataset.h"', "tessera/base may not include")
        self.refused("tessera/ops/a.cpp", '"tessera/data/dataset.h"', "tessera/ops may not include")
        self.refused("tessera/nn/a.cpp", '"tessera/data/dataset.h"', "tessera/nn may not include")
        self.refused("tessera/eval/a.cpp", '"tessera/train/train.h"', "tessera/eval may not include")

    def test_nobody_includes_models(self):
        self.refused("tessera/train/a.cpp", '"tessera/models/bm3.h"', "nobody includes")
        self.refused("cli/a.cpp", '"tessera/models/bm3.cpp"', "nobody includes")
        code, output = run({"tessera/models/bm3.h": ""})
        self.assertEqual(code, 1)
        self.assertIn("has no headers", output)

    def test_libraries_stay_in_their_rooms(self):
        self.refused("tessera/base/a.h", "<torch/torch.h>", "'torch' is not of tessera/base")
        self.refused("tessera/folder/a.cpp", "<arrow/api.h>", "'arrow' is not of tessera/folder")
        self.refused("tessera/model/a.cpp", "<arrow/api.h>", "'arrow' is not of tessera/model")
        self.refused("tessera/train/a.cpp", "<yaml-cpp/yaml.h>", "'yaml' is not of tessera/train")
        self.refused("tessera/data/a.cpp", "<openssl/evp.h>", "'openssl' is not of tessera/data")
        self.refused("tessera/data/a.cpp", "<curl/curl.h>", "'unknown'")

    def test_strangers_are_refused(self):
        self.refused("tessera/data/a.cpp", '"dataset.h"', "starts with tessera/<room>/")
        code, output = run({"tessera/misc/a.h": ""})
        self.assertEqual(code, 1)
        self.assertIn("not in a room", output)

    def test_an_empty_tree_is_refused(self):
        self.assertEqual(run({"README.md": ""})[0], 1)


if __name__ == "__main__":
    unittest.main()
