"""The page of a report in a real browser: charts, tables, keyboard, and text that stays text."""
import csv
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from browser import (PALETTE, Browser, charts_have_marks, download, marks, no_horizontal_scroll,
                     picture, quiet)
from command_line import ROOT

WEB = os.path.join(ROOT, "web", "report")
TEMPLATE = os.path.join(WEB, "report.html")
SCRIPT = "<script>alert('title')</script>"
HOSTILE = [SCRIPT, "</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "<!--", "{a|b}",
           "W" * 300, "\u202eright to left", "=HYPERLINK(\"http://example.org\")", "__proto__", "&lt;b&gt;"]
PNG = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAA"
       "SUVORK5CYII=")
SIZES = [(1280, False), (1280, True), (360, False), (360, True)]


def report(text=lambda i: f"name {i}"):
    """Data with every kind of block; `text` names whatever a user may name."""
    curves = [{"name": text(i), "points": [[e, (i + 1) / (e + 1)] for e in range(12)]} for i in range(9)]
    series = [{"name": text(k), "values": [v * (k + 1) for v in (1, 4, 9, 3)]} for k in range(2)]
    cards = [{"id": text(i), "title": text(i + 1), "picture": f"p{i % 3}",
              **({"mark": "held out"} if i == 1 else {})} for i in range(8)]
    blocks = [
        {"kind": "table", "title": text(0), "columns": ["what", "value"],
         "rows": [[text(i), i / 7] for i in range(10)] + [["gap", None]]},
        {"kind": "lines", "title": "curves", "x": "epoch", "y": "loss", "series": curves},
        {"kind": "lines", "title": "one point", "x": "epoch", "series": [{"name": text(0), "points": [[0, 1]]}]},
        {"kind": "lines", "title": "two runs", "x": "epoch", "range": [-0.2, 1], "series": [
            {"name": "plain", "points": [[-1, 1], [0, .4]], "colour": 0, "dashed": True},
            {"name": "kept", "points": [[-1, 1], [0, .9]], "colour": 0, "dashed": False}]},
        {"kind": "scatter", "title": "points", "x": "axis 1", "y": "axis 2", "joins": [[0, 0, 1, 1]],
         "series": [{"name": text(k), "points": [[i / 5, (i * 7 % 5) - k, text(i)] for i in range(20)]}
                    for k in range(4)]},
        {"kind": "bars", "title": "bars", "y": "recall@20", "labels": [text(i) for i in range(6)],
         "values": [.1, .2, 0, .4, .3, .2]},
        {"kind": "bars", "title": "shares", "stacked": True, "labels": ["hits", "lists"], "y": "share",
         "series": [{"name": text(k), "values": [.25, .25]} for k in range(4)]},
        {"kind": "histogram", "title": "scores", "x": "score", "y": "items", "low": .4, "high": .8,
         "series": series, "mark": {"name": "eta", "value": .5}},
        {"kind": "intervals", "title": "differences", "x": "difference", "zero": True, "rows": [
            {"label": text(i), "group": group, "value": .1 * i - .1, "low": .1 * i - .2, "high": .1 * i}
            for group, n in (("recall@20", 3), ("ndcg@20", 2)) for i in range(n)]},
        {"kind": "intervals", "title": "cosines", "names": ["matched", "unmatched"], "rows": [
            {"label": "now", "value": .5, "low": .2, "high": .7, "other": .1},
            {"label": "one seed", "value": .3, "low": None, "high": None}]},
        {"kind": "cards", "title": text(3), "groups": [{"label": text(2), "items": cards},
                                                       {"label": "none", "items": []}]},
    ]
    chosen = [{"kind": "cards", "title": f"of {text(k)}", "groups": [
        {"label": "item", "items": [{"id": f"item {k}", "title": text(k)}]},
        {"label": "near", "items": [{"id": f"neighbour {k}"}]}]} for k in range(3)]
    return {"title": text(0), "subtitle": text(1), "tessera": "1.0.0", "created": "2026-01-01T00:00:00Z",
            "pictures": {"p0": PNG, "p1": "http://example.org/track.png", "p2": "javascript:alert(3)"},
            "sections": [{"title": text(4), "note": text(5), "blocks": blocks},
                         {"title": "neighbours", "choose": "Item", "blocks": chosen},
                         {"title": "nothing", "blocks": []}]}


def fill(data):
    """As tessera/study/report.cpp does: no '<' is left in the data."""
    with open(TEMPLATE, encoding="utf-8") as file:
        page = file.read()
    assert page.count("/*DATA*/null") == 1
    return page.replace("/*DATA*/null", json.dumps(data).replace("<", "\\u003c"))


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser.shared()

    def open(self, data, **how):
        folder = tempfile.mkdtemp(prefix="tessera-page-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        place = os.path.join(folder, "report.html")
        with open(place, "w", encoding="utf-8") as file:
            file.write(fill(data))
        return self.browser.open(self, place, **how)

    def test_every_chart_has_marks_at_every_width(self):
        for width, dark in SIZES:
            with self.subTest(width=width, dark=dark):
                page = self.open(report(), width=width, dark=dark)
                kinds = charts_have_marks(self, page)
                self.assertEqual(sorted(set(kinds)), ["bars", "histogram", "intervals", "lines", "scatter"])
                self.assertEqual(len(kinds), 9)
                self.assertGreaterEqual(marks(page.query_selector("figure[data-kind=scatter]")), 80)
                no_horizontal_scroll(self, page)
                picture(page, f"all-{width}-{'dark' if dark else 'light'}")
                quiet(self, page)

    def test_hostile_text_stays_text(self):
        page = self.open(report(lambda i: HOSTILE[i % len(HOSTILE)]), width=360)
        page.on("dialog", lambda dialog: self.fail(f"a script ran: {dialog.message}"))
        self.assertEqual(page.text_content("h1"), SCRIPT)
        self.assertEqual(page.evaluate("document.scripts.length"), 2)
        self.assertEqual(page.title(), SCRIPT + " – Tessera")
        self.assertEqual(page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/png'))"), True)
        self.assertEqual(page.query_selector_all("main b, main script, main iframe"), [])
        for button in page.query_selector_all("button[aria-expanded]"):
            button.click()
        for plot in page.query_selector_all(".plot"):  # and what a pointer brings up
            plot.scroll_into_view_if_needed()
            box = plot.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
        self.assertIn(HOSTILE[1], page.text_content("main"))
        self.assertEqual(page.query_selector_all("main b:not(.tip b), main script, main iframe, img[onerror]"), [])
        no_horizontal_scroll(self, page)
        quiet(self, page)

    def test_policy_refuses_markup_scripts_and_requests(self):
        page = self.open(report())
        for what in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = '1'",
                     "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
                     "return fetch('http://127.0.0.1:9/')"):
            with self.subTest(what=what), self.assertRaises(Exception):
                page.evaluate(f"() => {{ {what} }}")
        self.assertTrue(page.said, "the console says what was refused")

    def test_table_and_csv(self):
        data = report(lambda i: HOSTILE[i % len(HOSTILE)] if i else "plain, \"quoted\"")
        page = self.open(data)
        figure = page.query_selector("figure[data-kind=scatter]")
        toggle = figure.query_selector("button[aria-expanded]")
        self.assertIsNone(figure.query_selector("table"))
        toggle.click()
        self.assertEqual(toggle.get_attribute("aria-expanded"), "true")
        self.assertEqual(len(figure.query_selector_all("tbody tr")), 80)
        toggle.click()
        self.assertFalse(figure.query_selector("table").is_visible())
        n = 0
        for figure in page.query_selector_all("figure[data-kind]"):
            name, text = download(page, figure.query_selector("text=CSV"))
            rows = list(csv.reader(io.StringIO(text)))
            self.assertGreater(len(rows), 1)
            self.assertEqual({len(row) for row in rows}, {len(rows[0])})
            self.assertTrue(name.endswith(".csv"))
            for cell in (c for row in rows for c in row):
                self.assertNotRegex(cell, r"^[=+@]|^-[^0-9.]", "a spreadsheet would run it")
            n += 1
        self.assertEqual(n, 10)
        block = page.query_selector("figure[data-kind=table]")
        _, text = download(page, block.query_selector("text=CSV"))
        self.assertEqual(next(r for r in csv.reader(io.StringIO(text)) if r[0].startswith("plain")),
                         ["plain, \"quoted\"", "0"])
        quiet(self, page)

    def test_tables_sort(self):
        page = self.open(report())
        head = page.query_selector("figure[data-kind=table] th:nth-child(2)")
        first = lambda: page.text_content("figure[data-kind=table] tbody td:nth-child(2)")  # noqa: E731
        head.query_selector("button").click()
        self.assertEqual((head.get_attribute("aria-sort"), first()), ("ascending", "0"))
        head.query_selector("button").click()
        self.assertEqual(head.get_attribute("aria-sort"), "descending")
        self.assertIn("sorted by value", page.text_content("#status"))

    def test_keyboard_reaches_everything(self):
        page = self.open(report(), width=360)
        wanted = page.evaluate("""() => {
          const all = [...document.querySelectorAll('a, button, select, summary, .scroll')]
            .filter(n => n.checkVisibility());
          all.forEach((n, i) => n.dataset.probe = i);
          return all.length;
        }""")
        reached = set()
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            probe, outline = page.evaluate("""() => {
              const n = document.activeElement, s = getComputedStyle(n);
              return [n.dataset.probe, s.outlineStyle + ' ' + s.outlineWidth];
            }""")
            if probe is not None:
                reached.add(probe)
                self.assertRegex(outline, r"^(solid|auto) [1-9]", "focus is seen")
        self.assertEqual(len(reached), wanted)
        page.focus("figure[data-kind=lines] button[aria-expanded]")
        page.keyboard.press("Enter")
        self.assertTrue(page.query_selector("figure[data-kind=lines] table").is_visible())
        page.focus("#theme")
        page.keyboard.press("Space")
        self.assertEqual(page.evaluate("document.documentElement.dataset.theme"), "dark")
        quiet(self, page)

    def test_screen_reader_finds_names_and_landmarks(self):
        page = self.open(report())
        for landmark in ("header", "nav", "main", "footer"):
            self.assertEqual(len(page.query_selector_all(landmark)), 1)
        self.assertEqual(page.get_attribute("html", "lang"), "en")
        nameless = page.evaluate("""() => {
          const named = n => (n.getAttribute('aria-label') || n.textContent || '').trim() ||
            (n.getAttribute('aria-labelledby') && document.getElementById(n.getAttribute('aria-labelledby')));
          return [...document.querySelectorAll('button, a, figure, article, section, nav, .scroll, [role=img], ul.cards')]
            .filter(n => !named(n)).map(n => n.outerHTML.slice(0, 80));
        }""")
        self.assertEqual(nameless, [])
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
        self.assertTrue(all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels)
        self.assertEqual(page.evaluate("document.querySelectorAll('th:not([scope])').length"), 0)

    def test_series_and_metrics_switch(self):
        page = self.open(report())
        figure = page.query_selector("figure[data-kind=lines]")
        first = figure.query_selector(".legend button")
        before = marks(figure)
        first.click()
        self.assertEqual(first.get_attribute("aria-pressed"), "false")
        self.assertLess(marks(figure), before)
        first.click()
        self.assertEqual(marks(figure), before)
        figure = page.query_selector("figure[data-kind=intervals]")
        before = marks(figure)
        figure.query_selector("select").select_option("ndcg@20")
        self.assertLess(marks(figure), before)
        quiet(self, page)

    def test_one_block_is_chosen_of_many(self):
        page = self.open(report())
        section = page.query_selector("section:has(select[aria-label=Item])")
        options = section.query_selector_all("option")
        self.assertEqual([option.text_content() for option in options], ["name 0", "name 1", "name 2"])
        for k in (0, 2, 1):
            section.query_selector("select").select_option(f"name {k}")
            articles = section.query_selector_all("article")
            self.assertEqual(len(articles), 1)
            self.assertIn(f"neighbour {k}", articles[0].text_content())
        self.assertEqual(page.text_content("#status"), "of name 1 shown")
        quiet(self, page)

    def test_colours_can_be_told_from_their_ground(self):
        with open(os.path.join(WEB, "src", "page.css"), encoding="utf-8") as file:
            style = file.read()

        def luminance(colour):
            digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
            parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
            linear = [c / 12.92 if c <= .03928 else ((c + .055) / 1.055) ** 2.4 for c in parts]
            return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]

        def contrast(a, b):
            low, high = sorted((luminance(a), luminance(b)))
            return (high + .05) / (low + .05)

        for rule in re.findall(r":root[^{]*\{([^}]*)\}", style):
            colours = dict(re.findall(r"--(\w+): (#\w+)", rule))
            for name, wanted in [("text", 7), ("soft", 4.5), ("link", 4.5), ("mark", 4.5), ("focus", 3),
                                 ("edge", 3)] + [(f"c{i}", 3) for i in range(7)]:
                for ground in ("back", "card"):
                    self.assertGreaterEqual(contrast(colours[name], colours[ground]), wanted,
                                            f"{name} on {ground}: {colours[name]} on {colours[ground]}")
        self.assertEqual(len(PALETTE), 14)

    def test_a_page_nobody_filled_says_so(self):
        page = self.browser.open(self, TEMPLATE)
        self.assertEqual(page.text_content("h1"), "A report without data")
        quiet(self, page)


class Built(unittest.TestCase):
    """The committed page is what its sources give."""

    def test_licences_and_policy_are_in_the_page(self):
        with open(TEMPLATE, encoding="utf-8") as file:
            page = file.read()
        for words in ("Apache License", "Copyright 2017", "zrender", "default-src 'none'"):
            self.assertIn(words, page)
        self.assertNotRegex(page, r"<(link|iframe|object|embed)\b|<script[^>]* src|@import")
        self.assertNotRegex(page, r"@[A-Za-z0-9/_.+-]+@", "CMake would replace it")
        self.assertLess(len(page), 700_000)

    def test_built_again_it_is_the_same_bytes(self):
        node = shutil.which("node")
        version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout if node else ""
        found = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
        if found < (20, 19):
            self.skipTest(f"no node of version 20.19 or newer (found {version.strip() or 'none'})")
        if not os.path.isdir(os.path.join(WEB, "node_modules", "vite")):
            self.skipTest("no npm packages in web/report; tools/setup --web installs them")
        with tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, "report.html")
            done = subprocess.run([node, "build.mjs", place], cwd=WEB, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(place, "rb") as built, open(TEMPLATE, "rb") as stored:
                self.assertEqual(built.read(), stored.read(),
                                 "web/report/report.html is not what its sources give: "
                                 "cd web/report && npm run build, then commit it")
        done = subprocess.run(["node_modules/.bin/tsc"], cwd=WEB, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)
