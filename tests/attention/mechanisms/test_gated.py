"""Gated attention."""

import pytest
import torch
from contract import WIDTH, Contract, settings, softmax_map

from fairseq_gpam.attention import Site, build_mechanism


class TestGated(Contract):
    name = "gated"
    variants = ({"gated_gate": "headwise"}, {"gated_gate": "elementwise"}, {"gated_init": "xavier"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        logits = x @ mechanism.gate_proj.weight.T
        width = logits.size(-1) // self.heads
        gates = torch.stack([logits[..., h * width : (h + 1) * width] for h in range(self.heads)], dim=1)
        assert width in (1, WIDTH)
        return weights @ v / (1 + torch.exp(-gates)), weights


@pytest.mark.parametrize(("init", "spread"), [("normal", 0.02), ("xavier", (2 / 1024) ** 0.5)])
def test_the_start_of_the_gate(init, spread):
    gated = build_mechanism("gated", Site("encoder", 0, 1, 512, 8, 64), settings(gated_init=init))
    assert gated.gate_proj.weight.std().item() == pytest.approx(spread, rel=0.03)
