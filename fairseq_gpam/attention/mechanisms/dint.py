"""DINT: differential attention plus the mean weight that each key gets (Cang et al. 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, apply_weights, register_mechanism
from fairseq_gpam.attention.core.causal import remembered
from fairseq_gpam.attention.core.families import softmax_weights
from fairseq_gpam.attention.core.masks import zero_rows
from fairseq_gpam.attention.mechanisms.differential import DifferentialAttention, join_pairs


@register_mechanism
class DintAttention(DifferentialAttention):
    """Differential attention with λ·G added to every row, where G is the mean row of the first softmax.

    λ, the pairs of heads, the norm and the factor 1−λ_init are those of Differential. Rows sum to 1 because both terms
    have the same λ. The paper's mean over all rows would leak the future into a decoder; there, G is the mean over the
    rows up to the query's own, and their sum is cached. This and the norm are our reading, because the paper's full
    text and code were not available. Padded queries do not count. In cross-attention G would mix target positions, so
    the mechanism is for self-attention only.
    """

    name = "dint"
    formula = "O = (1−λ_init)·RMSNorm((A₁ − λ·A₂ + λ·G)·V), A = softmax(QKᵀ/√D + M), G the mean row of A₁"
    source = "Cang et al. 2025, arXiv 2501.17486"
    row_sum = "1, before the norm"
    cost = "1×: twice the maps, half the heads"
    sites = ("encoder", "decoder")
    key_positions = "all"
    has_fused = False

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        self.check_mask(inputs.mask)
        weights = self.pair_weights(inputs).type_as(inputs.v)
        output = apply_weights(weights, join_pairs(inputs.v), inputs.dropout_p)
        return self.normed(output), weights.repeat_interleave(2, dim=1) if inputs.need_weights else None

    def pair_weights(self, inputs: AttentionInput) -> Tensor:
        """Returns A₁ − λ·A₂ + λ·G, B × H/2 × T × S."""
        first, second = (softmax_weights(inputs.q[:, i::2], inputs.k[:, i::2], inputs.mask) for i in (0, 1))
        strength = self.strength().to(first.dtype)
        weights = first - strength * second + strength * self._mean_rows(first, inputs)
        return zero_rows(weights, inputs.mask.fully_masked(weights.size(-2), weights.size(-1), weights.device))

    def _mean_rows(self, weights: Tensor, inputs: AttentionInput) -> Tensor:
        """Returns G, B × H/2 × 1 × S in the encoder, B × H/2 × T × S under a causal mask, a running mean."""
        shown = inputs.zero_padding(torch.ones_like(weights[..., :1]))
        if self.site.name == "encoder" and not inputs.mask.causal:
            return (weights * shown).sum(dim=-2, keepdim=True) / shown.sum(dim=-2, keepdim=True).clamp(min=1.0)
        # The last column counts the rows.
        rows = torch.cat([weights * shown, shown], dim=-1)
        kept = remembered(inputs, "rows", self.name)
        sums = rows.cumsum(dim=-2)
        if inputs.past is not None:
            if kept is not None:
                before = torch.cat([F.pad(kept, (0, weights.size(-2))), inputs.past["count"]], dim=-1)
                sums = sums + before.unsqueeze(-2)
            inputs.past["rows"], inputs.past["count"] = sums[..., -1, :-1], sums[..., -1, -1:]
        return sums[..., :-1] / sums[..., -1:].clamp(min=1.0)
