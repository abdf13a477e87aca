"""Differential attention, second version."""

import pytest
import torch
from contract import WIDTH, Contract, settings, softmax_map

from fairseq_gpam.attention import Site, build_mechanism


class TestDifferentialV2(Contract):
    name = "differential_v2"

    def weights(self, mechanism, q, k, x, bias, visible):
        second = x @ mechanism.second_q_proj.weight.T + mechanism.second_q_proj.bias
        second = torch.stack([second[..., h * WIDTH : (h + 1) * WIDTH] for h in range(self.heads)], dim=1)
        strength = 1 / (1 + torch.exp(-(x @ mechanism.strength_proj.weight.T)))
        strength = strength.permute(0, 2, 1)[..., None]
        return softmax_map(q, k, bias, visible) - strength * softmax_map(second, k, bias, visible)


def test_the_strength_starts_as_a_linear_map_or_by_xavier():
    bounds = {}
    for init in ("linear", "xavier"):
        site = Site("decoder", 1, 3, 400, 4, 100)
        mechanism = build_mechanism("differential_v2", site, settings(differential_v2_init=init))
        bounds[init] = mechanism.strength_proj.weight.abs().max().item()
        assert mechanism.second_q_proj.weight.abs().max().item() == pytest.approx((3 / 800) ** 0.5, rel=0.01)
    assert bounds["linear"] == pytest.approx((1 / 400) ** 0.5, rel=0.02)
    assert bounds["xavier"] == pytest.approx((6 / 404) ** 0.5, rel=0.02)
