"""The tables of the page on speed."""

from pathlib import Path

import speed

REPOSITORY = Path(__file__).parents[2]


def test_the_committed_page_holds_what_was_measured():
    page = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    assert speed.rebuilt(page, REPOSITORY) == page
    for file in (REPOSITORY / "examples/benchmark").glob("*.json"):
        assert page.count(f" examples/benchmark/{file.name} -->") == 1
