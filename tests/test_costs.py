"""What `info --mechanism` prints: facts, and costs that are counted and measured."""

import pytest
import torch
from tiny import settings

from fairseq_gpam import costs
from fairseq_gpam.__main__ import main
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.presets import PRESETS

WIDTH, HEADS, LENGTH = 16, 2, 6


def measured(name, **chosen):
    return costs.measure(name, settings(**chosen), WIDTH, HEADS, LENGTH)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds", "growth", "constant"),
    [
        # 4·C² for the projections and 2·S·C for the scores and the sums
        ("softmax", 0, 4 * WIDTH**2 + 2 * LENGTH * WIDTH, 2 * WIDTH, 0),
        # one more projection for each head, one more matrix of scores and nothing more for the sums
        ("dagpam", HEADS * 64 + 2 * HEADS, 4 * WIDTH**2 + 3 * LENGTH * WIDTH + HEADS * 64, 2 * WIDTH, 0),
        ("gated", WIDTH**2, 5 * WIDTH**2 + 2 * LENGTH * WIDTH, 2 * WIDTH, 0),
        ("forgetting", HEADS * WIDTH + HEADS, 4 * WIDTH**2 + 2 * LENGTH * WIDTH + HEADS * WIDTH, 2 * WIDTH + HEADS, 0),
    ],
)
def test_the_costs_are_those_of_the_formula(name, parameters, multiply_adds, growth, constant):
    found = measured(name)
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)
    assert (found.growth, found.constant) == (growth, constant)


@pytest.mark.parametrize(
    ("name", "chosen", "total"),
    [
        ("softmax", {}, 1.0),
        ("centered", {}, 0.0),
        ("affine_scaled", {}, 0.0),
        ("signed_dual", {}, 0.0),
        ("dagpam", {"lambda_plus": 0.1, "lambda_minus": 0.4}, 0.7),
        ("scaled_softmax", {}, 1.5),
    ],
)
def test_the_row_sum_at_the_start(name, chosen, total):
    assert measured(name, **chosen).row_sum == pytest.approx((total,) * 3, abs=1e-7)


def test_frozen_parameters_are_told_apart():
    assert (measured("signed_dual").trained, measured("signed_dual").parameters) == (0, HEADS * 64)
    assert measured("dagpam", **{"lambda": "fixed"}).trained == HEADS * 64
    assert measured("gated").trained == measured("gated").parameters


def test_every_mechanism_is_measured_without_touching_the_random_numbers():
    before = torch.random.get_rng_state()
    for name in (*REGISTRY, *PRESETS):
        found = measured(name)
        assert found.multiply_adds > 0
        assert (found.growth is None) == ("decoder" not in costs.facts(name).sites)
        assert torch.tensor(found.row_sum).isfinite().all()
        assert found.start() and found.state()
    assert torch.equal(torch.random.get_rng_state(), before)
    # Constant state, whatever the length
    for name in ("linear", "gated_linear", "zeros", "gated_deltanet"):
        assert measured(name).growth == 0 < measured(name).constant


@pytest.mark.parametrize("name", ["dnas", "forgetting", "signed_dual"])
def test_info_prints_facts_costs_and_the_model(name, capsys):
    words = ["info", "--mechanism", name, "--arch", "transformer_gpam_tiny", "--length", "9"]
    assert main(words) == 0
    told, printed = costs.facts(name), capsys.readouterr().out
    for words in (
        told.formula,
        told.source,
        told.row_sum,
        told.neutral,
        *told.sites,
        "for a token of 9",
        "64 channels",
    ):
        assert words in printed
    assert f"mechanism {name}" in printed
