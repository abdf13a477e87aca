"""Exclusive self-attention."""

import torch
from contract import Contract, softmax_map


class TestExclusive(Contract):
    name = "exclusive"
    needs_positions = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        offset = k.size(2) - q.size(2)
        rows = []
        for i in range(q.size(2)):
            y, own = (weights[:, :, i, :, None] * v).sum(2), v[:, :, offset + i]
            rows.append(y - (y * own).sum(-1, keepdim=True) * own / (own * own).sum(-1, keepdim=True))
        return torch.stack(rows, dim=2), weights
