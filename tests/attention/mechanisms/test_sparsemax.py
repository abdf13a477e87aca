"""Sparsemax."""

import torch
from contract import Contract


def project(row):
    """The projection onto the simplex: the largest support whose smallest score is above the threshold."""
    ordered = sorted(row, key=lambda score: -score.item())
    threshold = ordered[0] - 1
    for size in range(1, len(ordered) + 1):
        total = sum(ordered[:size])
        if 1 + size * ordered[size - 1] > total:
            threshold = (total - 1) / size
    return torch.stack([torch.clamp(score - threshold, min=0) for score in row])


class TestSparsemax(Contract):
    name = "sparsemax"

    def row(self, mechanism, scores, head):
        return project(scores)
