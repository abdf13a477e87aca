"""Softmax attention (Vaswani et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from fairseq_gpam.attention.affine import Affine
from fairseq_gpam.attention.base import register_mechanism
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.masks import AttentionMask


def softmax_terms() -> Affine:
    """Returns the terms of P = softmax(QKᵀ/√D + M), B × H × T × S: a = 1 and nothing else.

    Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
    """
    return Affine()


@register_mechanism
class SoftmaxAttention(AffineMechanism):
    """Scaled dot-product attention, through the same core as the other members of the affine family."""

    name = "softmax"
    formula = "P = softmax(QKᵀ/√D + M)"
    source = "Vaswani et al. 2017, arXiv 1706.03762, eq. 1"
    row_sum = "1"
    cost = "1×"

    def terms(self, q: Tensor, k: Tensor, mask: AttentionMask, x: Tensor) -> Affine:
        return softmax_terms()
