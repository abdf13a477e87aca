"""Softpick."""

import torch
from contract import Contract

from fairseq_gpam.attention import AttentionMask
from fairseq_gpam.attention.mechanisms.softpick import softpick_weights


class TestSoftpick(Contract):
    name = "softpick"

    def row(self, mechanism, scores, head):
        powers, largest = torch.exp(scores) - 1, torch.exp(scores.max().clamp(min=0))
        return torch.where(powers > 0, powers, 0.0) / (powers.abs().sum() + 1e-8 * largest)


def test_a_row_without_a_positive_score_is_zero_and_large_scores_are_finite():
    q = torch.tensor([[[[-3.0], [200.0]]]])
    k = torch.ones(1, 1, 4, 1)
    weights = softpick_weights(q, k, AttentionMask())
    assert weights[0, 0, 0].abs().max() == 0
    torch.testing.assert_close(weights[0, 0, 1], torch.full((4,), 0.25))
