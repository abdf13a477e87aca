"""Local attention."""

import math

import torch
from contract import Contract, plain_softmax, row_by_row


class TestLocal(Contract):
    name = "local"
    needs_positions = True
    variants = ({"local_window": 1}, {"local_window": 2}, {})
    model_options = {"local_window": 2}  # noqa: RUF012
    # A key taken out of the middle would bring its neighbours nearer to each other: padding stands at the ends.
    removed = ([0], [4], [0, 3, 4])

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        offset = k.size(2) - q.size(2)
        near = torch.zeros(q.size(2), k.size(2), dtype=torch.bool)
        for i in range(q.size(2)):
            near[i, max(0, offset + i - mechanism.reach) : offset + i + mechanism.reach + 1] = True
        weights = row_by_row(
            q.size(2), k.size(2), visible & near, lambda b, h, i, seen: plain_softmax(scores[b, h, i, seen])
        )
        return weights @ v, weights
