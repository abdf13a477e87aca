"""Softmax attention (Vaswani et al. 2017)."""

from fairseq_gpam.attention.core.base import register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


@register_mechanism
class SoftmaxAttention(AffineMechanism):
    """Scaled dot-product attention, through the same core as the other members of the affine family."""

    name = "softmax"
    formula = "P = softmax(QKᵀ/√D + M)"
    source = "Vaswani et al. 2017, arXiv 1706.03762, eq. 1"
    row_sum = "1"
    cost = "1×"
    neutral = ()
