"""Affine-scaled attention: softmax times a factor of the token, plus a uniform part (Bae et al. 2026)."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values, split_heads, upcast

DECAY = 0.9


@register_mechanism
class AffineScaledAttention(AffineMechanism):
    """Softmax weights scaled by α = clamp(0.1·x·w + 0.5, 0, 1) of each token and head, with row sum ᾱ.

    U is uniform over the keys visible to a row.

    ᾱ is a moving average of α (decay 0.9, from 0) over the tokens of all processes: a buffer, saved with the model,
    updated after each forward pass in training and constant in evaluation. The paper leaves open whether heads share it
    and how w starts; here each head has its own, and w starts as nn.Linear's weight.
    """

    name = "affine_scaled"
    formula = "P = α·softmax(QKᵀ/√D + M) + (ᾱ−α)·U, α = clamp(0.1·x·w + 0.5, 0, 1)"
    source = "Bae et al. 2026, arXiv 2602.23057"
    row_sum = "ᾱ"
    cost = "1×, and a mean of the values"
    why_never_neutral = "its row sum starts at 0"
    runs_once = True
    key_positions = "own"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.scale_proj = nn.Linear(site.embed_dim, site.num_heads, bias=False)
        self.average: Tensor
        self.register_buffer("average", torch.zeros(site.num_heads))

    def _apply(self, fn: Any, recurse: bool = True) -> "AffineScaledAttention":
        """Applies a cast to the weights alone: in half precision ᾱ would come to rest before it reaches the mean."""
        super()._apply(fn, recurse)
        self.average = upcast(self.average)
        return self

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        scale = (0.1 * upcast(self.scale_proj(inputs.x)) + 0.5).clamp(0, 1)
        average = self.average.clone()
        if self.training:
            self._update(scale.detach(), inputs)
        alpha = split_heads(scale.type_as(inputs.q), self.site.num_heads)
        return AffineTerms(positive=alpha, uniform=alpha - average.to(alpha.dtype).view(-1, 1, 1))

    def _update(self, scale: Tensor, inputs: AttentionInput) -> None:
        """Moves ᾱ towards the mean of α, B × T × H; padding counts where the queries' own keys tell it."""
        tokens = torch.ones_like(scale[..., :1])
        hidden = None if self.site.name == "cross" else inputs.own_padding
        if hidden is not None:
            tokens = tokens.masked_fill(hidden.unsqueeze(-1), 0)
        sums = torch.cat([scale * tokens, tokens], dim=-1).sum(dim=(0, 1))
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        mean = sums[:-1] / sums[-1].clamp(min=1)
        moved = torch.lerp(mean, self.average.to(mean.dtype), DECAY)
        # A diverged batch, whose update may be skipped, must not stay in the average.
        self.average.copy_(torch.where(moved.isfinite(), moved, self.average.to(moved.dtype)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ᾱ {format_values(self.average)}"
