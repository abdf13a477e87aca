"""Sparsemax: the Euclidean projection of the scores onto the simplex (Martins & Astudillo 2016)."""

from __future__ import annotations

from torch import Tensor

from fairseq_gpam.attention.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.entmax import entmax_package, nan_unless_finite
from fairseq_gpam.attention.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.masks import AttentionMask, hide, zero_rows


def sparsemax_weights(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns P = sparsemax(QKᵀ/√D + M) along the keys, B × H × T × S.

    Martins & Astudillo 2016, arXiv 1602.02068, algorithm 1; computed by the `entmax` package.
    """
    scores, fully_masked = hide(dot_scores(q, k, mask), mask)
    return zero_rows(nan_unless_finite(entmax_package().sparsemax, scores), fully_masked)


@register_mechanism
class SparsemaxAttention(MatrixMechanism):
    """Weights that are exactly 0 on many keys."""

    name = "sparsemax"
    formula = "P = sparsemax(QKᵀ/√D + M)"
    source = "Martins & Astudillo 2016, arXiv 1602.02068; the package entmax"
    row_sum = "1"
    cost = "1×, and a sort of P"
    why_never_neutral = "it is sparsemax at every setting"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        entmax_package()

    def weights(self, inputs: AttentionInput) -> Tensor:
        return sparsemax_weights(inputs.q, inputs.k, inputs.mask)
