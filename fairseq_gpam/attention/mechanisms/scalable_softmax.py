"""Scalable softmax: scores grow with the logarithm of the number of keys (Nakanishi 2025)."""

from dataclasses import replace

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values, upcast
from fairseq_gpam.attention.core.lambdas import no_decay_parameter


@register_mechanism
class ScalableSoftmaxAttention(AffineMechanism):
    """Softmax attention that stays sharp as the number n of keys grows: scores are multiplied by s·log n.

    The weights are proportional to n^(s·z), z = QKᵀ/√D; a row with one key puts its whole weight on that key.
    s is learned for each head of each layer. Only the formula could be confirmed; the initial s = 0.43, the paper's
    fit, is from a public reimplementation (gdevos010/Scalable-Softmax). Our reading: a finite mask bias is not scaled.
    The variant with a learned offset is not provided.
    """

    name = "scalable_softmax"
    formula = "P = softmax(s·log n·QKᵀ/√D + M), n the number of keys visible to a row"
    source = "Nakanishi 2025, arXiv 2501.19399"
    row_sum = "1"
    cost = "1×"
    why_never_neutral = "its sharpness grows with the number of keys at every s > 0"
    options = (Option("scalable_softmax_start", float, 0.43, "the initial s of every head"),)

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.scale = no_decay_parameter(torch.full((site.num_heads,), settings.scalable_softmax_start))

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        sizes = inputs.q.size(-2), inputs.k.size(-2)
        count = inputs.mask.visible_counts(upcast(inputs.q.new_empty(())).expand(sizes))
        factor = (self.scale.to(count.dtype).view(-1, 1, 1) * count.log()).to(inputs.q.dtype)
        return super().forward(replace(inputs, q=inputs.q * factor))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, s {format_values(self.scale)}"
