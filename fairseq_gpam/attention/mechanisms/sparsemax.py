"""Sparsemax: the Euclidean projection of the scores onto the simplex (Martins & Astudillo 2016)."""

from fairseq_gpam.attention.core.base import register_mechanism
from fairseq_gpam.attention.core.sparse import SparseMechanism


@register_mechanism
class SparsemaxAttention(SparseMechanism):
    """Weights that are exactly 0 on many keys: α-entmax with α = 2."""

    name = "sparsemax"
    formula = "P = sparsemax(QKᵀ/√D + M)"
    source = "Martins & Astudillo 2016, arXiv 1602.02068"
    why_never_neutral = "it is sparsemax at every setting"
