"""1.5-entmax: halfway between softmax and sparsemax (Peters, Niculae & Martins 2019)."""

from fairseq_gpam.attention.core.base import register_mechanism
from fairseq_gpam.attention.core.sparse import SparseMechanism


@register_mechanism
class Entmax15Attention(SparseMechanism):
    """Weights that are exactly 0 on some keys: α-entmax with α = 1.5."""

    name = "entmax15"
    formula = "P = 1.5-entmax(QKᵀ/√D + M)"
    source = "Peters, Niculae & Martins 2019, arXiv 1905.05702"
    why_never_neutral = "it is 1.5-entmax at every setting"
    fixed_alpha = 1.5
