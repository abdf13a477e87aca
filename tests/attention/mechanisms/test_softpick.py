"""Softpick."""

import math

import torch
from contract import Contract, row_by_row

from fairseq_gpam.attention import AttentionMask
from fairseq_gpam.attention.mechanisms.softpick import softpick_weights


class TestSoftpick(Contract):
    name = "softpick"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias

        def weigh(b, h, i, seen):
            row = torch.exp(scores[b, h, i, seen]) - 1
            largest = torch.exp(scores[b, h, i, seen].max().clamp(min=0))
            return torch.where(row > 0, row, 0.0) / (row.abs().sum() + 1e-8 * largest)

        weights = row_by_row(q.size(2), k.size(2), visible, weigh)
        return weights @ v, weights


def test_a_row_without_a_positive_score_is_zero_and_large_scores_are_finite():
    q = torch.tensor([[[[-3.0], [200.0]]]])
    k = torch.ones(1, 1, 4, 1)
    weights = softpick_weights(q, k, AttentionMask())
    assert weights[0, 0, 0].abs().max() == 0
    torch.testing.assert_close(weights[0, 0, 1], torch.full((4,), 0.25))
