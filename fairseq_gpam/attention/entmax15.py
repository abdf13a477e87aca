"""1.5-entmax: halfway between softmax and sparsemax (Peters, Niculae & Martins 2019)."""

from __future__ import annotations

from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.entmax import entmax_package, nan_unless_finite
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.masks import AttentionMask, hide, zero_rows


def entmax15_weights(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns P = 1.5-entmax(QKᵀ/√D + M) along the keys, B × H × T × S.

    Peters, Niculae & Martins 2019, arXiv 1905.05702; computed exactly, by sorting, by the `entmax` package.
    """
    scores, fully_masked = hide(dot_scores(q, k, mask), mask)
    return zero_rows(nan_unless_finite(entmax_package().entmax15, scores), fully_masked)


@register_mechanism
class Entmax15Attention(MatrixMechanism):
    """Weights that are exactly 0 on some keys."""

    name = "entmax15"
    formula = "P = 1.5-entmax(QKᵀ/√D + M)"
    source = "Peters, Niculae & Martins 2019, arXiv 1905.05702; the package entmax"
    row_sum = "1"
    cost = "1×, and a sort of P"
    why_never_neutral = "it is 1.5-entmax at every setting"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        entmax_package()

    def weights(self, inputs: AttentionInput) -> Tensor:
        return entmax15_weights(inputs.q, inputs.k, inputs.mask)
