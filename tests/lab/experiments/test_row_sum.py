"""The measures of the study row-sum at the start of training."""

import runpy
from pathlib import Path

import pytest

measured = runpy.run_path(str(Path(__file__).parents[3] / "examples/studies/row-sum/start.py"))["measured"]
HALF = ["--gpam-lambda", "fixed", "--gpam-lambda-plus=-0.5"]


def test_half_the_attention_and_twice_the_skip_are_the_same_model_after_the_norm():
    half = measured("scaled_softmax", HALF, 3, 1)
    double = measured("softmax", ["--gpam-skip-weight", "2"], 3, 1)
    # The norm's epsilon is what is left of a difference.
    assert half["residual_ratio"] == pytest.approx(double["residual_ratio"], rel=1e-4)
    assert half["query_gradient_last"] == pytest.approx(double["query_gradient_last"], rel=1e-3)
    assert half["residual_ratio"] > measured("softmax", [], 3, 1)["residual_ratio"]
