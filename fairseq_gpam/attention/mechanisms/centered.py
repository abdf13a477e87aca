"""Centred attention: softmax minus uniform weights, so that rows sum to 0."""

from __future__ import annotations

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


def centered_terms() -> AffineTerms:
    """Returns P = softmax(QKᵀ/√D + M) − U, B × H × T × S, U uniform over the keys visible to a row.

    Ali, Galanti & Wolf 2023, arXiv 2306.01610; Nait Saada, Naderi & Tanner 2024 (Mind the Gap), arXiv 2410.07799,
    where U is 1/S everywhere. Under a causal mask U is 1/(i+1) on the keys 0…i of row i, so that the future has no
    weight; it yields a running mean of the values.
    """
    return AffineTerms(uniform=1.0)


@register_mechanism
class CenteredAttention(AffineMechanism):
    """Softmax attention without its uniform part."""

    name = "centered"
    formula = "P = softmax(QKᵀ/√D + M) − U"
    source = "arXiv 2306.01610; arXiv 2410.07799"
    row_sum = "0"
    cost = "1×, and a mean of the values"
    why_never_neutral = "its uniform part is always subtracted"

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return centered_terms()
