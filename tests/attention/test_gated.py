"""Gated attention."""

import torch
from contract import WIDTH, Contract, softmax_map


class TestGated(Contract):
    name = "gated"
    variants = ({"gated_gate": "headwise"}, {"gated_gate": "elementwise"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        logits = x @ mechanism.gate_proj.weight.T
        width = logits.size(-1) // self.heads
        gates = torch.stack([logits[..., h * width : (h + 1) * width] for h in range(self.heads)], dim=1)
        assert width in (1, WIDTH)
        return weights @ v / (1 + torch.exp(-gates)), weights
