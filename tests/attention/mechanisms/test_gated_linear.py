"""Gated linear attention."""

import math

import torch
from contract import WIDTH, Contract


class TestGatedLinear(Contract):
    name = "gated_linear"
    needs_positions = True
    mixes_queries = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        logits = x @ mechanism.decay_down.weight.T @ mechanism.decay_up.weight.T + mechanism.decay_up.bias
        decays = (1 / (1 + torch.exp(-logits))) ** (1 / 16)
        gates = x @ mechanism.gate_proj.weight.T

        def head(b, h, shown):
            length, channels = len(shown), slice(h * WIDTH, (h + 1) * WIDTH)
            state, ages = torch.zeros(WIDTH, WIDTH).double(), torch.ones(length, WIDTH).double()
            outputs, rows = [], []
            for i in range(length):
                if shown[i]:
                    decay = decays[b, i, channels]
                    state = decay[:, None] * state + k[b, h, i][:, None] * v[b, h, i][None]
                    ages = torch.cat([ages[:i] * decay, ages[i:]])
                seen = shown & (torch.arange(length) <= i)
                rows.append((k[b, h] * ages) @ q[b, h, i] * seen / math.sqrt(WIDTH))
                y = q[b, h, i] @ state / math.sqrt(WIDTH)
                y = y / torch.sqrt((y * y).mean() + 1e-5) * mechanism.norm_weight
                gate = gates[b, i, channels]
                outputs.append(y * gate / (1 + torch.exp(-gate)))
            return torch.stack(outputs), torch.stack(rows)

        return self.head_by_head(head, visible)
