"""Differential attention, second version."""

import torch
from contract import WIDTH, Contract, softmax_map


class TestDifferentialV2(Contract):
    name = "differential_v2"

    def weights(self, mechanism, q, k, x, bias, visible):
        second = x @ mechanism.second_q_proj.weight.T + mechanism.second_q_proj.bias
        second = torch.stack([second[..., h * WIDTH : (h + 1) * WIDTH] for h in range(self.heads)], dim=1)
        strength = 1 / (1 + torch.exp(-(x @ mechanism.strength_proj.weight.T)))
        strength = strength.permute(0, 2, 1)[..., None]
        return softmax_map(q, k, bias, visible) - strength * softmax_map(second, k, bias, visible)
