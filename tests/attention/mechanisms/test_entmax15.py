"""1.5-entmax."""

import torch
from contract import Contract


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

    def row(self, mechanism, scores, head):
        return support_threshold(scores)
