"""Softpick."""

import torch
from contract import Contract
from tiny import settings

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism


class TestSoftpick(Contract):
    name = "softpick"

    def row(self, mechanism, scores, head):
        powers, largest = torch.exp(scores) - 1, torch.exp(scores.max().clamp(min=0))
        return torch.where(powers > 0, powers, 0.0) / (powers.abs().sum() + 1e-8 * largest)


def test_a_row_without_a_positive_score_is_zero_and_large_scores_are_finite():
    q = torch.tensor([[[[-3.0], [200.0]]]])
    k = torch.ones(1, 1, 4, 1)
    softpick = build_mechanism("softpick", Site("cross", 0, 1, 1, 1, 1), settings())
    weights = softpick(AttentionInput(q, k, k, AttentionMask(), q[:, 0], need_weights=True))[1]
    assert weights[0, 0, 0].abs().max() == 0
    torch.testing.assert_close(weights[0, 0, 1], torch.full((4,), 0.25))
