"""Debian's Chromium, driven by Playwright, for the tests of pages; skips with one line without either."""
import atexit
import glob
import os
import re
import shutil
import sys
import unittest

from command_line import ROOT

# tools/setup --web installs Playwright into .venv; the tests run on the python3 that made it.
sys.path.extend(glob.glob(os.path.join(
    ROOT, ".venv", "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")))
PALETTE = re.findall(r"--c\d: (#[0-9a-f]{3,6})", open(
    os.path.join(ROOT, "web", "report", "src", "page.css"), encoding="utf-8").read())


# Records what the page would download: the browser's own downloads are slow and come in any order.
DOWNLOADS = """
  window.saved = [];
  const blobs = new Map(), make = URL.createObjectURL.bind(URL), click = HTMLAnchorElement.prototype.click;
  URL.createObjectURL = blob => { const url = make(blob); blobs.set(url, blob); return url; };
  HTMLAnchorElement.prototype.click = function () {
    if (!this.download || !blobs.has(this.href)) return click.call(this);
    blobs.get(this.href).text().then(text => window.saved.push({name: this.download, text}));
  };
"""


class Browser:
    """One Chromium for all tests of a process, made when first asked for: two at once cannot be."""

    one = None

    @classmethod
    def shared(cls):
        if cls.one is None:
            cls.one = cls()
            atexit.register(cls.one.close)
        return cls.one

    def __init__(self):
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if chromium is None:
            raise unittest.SkipTest("no chromium; tools/setup --web installs it")
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            raise unittest.SkipTest("no Playwright; tools/setup --web installs it") from None
        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(executable_path=chromium)

    def close(self):
        self.chromium.close()
        self.playwright.stop()

    def open(self, test, place, width=1280, dark=False):
        """A page from disk; the test fails on any word on its console and any request to elsewhere."""
        context = self.chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        context.add_init_script(DOWNLOADS)
        test.addCleanup(context.close)
        page = context.new_page()
        page.set_default_timeout(120000)  # a busy machine is no failure
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto("file://" + place)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page


def download(page, button):
    """(name, text) of the file that a button gives."""
    page.evaluate("() => { window.saved = []; }")
    button.click()
    for _ in range(600):  # no wait_for_function: the page's policy forbids eval
        if page.evaluate("window.saved.length"):
            break
        page.wait_for_timeout(50)
    saved = page.evaluate("window.saved[0]")
    return saved["name"], saved["text"]


def picture(page, name):
    """Keeps the whole page as DIR/name.png where TESSERA_SCREENSHOTS = DIR asks for it, for a person to see."""
    folder = os.environ.get("TESSERA_SCREENSHOTS")
    if folder:
        os.makedirs(folder, exist_ok=True)
        page.screenshot(path=os.path.join(folder, name + ".png"), full_page=True)


def quiet(test, page):
    test.assertEqual(page.said, [])
    outside = [url for url in page.asked if not re.match(r"data:|blob:|file:", url)]
    test.assertEqual(outside, [])
    test.assertEqual(len([url for url in page.asked if url.startswith("file:")]), 1)


def marks(figure):
    """How many shapes of a chart are painted in a colour of the palette."""
    return figure.evaluate("""(figure, palette) => {
      const of = (node, name) => (node.getAttribute(name) || '').toLowerCase();
      return [...figure.querySelectorAll('svg path, svg rect, svg circle, svg line, svg polyline')]
        .filter(n => palette.includes(of(n, 'fill')) || palette.includes(of(n, 'stroke'))).length;
    }""", PALETTE)


def charts_have_marks(test, page):
    """Every chart of the page; returns their kinds."""
    kinds = []
    for figure in page.query_selector_all("figure[data-kind]"):
        kind = figure.get_attribute("data-kind")
        if kind != "table":
            kinds.append(kind)
            test.assertGreater(marks(figure), 0, f"{kind}: {figure.query_selector('h3').inner_text()}")
    return kinds


def no_horizontal_scroll(test, page):
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    test.assertLessEqual(wide, 0, "the page is wider than its window")
