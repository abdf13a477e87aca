"""The measures of the study row-sum at the start of training."""

import runpy
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[3] / "examples/studies/row-sum"
measured = runpy.run_path(str(STUDY / "start.py"))["measured"]
HALF = ["--gpam-lambda", "fixed", "--gpam-lambda-plus=-0.5"]


def test_half_the_attention_and_twice_the_skip_are_the_same_model_after_the_norm():
    half = measured("scaled_softmax", HALF, 3, 1)
    double = measured("softmax", ["--gpam-skip-weight", "2"], 3, 1)
    # The norm's epsilon is what is left of a difference.
    assert half["residual_ratio"] == pytest.approx(double["residual_ratio"], rel=1e-4)
    assert half["query_gradient_last"] == pytest.approx(double["query_gradient_last"], rel=1e-3)
    assert half["residual_ratio"] > measured("softmax", [], 3, 1)["residual_ratio"]


def test_the_picture_shows_every_arm_that_was_trained_and_every_kind_of_row_sum():
    picture = runpy.run_path(str(STUDY / "picture.py"))
    start, trained, kinds = picture["at_the_start"](), picture["after_training"](), picture["KINDS"]
    shown = set().union(*kinds.values())
    assert trained.keys() <= shown <= start.keys()
    assert [series.label for series in picture["lines"](start) if series.label] == list(kinds)
