"""The page of the mechanisms and its drawings."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import mechanisms
from fairseq_gpam import options
from fairseq_gpam.attention import REGISTRY

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_pages_are_what_the_command_writes(tmp_path):
    mechanisms.write(tmp_path)
    for page in ("mechanisms.md", "flags.md"):
        written, committed = ((folder / page).read_text(encoding="utf-8") for folder in (tmp_path, DOCS))
        assert written == committed, "run: python scripts/upkeep/mechanisms.py"
    names = {f"{name}.svg" for name in REGISTRY}
    assert {path.name for path in (tmp_path / "mechanisms").iterdir()} == names
    assert {path.name for path in (DOCS / "mechanisms").iterdir()} == names


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mechanism_has_its_facts_and_a_small_drawing(name):
    page = (DOCS / "mechanisms.md").read_text(encoding="utf-8")
    mechanism = REGISTRY[name]
    for fact in (mechanism.formula, mechanism.source, mechanism.row_sum, mechanism.cost):
        assert fact in page
    for option in mechanism.options:
        assert f"`{option.flag}`" in page
    picture = DOCS / "mechanisms" / f"{name}.svg"
    assert f"(mechanisms/{name}.svg)" in page
    assert picture.stat().st_size < 30_000
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_the_numbers_of_parameters():
    expected = {"softmax": 0, "dagpam": 8 * 64**2 + 16, "differential": 6 * 64, "gated": 512**2, "sink": 8}
    assert {name: mechanisms.extra_parameters(name) for name in expected} == expected


def test_the_sums_of_the_drawn_rows():
    for name, total in (("softmax", 1), ("centered", 0), ("attn_scale", 1), ("sparsemax", 1), ("dnas", 1)):
        rows = mechanisms.example_weights(name).sum(-1)
        torch.testing.assert_close(rows, torch.full_like(rows, total))


def test_the_page_of_flags_holds_every_flag_once():
    page = (DOCS / "flags.md").read_text(encoding="utf-8")
    for option in options.all_options():
        assert page.count(f"| `{option.flag}` |") == 1
