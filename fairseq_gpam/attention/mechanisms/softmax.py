"""Softmax attention (Vaswani et al. 2017)."""

from __future__ import annotations

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


def softmax_terms() -> AffineTerms:
    """Returns the terms of P = softmax(QKᵀ/√D + M), B × H × T × S.

    Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
    """
    return AffineTerms()


@register_mechanism
class SoftmaxAttention(AffineMechanism):
    """Scaled dot-product attention, through the same core as the other members of the affine family."""

    name = "softmax"
    formula = "P = softmax(QKᵀ/√D + M)"
    source = "Vaswani et al. 2017, arXiv 1706.03762, eq. 1"
    row_sum = "1"
    cost = "1×"
    neutral = ()

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return softmax_terms()
