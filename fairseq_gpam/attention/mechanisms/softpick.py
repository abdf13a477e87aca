"""Softpick: weights that are rectified and need not sum to 1 (Zuhri, Fuadi & Aji 2025)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import hide, zero_rows

EPSILON = 1e-8


@register_mechanism
class SoftpickAttention(MatrixMechanism):
    """Weights in [0, 1) that are exactly 0 for keys whose score is not positive, so that no key has to be a sink.

    As in the authors' code, numerator and denominator are divided by exp(m), m = max(0, the largest score of the row),
    before ε = 1e-8 is added. A row without a positive score is zero.
    """

    name = "softpick"
    formula = "P = relu(exp(S) − 1) / (Σ |exp(S) − 1| + ε), S = QKᵀ/√D + M"
    source = "Zuhri, Fuadi & Aji 2025, arXiv 2504.20966; zaydzuhri/softpick-attention"
    row_sum = "between 0 and 1"
    cost = "1×"
    why_never_neutral = "its weights are rectified"

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores, fully_masked = hide(dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask)
        largest = scores.amax(dim=-1, keepdim=True).clamp(min=0.0)
        powers = torch.exp(scores - largest) - torch.exp(-largest)
        total = powers.abs().masked_fill(scores == float("-inf"), 0.0).sum(dim=-1, keepdim=True)
        return zero_rows(torch.relu(powers) / (total + EPSILON), fully_masked)
