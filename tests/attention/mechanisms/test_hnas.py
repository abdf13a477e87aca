"""HNAS."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map
from test_dnas import doubly_normalised

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


class TestHnas(Contract):
    name = "hnas"
    mixes_queries = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        share = (1 / (1 + torch.exp(-mechanism.theta))).reshape(-1, 1, 1)
        weights = share * doubly_normalised(q, k, bias, visible) + (1 - share) * softmax_map(q, k, bias, visible)
        return weights @ v, weights


@pytest.mark.parametrize(("theta", "name"), [(-float("inf"), "softmax"), (float("inf"), "dnas")])
def test_a_share_of_nothing_is_softmax_and_of_all_is_dnas(theta, name):
    site = Site("encoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    hnas = build_mechanism("hnas", site, settings()).double()
    with torch.no_grad():
        hnas.theta.fill_(theta)
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    for kind in ("nothing", "left", "a sentence of padding", "bias, hiding, right"):
        mask = masks(kind, LENGTH)[0]
        other = build_mechanism(name, site, settings())
        torch.testing.assert_close(
            hnas(AttentionInput(q, k, v, mask, q))[0], other(AttentionInput(q, k, v, mask, q))[0], rtol=0, atol=1e-14
        )
