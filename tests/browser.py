"""Pages as a reader sees them, in headless Chromium, and what their HTML holds."""

import shutil
from collections import Counter
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

WIDTHS = (1280, 390)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
SEEN = """() => ({
    "width": document.scrollingElement.scrollWidth,
    "room": window.innerWidth,
    "pictures": Array.from(document.querySelectorAll("img, svg"), picture => ({
        "alt": picture.getAttribute("alt") ?? picture.getAttribute("aria-label") ?? "",
        "drawn": picture.complete ? picture.naturalWidth > 0 : picture.childElementCount > 1})),
    "ids": Array.from(document.querySelectorAll("[id]"), element => element.id),
    "tables": Array.from(document.querySelectorAll("table"), table =>
        Array.from(table.rows, row => Array.from(row.cells, cell => cell.textContent))),
})"""


@contextmanager
def browser():
    """Headless Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH: on Debian, apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield started
        started.close()


def visit(page):
    """Returns what a reader sees of a page at each width."""
    seen = {}
    with browser() as started:
        for width in WIDTHS:
            window = started.new_page(viewport={"width": width, "height": 800})
            errors = []
            window.on("console", lambda message, errors=errors: errors.append(message.text))
            window.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            window.on("requestfailed", lambda request, errors=errors: errors.append(request.url[:200]))
            window.goto(page.resolve().as_uri(), wait_until="load")
            seen[width] = {"errors": errors, **window.evaluate(SEEN)}
            window.close()
    return seen


def check(seen):
    """Fails unless the page is free of errors, fits every width, and names each picture."""
    for width, found in seen.items():
        assert found["errors"] == []
        assert found["width"] <= found["room"] == width
        assert len(set(found["ids"])) == len(found["ids"])
        assert found["pictures"]
        for picture in found["pictures"]:
            assert picture["alt"].strip()
            assert picture["drawn"], picture["alt"]


class Page(HTMLParser):
    """A page's tags, descriptions of pictures, links, ids, cells by row, and cells by their place in the JSON."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.links, self.ids, self.cells, self.numbers = Counter(), [], [], set(), [[]], {}
        self._place = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags[tag] += 1
        self.ids.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "svg":
            self.pictures.append(attributes["aria-label"])
        if tag == "tr":
            self.cells.append([])
        self._place = attributes.get("data-json", "") if tag == "td" else None

    def handle_data(self, data):
        if self._place is not None:
            self.cells[-1].append(data)
        if self._place:
            self.numbers[self._place] = data

    def handle_endtag(self, tag):
        self._place = None
