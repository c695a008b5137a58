"""The report page: all data inside, nothing asked from outside, untrusted text stays text."""
import base64
import json
import os
import re
import unittest

from browser import Browser, charts_have_marks, no_horizontal_scroll, picture, quiet
from command_line import CommandLine
from features_test import LARGE, make_shop
from page_test import PNG


class Report(CommandLine):
    def setUp(self):
        super().setUp()
        self.n_items = make_shop(self)

    def data_of(self, place):
        page = self.read(place)
        found = re.search(r'<script type="application/json" id="data">(.*)</script>', page)
        self.assertNotIn("<", found.group(1), "data could end its script")
        self.assertIn("default-src 'none'", page)
        return json.loads(found.group(1))

    def trained(self, models=("PAMD", "VBPR")):
        lines = [json.dumps({"item_id": f"i{i}", "title": f"<script>alert({i})</script>"})
                 for i in range(self.n_items)]
        self.write("items.jsonl", "\n".join(lines) + "\n")
        self.succeeds("import", "raw/events.tsv", "--items", "items.jsonl", "--feature",
                      "image=raw/image_feat.npy", "--feature", "text=raw/text_feat.npy", "-o", "titled",
                      "-q")
        for model in models:
            more = {"PAMD": ("--pre_epochs", "20"),
                    "R2MR": ("--preset", "tiny", "--eta", "0.5", "--rewrite_every", "1", "--first_epochs",
                             "40", "--later_epochs", "5")}.get(model, ())
            self.succeeds("train", "-m", model, "-d", "titled", "--epochs", "4" if model == "R2MR" else "3",
                          "-q", "-j", "1", "-o", f"runs/{model}", *more)

    def test_pages(self):
        self.trained()
        self.assertEqual(self.succeeds("report", "runs/PAMD", "-o", "p.html", "-q").stdout, "p.html\n")
        data = self.data_of("p.html")
        titles = [part["title"] for part in data["sections"]]
        for wanted in ("Results", "Curves", "Recommendations of sample users",
                       "Attention: common against specific parts", "Do the common parts agree?",
                       "The parts in two dimensions", "Neighbours by part",
                       "How separate are the parts?", "Audit and settings"):
            self.assertIn(wanted, titles)
        cards = data["sections"][titles.index("Recommendations of sample users")]["blocks"]
        self.assertRegex(cards[0]["groups"][1]["items"][0]["title"], r"^<script>alert\(\d+\)</script>$")
        attention = data["sections"][titles.index("Attention: common against specific parts")]["blocks"]
        self.assertEqual([block["kind"] for block in attention], ["table", "histogram", "bars", "table"])
        table, shares, by_part, by_modality = attention
        self.assertEqual(table["columns"], ["pairs of", "n", "common", "uniform", "common > specific"])
        self.assertEqual({row[3] for row in table["rows"]}, {0.5})
        self.assertEqual(shares["mark"]["value"], 0.5)
        self.assertEqual([row[:2] for row in by_modality["rows"][-2:]],
                         [["candidates", "image"], ["candidates", "text"]])
        for image, text in zip(by_modality["rows"][::2], by_modality["rows"][1::2]):
            self.assertAlmostEqual(image[2] + text[2], 1, delta=1e-5)
            self.assertEqual(image[3], 0.5)
        sets = ["hits", "lists", "candidates"]
        self.assertEqual([row[0] for row in table["rows"]][-2:], sets[1:])
        self.assertEqual([one["name"] for one in shares["series"]], [row[0] for row in table["rows"]])
        self.assertEqual(by_part["labels"], [row[0] for row in table["rows"]])
        for one in shares["series"]:
            self.assertAlmostEqual(sum(one["values"]), 1)
        # All pairs of a user and an item without a train row.
        about = json.loads(self.read("titled/dataset.json"))
        self.assertEqual(table["rows"][-1][1], about["n_users"] * about["n_items"] - about["n_train"])
        agree = data["sections"][titles.index("Do the common parts agree?")]["blocks"][0]["rows"]
        self.assertEqual([row[0] for row in agree], ["before pretraining", "after pretraining", "now"])
        self.neighbours_have_the_modality(data["sections"][titles.index("Neighbours by part")])

        self.succeeds("report", "runs/VBPR", "-o", "v.html", "-q")
        self.assertNotIn("Neighbours by part",
                         [part["title"] for part in self.data_of("v.html")["sections"]])
        self.succeeds("report", "runs/VBPR", "runs/PAMD", "-o", "both.html", "-q")
        runs = self.data_of("both.html")["sections"][-1]["blocks"][-1]
        self.assertEqual([row[0] for row in runs["rows"]], ["PAMD", "VBPR"])
        self.fails(3, r"titled is no run folder", "report", "titled", "-q")
        self.in_a_browser("p.html")

    def neighbours_have_the_modality(self, section):
        """make_shop leaves every 7th item without a picture, every 11th without a text."""
        self.assertEqual(section["choose"], "Item")
        self.assertEqual(len(section["blocks"]), 24)
        gap = {"by image_specific": 7, "by text_specific": 11}
        for block in section["blocks"]:
            self.assertEqual([group["label"] for group in block["groups"]],
                             ["item", "by common", *gap])
            item = block["groups"][0]["items"][0]["id"]
            for group in block["groups"][1:]:
                numbers = [int(card["id"][1:]) for card in group["items"]]
                self.assertEqual(len(set(numbers)), 5)
                self.assertNotIn(item, [card["id"] for card in group["items"]])
                if group["label"] in gap:
                    self.assertTrue(all(n % gap[group["label"]] for n in numbers), numbers)

    def test_attention_beside_uniform_attention_to_what_is_there(self):
        self.trained(())
        self.succeeds("train", "-m", "PAMD", "-d", "titled", "--epochs", "1", "--pre_epochs", "2", "-q", "-j",
                      "1", "--without_parts", "text_common", "-o", "three")
        self.succeeds("report", "three", "-o", "three.html", "-q")
        sections = {part["title"]: part["blocks"] for part in self.data_of("three.html")["sections"]}
        table, shares, _, by_modality = sections["Attention: common against specific parts"]
        self.assertAlmostEqual(table["rows"][-1][3], 1 / 3)
        self.assertAlmostEqual(shares["mark"]["value"], 1 / 3)
        self.assertAlmostEqual(by_modality["rows"][-2][3], 2 / 3)
        self.succeeds("train", "-m", "PAMD", "-d", "titled", "--epochs", "1", "--pre_epochs", "2", "-q", "-j",
                      "1", "--only_parts", "none", "-o", "ids")
        self.succeeds("report", "ids", "-o", "ids.html", "-q")
        titles = [part["title"] for part in self.data_of("ids.html")["sections"]]
        self.assertNotIn("Attention: common against specific parts", titles)

    def test_views_of_models(self):
        self.n_items = make_shop(self, **LARGE)
        self.trained(("R2MR", "KDSR"))
        self.write("titled/one.png", base64.b64decode(PNG.split(",")[1]))
        media = [f"i{i}\timage\tone.png\t{'0' * 64}\n" for i in range(self.n_items)]
        self.write("titled/media.tsv", "item_id\tmodality\tpath\tsha256\n" + "".join(media))
        self.succeeds("report", "runs/R2MR", "-o", "r.html", "-q")
        page = self.data_of("r.html")
        self.assertEqual(set(page["pictures"].values()), {PNG})
        sections = {part["title"]: part["blocks"] for part in page["sections"]}
        notes = {part["title"]: part.get("note") for part in page["sections"]}
        self.assertIn("niche items score low without being broken", notes["Quality of item features"])
        sections_of_r2mr = list(sections)
        kinds = [block["kind"] for block in sections["Quality of item features"]]
        self.assertEqual(kinds[:4], ["bars", "table", "histogram", "intervals"])
        histogram = sections["Quality of item features"][2]
        self.assertEqual([one["name"] for one in histogram["series"]], ["scores", "rows permuted"])
        self.assertEqual(histogram["mark"]["name"], "eta")
        bars, numbers = sections["Quality of item features"][:2]
        for label, n in zip(bars["labels"], bars["values"]):
            share = re.fullmatch(r"(?:high|disparity|low|unscored) \((\d+\.\d) %\)", label)
            self.assertAlmostEqual(float(share.group(1)), 100 * n / sum(bars["values"]), delta=.051)
        at = {name: place for place, name in enumerate(numbers["columns"])}
        for row in numbers["rows"]:
            self.assertAlmostEqual(row[at["share missing"]], row[at["missing"]] / sum(bars["values"]))
        rounds = sections["Quality of item features"][-1]
        self.assertRegex(rounds["title"], "^Rounds of review and rewriting")
        for name in ("accepted.image", "refused.image", "accepted.text", "refused.text", "kept"):
            self.assertIn(name, rounds["columns"])
        self.assertEqual(len(rounds["rows"]), 4)
        cards = sections["Rewritten items"]
        self.assertGreater(len(cards), 0, "nothing was rewritten")
        for block in cards:
            self.assertEqual([group["label"] for group in block["groups"]],
                             ["item", "nearest before", "nearest after"])
            self.assertEqual(len(block["groups"][2]["items"]), 5)
            filled = "filled in" in block["note"]
            self.assertEqual(len(block["groups"][1]["items"]), 0 if filled else 5)
        worst = sections["Lowest scores that were not repaired"]
        self.assertEqual([block["kind"] for block in worst], ["cards", "table"] * 2)
        for block in worst[1::2]:
            self.assertGreater(len(block["rows"]), 0)
            self.assertNotIn(None, [row[4] for row in block["rows"]])
        self.succeeds("report", "runs/KDSR", "-o", "k.html", "-q")
        sections = {part["title"]: part["blocks"] for part in self.data_of("k.html")["sections"]}
        kept, gate = sections["Modality forgetting"]
        self.assertIn("image e", [one["name"] for one in kept["series"]])
        self.assertEqual(kept["series"][0]["points"][0][0], -1)
        self.assertEqual([one["name"] for one in gate["series"]], ["id", "image", "text"])
        for place in ("r.html", "k.html"):
            self.in_a_browser(place)
        # A table of pictures that cannot be read costs the pictures alone.
        self.write("titled/media.tsv", "wrong\n")
        self.assertIn("without pictures", self.succeeds("report", "runs/R2MR", "-o", "n.html").stderr)
        page = self.data_of("n.html")
        self.assertEqual(page["pictures"], {})
        self.assertEqual([part["title"] for part in page["sections"]], list(sections_of_r2mr))

    def in_a_browser(self, place):
        """Draws every chart without a word on the console or a request, where there is a Chromium."""
        try:
            browser = Browser.shared()
        except unittest.SkipTest:  # page_test.py says so
            return
        page = browser.open(self, self.path(place), width=360)
        self.assertGreater(len(charts_have_marks(self, page)), 3)
        self.assertIn("<script>alert(", page.text_content("main"))
        self.assertEqual(page.evaluate("document.scripts.length"), 2)
        no_horizontal_scroll(self, page)
        picture(page, place.replace(".html", "-360"))
        quiet(self, page)
        if os.environ.get("TESSERA_SCREENSHOTS"):
            picture(browser.open(self, self.path(place)), place.replace(".html", "-1280"))

    def test_sampled_and_masked(self):
        self.trained()
        done = self.succeeds("evaluate", "runs/PAMD", "--sampled", "30", "-q", "--eval-mask", "common")
        self.assertIn("sampled-30 recall@10", done.stdout)
        self.assertIn("left out when ranking only", done.stdout)
        out = json.loads(self.succeeds("evaluate", "runs/PAMD", "--sampled", "30", "--json", "-q").stdout)
        self.assertEqual(out["sampled"]["name"], "sampled-30")
        self.assertNotIn("sampled", json.dumps(out["test"]))
        # The candidates are the same for every run, and for its bundle, until another seed is asked for.
        ask = ("--sampled", "30", "--json", "-q")
        bundle = json.loads(self.succeeds("evaluate", "runs/PAMD/model", "-d", "titled", *ask).stdout)
        self.assertEqual(bundle["sampled"], out["sampled"])
        other = json.loads(self.succeeds("evaluate", "runs/PAMD", *ask, "--sampled-seed", "5").stdout)
        self.assertEqual(other["sampled"]["seed"], 5)
        self.fails(2, r"--sampled-seed: must be at least 0", "evaluate", "runs/PAMD", *ask,
                   "--sampled-seed", "-1")
        self.assertNotEqual(other["sampled"]["metrics"], out["sampled"]["metrics"])
        self.fails(2, r"no part 'image_comon' \(did you mean 'image_common'", "evaluate", "runs/PAMD",
                   "--eval-mask", "image_comon", "-q")
        self.fails(2, r"has no parts", "evaluate", "runs/VBPR", "--eval-mask", "common", "-q")
        # As a setting of the training: every result says it, once.
        note = "parts are left out when ranking only, the model was trained with them"
        own = "eval_mask = common: " + note
        self.succeeds("train", "-m", "PAMD", "-d", "titled", "--epochs", "1", "--pre_epochs", "2", "-q", "-j",
                      "1", "--eval_mask", "common", "-o", "masked")
        self.assertEqual(self.read_json("masked", "results.json")["audit"]["notes"].count(own), 1)
        self.assertIn(own, self.read("masked", "model", "MODEL_CARD.md"))
        out = json.loads(self.succeeds("evaluate", "masked", "--json", "-q").stdout)
        self.assertEqual(out["audit"]["notes"].count(own), 1)
        # The flag takes the place of the setting.
        out = json.loads(self.succeeds("evaluate", "masked", "--json", "-q", "--eval-mask", "text").stdout)
        self.assertEqual([n for n in out["audit"]["notes"] if note in n], ["eval_mask = text: " + note])
        self.succeeds("compare", "-m", "PAMD,PAMD[eval_mask=common]", "-d", "titled", "--epochs", "1",
                      "--pre_epochs", "2", "--seeds", "1", "-q", "-j", "1", "-o", "both")
        self.assertIn(own, self.read("both", "table.md"))
