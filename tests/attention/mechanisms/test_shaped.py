"""Shaped attention."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map, uniform_map

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


class TestShaped(Contract):
    name = "shaped"
    needs_positions = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        queries, keys = q.size(2), k.size(2)
        identity = torch.zeros(queries, keys, dtype=torch.float64)
        for i in range(queries):
            identity[i, keys - queries + i] = 1.0
        alpha, beta, gamma = (n.reshape(-1, 1, 1) for n in (mechanism.alpha, mechanism.beta, mechanism.gamma))
        own = identity * visible
        weights = alpha * own + beta * softmax_map(q, k, bias, visible) - gamma * uniform_map(visible)
        return weights @ v, weights


def test_neutral_is_softmax():
    site = Site("encoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    shaped = build_mechanism("shaped", site, settings(shaped_alpha=0, shaped_beta=1, shaped_gamma=0))
    softmax = build_mechanism("softmax", site, settings())
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH)
    mask = masks("left", LENGTH)[0]
    torch.testing.assert_close(
        shaped(AttentionInput(q, k, v, mask, q))[0], softmax(AttentionInput(q, k, v, mask, q))[0], rtol=0, atol=1e-6
    )


def test_refused_at_cross_attention():
    with pytest.raises(ValueError, match=r"'shaped'.*--gpam-cross-mechanism.*encoder, decoder"):
        build_mechanism("shaped", Site("cross", 0, 1, 4, 2, 2), settings())
