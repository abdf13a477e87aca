"""The picture of the study own-learning-rate has the differences of the kept runs."""

import json
import math
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_picture_shows_the_differences_of_the_runs_that_chose_the_rates():
    picture = runpy.run_path(str(EXAMPLES / "studies/own-learning-rate/picture.py"))
    kept = {}
    for line in (EXAMPLES / "results/bible-de-en.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if "learning_rate" in run:
            bits = [loss["value"] for loss in run["losses"] if loss["split"] == "valid"][-1]
            kept[run["arm"], run["learning_rate"], run["seed"]] = bits * math.log(2)
    shown = picture["differences"](picture["losses"]())
    assert sorted(shown) == ["dagpam", "minus-alone", "scaled-0.5"]
    for arm, by_rate in shown.items():
        expected = [sum(kept[arm, rate, seed] - kept["stock", rate, seed] for seed in (21, 22)) / 2 for rate in by_rate]
        line = next(line for line in picture["lines"](shown, ["stock", *shown]) if line.label == arm)
        assert [y for _, y in line.points] == pytest.approx(expected)
        assert len(expected) == 4
