"""Threshold differential attention: squared cosines above a threshold, minus those of a second view (Huang et al.)."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, split_heads, upcast
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.masks import AttentionMask, zero_hidden


def exceedances(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns relu(q̂·k̂ − τ_i)², τ_i = √(2·ln n_i / D), n_i the keys visible to row i: B × H × T × S, no key masked.

    q̂ and k̂ have length 1; a finite bias of the mask is added to their product. Huang et al. 2026, arXiv 2601.12145,
    with the threshold's factor β at its start, 1, because no gradient reaches it in snap-research/TDA.
    """
    width = q.size(-1)
    cosines = dot_scores(F.normalize(upcast(q), dim=-1) * math.sqrt(width), F.normalize(upcast(k), dim=-1), mask)
    return (cosines - (2 * mask.visible_counts(cosines).log() / width).sqrt()).relu_().square()


@register_mechanism
class ThresholdDifferentialAttention(MatrixMechanism):
    """Two sparse views of the same values, the second one weighted by −λ, 0 ≤ λ ≤ 1; no row is normalised.

    The second view has its own query and key projections, initialised as fairseq's own; λ starts at 0.5, one number for
    each layer. In decoding the second keys are cached too. Only a kernel is public, so how the authors make the second
    view is not known. Before training, most rows of a long sequence find no key above the threshold: such a row gives 0
    and passes no gradient on (`info --mechanism threshold_differential` counts them).
    """

    name = "threshold_differential"
    formula = "P = relu(q̂₁k̂₁ᵀ − τ)² − λ·relu(q̂₂k̂₂ᵀ − τ)², τ = √(2·ln n/D)"
    source = "Huang et al. 2026, arXiv 2601.12145; snap-research/TDA"
    row_sum = "any, often 0"
    cost = "1.5×, and second projections of queries and keys"
    rows_are_independent = True
    why_never_neutral = "its weights are not normalised"
    sites = ("encoder", "decoder")
    key_positions = "all"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        width = site.num_heads * site.query_dim
        self.second_q_proj, self.second_k_proj = nn.Linear(site.embed_dim, width), nn.Linear(site.embed_dim, width)
        for projection in (self.second_q_proj, self.second_k_proj):
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
        self.strength = no_decay_parameter(torch.tensor([0.5]))

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        heads = inputs.q.size(1)
        second_q = inputs.form.query(split_heads(self.second_q_proj(inputs.x), heads))
        second_k = inputs.form.key(split_heads(self.second_k_proj(inputs.x), heads))
        if inputs.past is not None:
            if "second_k" in inputs.past:
                second_k = torch.cat([inputs.past["second_k"], second_k], dim=-2)
            inputs.past["second_k"] = second_k
        q, k = torch.cat([inputs.q, second_q], dim=-1), torch.cat([inputs.k, second_k], dim=-1)
        return super().forward(replace(inputs, q=q, k=k))

    def weights(self, inputs: AttentionInput) -> Tensor:
        """Returns the weights; q and k have both views' channels, side by side."""
        (first_q, second_q), (first_k, second_k) = inputs.q.chunk(2, dim=-1), inputs.k.chunk(2, dim=-1)
        first, second = exceedances(first_q, first_k, inputs.mask), exceedances(second_q, second_k, inputs.mask)
        strength = self.strength.to(first.dtype).clamp(0, 1)
        return zero_hidden(torch.addcmul(first, strength, second, value=-1), inputs.mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, λ {self.strength.item():.3f}"
