"""Forgetting attention."""

import math

import torch
from contract import Contract, plain_softmax, row_by_row


class TestForgetting(Contract):
    name = "forgetting"
    needs_positions = True
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        logits = x @ mechanism.gate_proj.weight.T + mechanism.gate_proj.bias
        log_gates = -torch.log(1 + torch.exp(-logits))

        def weigh(b, h, i, seen):
            fading = [
                sum((log_gates[b, p, h] for p in range(j + 1, i + 1) if visible[b, h, -1, p]), torch.zeros(()).double())
                for j in seen
            ]
            return plain_softmax(scores[b, h, i, seen] + torch.stack(fading))

        return row_by_row(visible, weigh)
