"""CoDA."""

import math

import torch
from contract import Contract, row_by_row


class TestCoda(Contract):
    name = "coda"
    variants = ({"coda_gate": "centered"}, {"coda_gate": "doubled"})

    def weights(self, mechanism, q, k, x, bias, visible):
        width = q.size(-1)

        def weigh(b, h, i, seen):
            score = torch.stack([(q[b, h, i] * k[b, h, j]).sum() / math.sqrt(width) + bias[b, h, i, j] for j in seen])
            distance = torch.stack([-(q[b, h, i] - k[b, h, j]).abs().sum() / math.sqrt(width) for j in seen])
            if mechanism.centered:
                gate = 1 / (1 + torch.exp(-(distance - distance.mean())))
            else:
                gate = 2 / (1 + torch.exp(-distance))
            return torch.tanh(score) * gate

        return row_by_row(visible, weigh)
