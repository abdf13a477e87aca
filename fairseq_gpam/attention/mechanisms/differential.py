"""Differential attention, first version: two softmax maps for each pair of heads, one subtracted (Ye et al. 2024)."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention
from fairseq_gpam.attention.core.base import AttentionInput, AttentionMechanism, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.masks import AttentionMask
from fairseq_gpam.attention.core.positions import rms_norm


def lambda_init(layer: int) -> float:
    """Returns λ_init = 0.8 − 0.6·exp(−0.3·layer), layers counted from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def join_pairs(heads: Tensor) -> Tensor:
    """Maps B × H × S × D to B × H/2 × S × 2D, neighbouring heads side by side."""
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], dim=-1)


def split_pairs(pairs: Tensor) -> Tensor:
    """Maps B × H/2 × T × 2D to B × H × T × D: the inverse of `join_pairs`."""
    return torch.stack(pairs.chunk(2, dim=-1), dim=2).flatten(1, 2)


@register_mechanism
class DifferentialAttention(AttentionMechanism):
    """H/2 differential heads of query width D and value width 2D: as wide as softmax attention with H heads.

    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init is one number for each layer; its vectors are initialised from
    N(0, 0.1²). RMSNorm (eps 1e-5, one weight vector for all heads) and the factor 1−λ_init follow. The mechanism adds
    4D parameters for λ and 2D for the norm.
    """

    name = "differential"
    formula = "O = (1−λ_init)·RMSNorm((softmax(Q₁K₁ᵀ/√D + M) − λ·softmax(Q₂K₂ᵀ/√D + M))·V), H/2 heads"
    source = "Ye et al. 2024, arXiv 2410.05258; microsoft/unilm Diff-Transformer"
    row_sum = "1−λ, before the norm"
    cost = "1×: twice the maps, half the heads"
    heads_of_a_map = 2
    depends_on_layer = True
    why_never_neutral = "its RMSNorm follows the sum at every λ"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        if site.num_heads % 2:
            raise ValueError(
                f"mechanism {self.name!r} (--gpam-mechanism or --gpam-{site.name}-mechanism) pairs its heads: "
                f"{site.num_heads} heads are not allowed; allowed: an even number"
            )
        self.lambda_init = lambda_init(site.layer)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(site.query_dim) * 0.1) for _ in range(4)
        )
        self.norm_weight = nn.Parameter(torch.ones(2 * site.head_dim))

    def strength(self) -> Tensor:
        """Returns λ, one number, computed in fp32 for half precision."""
        exact = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        first = (self.lambda_q1 * self.lambda_k1).sum(dtype=exact).exp()
        return first - (self.lambda_q2 * self.lambda_k2).sum(dtype=exact).exp() + self.lambda_init

    def check_mask(self, mask: AttentionMask) -> None:
        """Raises ValueError if the mask differs between the heads of a pair."""
        for per_key in (mask.bias, mask.hidden):
            if per_key is not None and per_key.dim() == 4 and per_key.size(1) not in (1, self.site.num_heads // 2):
                raise ValueError("attn_mask with one matrix per head is not allowed with --gpam-mechanism " + self.name)

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        self.check_mask(inputs.mask)
        # Heads 2h and 2h+1 form a pair: eq. 1 of the source, B × H/2 × T × S.
        q, k, strength = inputs.q, inputs.k, self.strength().type_as(inputs.q)
        terms = AffineTerms(negative=strength, negative_q=q[:, 1::2], negative_k=k[:, 1::2])
        pairs = replace(inputs, q=q[:, 0::2], k=k[:, 0::2], v=join_pairs(inputs.v))
        output, weights = affine_attention(pairs, terms, self.backend)
        return self.normed(output), None if weights is None else weights.repeat_interleave(2, dim=1)

    def normed(self, pairs: Tensor) -> Tensor:
        """Returns the pairs' output after the norm and its factor: B × H/2 × T × 2D to B × H × T × D."""
        return split_pairs((1 - self.lambda_init) * rms_norm(pairs, self.norm_weight, 1e-5))

    def distinct_heads(self) -> list[int]:
        return list(range(0, self.site.num_heads, 2))

    def extra_repr(self) -> str:
        with torch.no_grad():
            strength = self.strength().item()
        return f"{super().extra_repr()}, λ {strength:.3f}, λ_init {self.lambda_init:.3f}"
