"""1.5-entmax."""

import torch
from contract import Contract, row_by_row


def support_threshold(row):
    """p_j = (s_j/2 − τ)₊², the largest support that the threshold leaves whole."""
    half = row / 2
    ordered = torch.sort(half, descending=True).values
    threshold = ordered[0] - 1
    for size in range(1, len(row) + 1):
        top = ordered[:size]
        mean = top.sum() / size
        spread = ((top - mean) ** 2).sum()
        if spread.item() < 1:
            candidate = mean - ((1 - spread) / size) ** 0.5
            if candidate.item() <= ordered[size - 1].item():
                threshold = candidate
    return torch.clamp(half - threshold, min=0) ** 2


class TestEntmax15(Contract):
    name = "entmax15"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + bias
        weights = row_by_row(
            q.size(2), k.size(2), visible, lambda b, h, i, seen: support_threshold(scores[b, h, i, seen])
        )
        return weights @ v, weights
