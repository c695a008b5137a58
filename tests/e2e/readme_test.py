"""The README's page of real use, run as written."""
import os
import re
import subprocess

import command_line
from command_line import ROOT, CommandLine, real_data


class Readme(CommandLine):
    def test_page_of_real_use_runs_as_written(self):
        real_data("ml-100k")
        with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
            blocks = re.findall(r"^```sh\n(.*?)^```$", file.read(), re.M | re.S)
        self.assertGreaterEqual(len(blocks), 4)
        os.symlink(os.path.dirname(command_line.PROGRAM), self.path("build"))
        outputs = []
        for block in blocks:
            done = subprocess.run(["bash", "-e", "-c", block], cwd=self.folder, timeout=900,
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, f"{block}\n{done.stdout}\n{done.stderr}")
            outputs.append(done.stdout)
        self.assertIn("u.data", outputs[0])
        self.assertTrue(os.path.exists(self.path("work/movies/import_report.json")))
        lightgcn = self.read_json("work/lightgcn/results.json")["test"]["recall@20"]
        popularity = self.read_json("work/popularity/results.json")["test"]["recall@20"]
        self.assertGreater(lightgcn, popularity)
        self.assertIn("Star Wars", outputs[3] + self.read("work/lightgcn/model/items.tsv"))
