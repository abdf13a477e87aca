"""Gated attention."""

import pytest
import torch
from contract import WIDTH, Contract, settings

from fairseq_gpam.attention import Site, build_mechanism


class TestGated(Contract):
    name = "gated"
    variants = ({"gated_gate": "headwise"}, {"gated_gate": "elementwise"}, {"gated_init": "xavier"})

    def finish(self, mechanism, output, x):
        logits = x @ mechanism.gate_proj.weight.T
        width = logits.size(-1) // self.heads
        gates = torch.stack([logits[..., h * width : (h + 1) * width] for h in range(self.heads)], dim=1)
        assert width in (1, WIDTH)
        return output / (1 + torch.exp(-gates))


@pytest.mark.parametrize(("init", "spread"), [("normal", 0.02), ("xavier", (2 / 1024) ** 0.5)])
def test_the_start_of_the_gate(init, spread):
    gated = build_mechanism("gated", Site("encoder", 0, 1, 512, 8, 64), settings(gated_init=init))
    assert gated.gate_proj.weight.std().item() == pytest.approx(spread, rel=0.03)
