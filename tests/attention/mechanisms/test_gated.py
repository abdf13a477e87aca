"""Gated attention."""

import torch
from contract import WIDTH, Contract


class TestGated(Contract):
    name = "gated"
    variants = ({"gated_gate": "headwise"}, {"gated_gate": "elementwise"}, {"gated_init": "xavier"})

    def finish(self, mechanism, output, x):
        logits = x @ mechanism.gate_proj.weight.T
        width = logits.size(-1) // self.heads
        gates = torch.stack([logits[..., h * width : (h + 1) * width] for h in range(self.heads)], dim=1)
        assert width in (1, WIDTH)
        return output / (1 + torch.exp(-gates))
