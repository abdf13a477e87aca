"""Centred attention."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, check_same, settings, softmax_map, uniform_map

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism

SITE = Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)


class TestCentered(Contract):
    name = "centered"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible) - uniform_map(visible)
        return weights @ v, weights


def test_dagpam_with_lambda_plus_0_and_lambda_minus_1_is_centered():
    """λ⁺ = 0, λ⁻ = 1, W_Q⁻ = 0; without a finite bias, which would shape daGPAM's negative branch."""
    ours = build_mechanism("centered", SITE, settings())
    theirs = build_mechanism("dagpam", SITE, settings(lambda_plus=0.0, lambda_minus=1.0, negative_init="zero")).double()
    check_same(ours, theirs, 1e-12)


def test_causal_rows_subtract_a_running_mean_and_sum_to_zero():
    q, k, v = torch.randn(3, 1, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    output, weights = build_mechanism("centered", SITE, settings())(
        AttentionInput(q, k, v, AttentionMask(causal=True), q, 0.0, True)
    )
    assert weights.triu(1).abs().max() == 0
    assert weights.sum(-1).abs().max() < 1e-15
    assert output[:, :, 0].abs().max() < 1e-15
