"""Centred attention: softmax minus uniform weights, so that rows sum to 0."""

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


@register_mechanism
class CenteredAttention(AffineMechanism):
    """Softmax attention without its uniform part, U: 1/n on the n keys visible to a row.

    In the sources (Ali, Galanti & Wolf 2023; Nait Saada, Naderi & Tanner 2024, Mind the Gap) U is 1/S everywhere. Under
    a causal mask it is 1/(i+1) on the keys 0…i of row i: a running mean of the values.
    """

    name = "centered"
    formula = "P = softmax(QKᵀ/√D + M) − U"
    source = "arXiv 2306.01610; arXiv 2410.07799"
    row_sum = "0"
    cost = "1×, and a mean of the values"
    why_never_neutral = "its uniform part is always subtracted"

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return AffineTerms(uniform=1.0)
