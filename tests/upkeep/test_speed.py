"""The tables of the page on speed."""

from pathlib import Path

import pytest

import speed

REPOSITORY = Path(__file__).parents[2]


def test_the_committed_page_holds_what_was_measured():
    page = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    assert speed.rebuilt(page, REPOSITORY) == page
    for file in (REPOSITORY / "examples/benchmark").glob("*.json"):
        assert page.count(f" examples/benchmark/{file.name} -->") == 1


@pytest.mark.slow
def test_memory_that_was_not_measured_says_so():
    rows = [
        {"what": "stock", "dropout": 0.0, "lengths": [512, 1024], "mebibytes": [3.4, 8.2], "exponent": 1.99},
        {"what": "stock", "dropout": 0.1, "lengths": [512], "mebibytes": [14.2], "exponent": 1.95},
    ]
    text = speed.memory({"memory": rows})
    assert "| stock | 3 | 8 | T^1.99 |" in text and "| stock, attention dropout 0.1 | 14 | not run | T^1.95 |" in text


@pytest.mark.slow
def test_an_unknown_table_is_an_error(tmp_path):
    (tmp_path / "made.json").write_text("{}")
    with pytest.raises(KeyError):
        speed.rebuilt("<!-- benchmark: other made.json -->\n<!-- /benchmark -->", tmp_path)
