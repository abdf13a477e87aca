"""Selective attention."""

import math

import torch
from contract import Contract, plain_softmax, row_by_row


class TestSelective(Contract):
    name = "selective"
    needs_positions = True
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        zero = torch.zeros((), dtype=torch.float64)

        def weigh(b, h, i, seen):
            penalties = []
            for j in seen:
                selected = zero
                for later in range(j + 1, i):
                    if j != seen[0] and visible[b, h, -1, later] and scores[b, 0, later, j] > 0:
                        selected = selected + scores[b, 0, later, j]
                penalties.append(selected)
            return plain_softmax(scores[b, h, i, seen] - torch.stack(penalties))

        return row_by_row(visible, weigh)
