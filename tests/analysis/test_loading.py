"""What analyze refuses before it measures anything: models that have diverged, subsets that are not there."""

import math

import pytest
import torch
from test_interface import checkpoint
from tiny import BASE, OURS

from fairseq_gpam.__main__ import main

TASK = "language_modeling"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A checkpoint of an untrained language model, and its dictionary's folder, which has no text."""
    folder = tmp_path_factory.mktemp("untrained")
    flags = [OURS[TASK], *BASE[TASK], "--tokens-per-sample", "16"]
    return checkpoint(folder, TASK, folder / "data", *flags), folder / "data"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_parameter_that_is_not_finite_is_named(untrained, tmp_path, value):
    path, data = untrained
    state = torch.load(path, weights_only=False)
    for name in [name for name, weights in state["model"].items() if weights.dim() and "version" not in name][::5]:
        damaged = {**state["model"], name: state["model"][name].clone()}
        damaged[name].view(-1)[-1] = value
        torch.save({**state, "model": damaged}, tmp_path / "diverged.pt")
        with pytest.raises(SystemExit, match=f"diverged.pt: {name} has NaN or infinite values; the training has div"):
            main(["analyze", str(tmp_path / "diverged.pt"), "--data", str(data), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("subset", ["nonsense", "test", "../valid", ""])
def test_a_subset_that_is_not_there_is_named(untrained, tmp_path, subset):
    path, data = untrained
    with pytest.raises(SystemExit, match=rf"{subset}.*{data}") as end:
        main(["analyze", str(path), "--data", str(data), "--subset", subset, "--out", str(tmp_path / "out")])
    assert end.value.code == 2 and "\n" not in str(end.value)
