"""Softpick: weights that are rectified and need not sum to 1 (Zuhri, Fuadi & Aji 2025)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import zero_hidden

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
    rows_are_independent = True
    why_never_neutral = "its weights are rectified"

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores = zero_hidden(dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask)
        largest = scores.amax(dim=-1, keepdim=True).clamp(min=0.0)
        powers = zero_hidden((scores - largest).exp_() - torch.exp(-largest), inputs.mask)
        total = torch.linalg.vector_norm(powers, ord=1, dim=-1, keepdim=True)
        return (powers / (total + EPSILON)).relu_()
