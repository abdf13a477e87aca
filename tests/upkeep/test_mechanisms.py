"""The page of the mechanisms and its drawings."""

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from browser import browser

import card_pages
import mechanisms
from fairseq_gpam import options
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow  # it measures the costs of every mechanism
def test_the_committed_page_of_mechanisms_is_what_the_command_writes(tmp_path):
    mechanisms.write(tmp_path)
    written, committed = ((folder / "mechanisms.md").read_text(encoding="utf-8") for folder in (tmp_path, DOCS))
    assert written == committed, "run: python scripts/upkeep/mechanisms.py"


def test_the_committed_page_of_flags_is_what_the_command_writes():
    committed = (DOCS / "flags.md").read_text(encoding="utf-8")
    assert mechanisms.flags_page() == committed, "run: python scripts/upkeep/mechanisms.py"


def test_every_mechanism_has_its_facts_and_a_small_drawing():
    page = (DOCS / "mechanisms.md").read_text(encoding="utf-8")
    drawn = {f"{name}.svg" for name in (*REGISTRY, *PRESETS, *card_pages.kept_cards())}
    assert {path.name for path in (DOCS / "mechanisms").iterdir()} == drawn
    for name, mechanism in REGISTRY.items():
        for fact in (mechanism.formula, mechanism.source, mechanism.row_sum, mechanism.cost):
            assert fact in page
        for option in mechanism.options:
            assert f"`{option.flag}`" in page
        picture = DOCS / "mechanisms" / f"{name}.svg"
        assert f"(mechanisms/{name}.svg)" in page
        assert picture.stat().st_size < 30_000
        assert ET.parse(picture).getroot().tag.endswith("svg")
    for name, preset in PRESETS.items():
        assert f"## {name}" in page and preset.flags() in page


def test_the_sums_of_the_drawn_rows():
    for name, total in (("softmax", 1), ("centered", 0), ("attn_scale", 1), ("sparsemax", 1), ("dnas", 1)):
        rows = mechanisms.example_weights(name).sum(-1)
        torch.testing.assert_close(rows, torch.full_like(rows, total))


@pytest.mark.slow
def test_the_page_of_flags_holds_every_flag_once():
    page = (DOCS / "flags.md").read_text(encoding="utf-8")
    for option in options.all_options():
        assert page.count(f"| `{option.flag}` |") == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_click_on_a_head_sorts_numbers_before_words(seed, tmp_path):
    numbers, words = random.Random(seed), ["no decoder", "none", "any"]
    values = [round(numbers.uniform(-2000, 2000), 2) for _ in range(9)]
    cells = [(value, f"{value:,.2f} a token".replace("-", "−")) for value in values]
    cells += [(None, word) for word in words]
    numbers.shuffle(cells)
    rows = "".join(f"<tr><td>x</td><td>{cell}</td></tr>" for _, cell in cells)
    script = (DOCS / "javascripts/sort-tables.js").read_text()
    page = tmp_path / "page.html"
    table = f"<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>{rows}</tbody></table>"
    page.write_text(f"<meta charset='utf-8'>{table}<script>{script}</script>", encoding="utf-8")
    with browser() as started:
        window = started.new_page()
        window.goto(page.as_uri())
        for upwards in (True, False):
            window.click("th:nth-child(2)")
            shown = window.eval_on_selector_all("td:nth-child(2)", "cells => cells.map(cell => cell.textContent)")
            known = sorted((value, cell) for value, cell in cells if value is not None)
            expected = [cell for _, cell in (known if upwards else known[::-1])]
            assert shown == expected + sorted(words, reverse=not upwards)
