"""(1+λ⁺)·softmax."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, settings, softmax_map

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism


class TestScaledSoftmax(Contract):
    name = "scaled_softmax"
    variants = ({}, {"lambda_scope": "layer", "lambda_max": 2.0}, {"lambda": "fixed", "lambda_plus": -0.4})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        lam = mechanism.lambda_plus
        if lam.theta is None:
            value = lam.initial
        else:
            value = lam.theta if lam.bound is None else lam.bound / (1 + torch.exp(-lam.theta))
            value = value.reshape(-1, 1, 1)
        weights = (1 + value) * softmax_map(q, k, bias, visible)
        return weights @ v, weights


def test_no_scale_is_softmax():
    site = Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    q, k, v = torch.randn(3, 2, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    x = torch.randn(2, LENGTH, HEADS * WIDTH)
    scaled = build_mechanism("scaled_softmax", site, settings(**{"lambda": "fixed", "lambda_plus": 0.0}))
    plain = build_mechanism("softmax", site, settings())
    mask = AttentionMask(causal=True)
    torch.testing.assert_close(
        scaled(AttentionInput(q, k, v, mask, x))[0], plain(AttentionInput(q, k, v, mask, x))[0], rtol=0, atol=1e-15
    )
