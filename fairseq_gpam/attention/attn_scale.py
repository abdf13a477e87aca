"""AttnScale: the part of softmax attention that is not uniform is scaled up (Wang et al. 2022)."""

from __future__ import annotations

import torch

from fairseq_gpam.attention.affine import AffineTerms, Coefficient
from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.families import AffineMechanism, format_values
from fairseq_gpam.attention.lambdas import no_decay_parameter


def attn_scale_terms(scale: Coefficient) -> AffineTerms:
    """Returns P = U + (1+λ)·(softmax(QKᵀ/√D + M) − U), B × H × T × S, U uniform over the keys that a row sees.

    `scale` is λ, broadcastable to P; the low-pass part U keeps the weight 1. Wang et al. 2022, arXiv 2203.05962,
    section 4.1; learned per head from 0 in VITA-Group/ViT-Anti-Oversmoothing. There every token sees every other;
    U over the visible keys, a running mean under a causal mask, is our reading for masked attention.
    """
    return AffineTerms(positive=1 + scale, uniform=scale)


@register_mechanism
class AttnScaleAttention(AffineMechanism):
    """Softmax attention whose high-frequency part is scaled by 1+λ, one λ a head; λ = 0 is softmax attention.

    The source offers FeatScale beside it, which scales the mean and the rest of a block's features over all tokens of
    an image. It is not part of this mechanism: it acts outside attention, and its mean would show a decoder the future.
    """

    name = "attn_scale"
    formula = "P = (1+λ)·softmax(QKᵀ/√D + M) − λ·U"
    source = "Wang et al. 2022, arXiv 2203.05962; VITA-Group/ViT-Anti-Oversmoothing"
    row_sum = "1"
    cost = "1×, and a mean of the values"
    neutral = (("attn_scale_start", 0.0),)
    options = (Option("attn_scale_start", float, 0.0, "where the λ of every head starts"),)

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.scale = no_decay_parameter(torch.full((site.num_heads,), settings.attn_scale_start))

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return attn_scale_terms(self.scale.view(-1, 1, 1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, λ {format_values(self.scale)}"
