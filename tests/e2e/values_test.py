"""Values known to the digit, through the importer and the registered models (specs: protocol section
9 and baselines section 2, computed there by independent programs)."""
import os

from command_line import CommandLine, real_data


class Values(CommandLine):
    def recall(self, data, model, *settings):
        self.succeeds("train", "-d", data, "-m", model, "-o", "run", *settings)
        return self.read_json("run", "results.json")["test"]["recall@20"]

    def test_ml100k(self):
        file = os.path.join(real_data("ml-100k"), "u.data")
        self.succeeds("import", file, "-o", "ml100k", "--split", "leave-one-out")
        self.assertAlmostEqual(self.recall("ml100k", "Popularity"), 0.12619, delta=5e-6)
        for wanted, settings in ((0.1824, ["--shrink", "0"]), (0.1782, []),
                                 (0.1930, ["--k", "20", "--shrink", "0"])):
            self.assertAlmostEqual(self.recall("ml100k", "ItemKNN", *settings), wanted, delta=5e-4)

    def test_baby(self):
        file = os.path.join(real_data("amazon-baby"), "interactions.tsv")
        self.succeeds("import", file, "-o", "baby")
        self.assertAlmostEqual(self.recall("baby", "Popularity", "--protocol", "mmrec"), 0.04626,
                               delta=5e-6)
        for wanted, settings in ((0.0496, []), (0.0314, ["--shrink", "0"])):
            self.assertAlmostEqual(self.recall("baby", "ItemKNN", *settings), wanted, delta=5e-4)
