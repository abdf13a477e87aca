"""NON."""

import math

import torch
from contract import Contract, row_by_row


class TestNon(Contract):
    name = "non"
    variants = ({}, {"non_output": "none"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        weights = row_by_row(
            q.size(2), k.size(2), visible, lambda b, h, i, seen: scores[b, h, i, seen] / math.sqrt(len(seen))
        )
        output = weights @ v
        if mechanism.output == "gelu":
            output = output * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (output + 0.044715 * output**3)))
        return output, weights
