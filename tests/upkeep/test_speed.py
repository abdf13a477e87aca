"""The tables of the page on speed."""

import json
from pathlib import Path

import pytest

import speed


def row(mechanism, backend, median, **case):
    defaults = {"level": "layer", "shape": "iwslt", "kind": "encoder", "mode": "training", "dropout": 0.0}
    spread = {"lower": median - 0.01, "median": median, "upper": median + 0.01}
    return {**defaults, **case, "mechanism": mechanism, "backend": backend, **spread}


REPOSITORY = Path(__file__).parents[2]


def test_the_committed_page_holds_what_was_measured():
    page = (REPOSITORY / "docs/speed.md").read_text(encoding="utf-8")
    assert speed.rebuilt(page, REPOSITORY) == page
    for file in (REPOSITORY / "examples/benchmark").glob("*.json"):
        assert page.count(f" examples/benchmark/{file.name} -->") == 1


@pytest.mark.slow
def test_a_table_is_made_from_its_file(tmp_path):
    measured = {
        "ratios": [row("softmax", "auto", 0.8), row("dagpam", "auto", 1.0), row("dagpam", "auto", 2.0, dropout=0.1)]
    }
    (tmp_path / "made.json").write_text(json.dumps(measured))
    page = "before\n<!-- benchmark: ratios made.json -->\nold\n<!-- /benchmark -->\nafter"
    made = speed.rebuilt(page, tmp_path)
    assert "old" not in made and made.startswith("before\n") and made.endswith("\nafter")
    lines = [line for line in made.splitlines() if "IWSLT" in line]
    assert len(lines) == 2
    assert "| 1.25 | 0.800 (0.790–0.810) | 1.000 (0.990–1.010) |" in lines[0]
    assert "attention dropout 0.1 | not run | not run | 2.000 (1.990–2.010) |" in lines[1]


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
