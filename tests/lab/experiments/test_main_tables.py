"""The main table of a study, recomputed by the script beside it from the kept runs, is the one on its page."""

import re
import runpy
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[3] / "examples/studies"
LINE = re.compile(r"(\S+) − (\S+): (\d+) seeds, ([+-][\d.]+)(?: ± ([\d.]+))? nats(?:, p ([\d.]+))?")


@pytest.mark.parametrize("script", sorted(STUDIES.glob("*/main_table.py")), ids=lambda path: path.parent.name)
def test_the_page_has_the_numbers_of_the_script(script, capsys):
    runpy.run_path(str(script))
    lines = LINE.findall(capsys.readouterr().out)
    assert lines
    page = (script.parent / "README.md").read_text(encoding="utf-8")
    for arm, other, seeds, mean, half, p in lines:
        # A primary contrast, or the first table with the arm, which is that of the validation loss.
        starts = (f"| {arm} − {other} | {seeds} |", f"| {arm} | {seeds} |")
        row = next(line for start in starts for line in page.splitlines() if line.startswith(start))
        # One seed has no interval.
        assert (f"{mean} ± {half}" if half else mean) in row
        assert "too few seeds" in row or (p and p in row)
