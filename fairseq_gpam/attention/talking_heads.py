"""Talking heads: scores and weights are mixed over the heads (Shazeer et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.base import AttentionInput, Settings, Site, register_mechanism, softmax
from fairseq_gpam.attention.families import MatrixMechanism, hide, upcast, zero_blind
from fairseq_gpam.attention.masks import AttentionMask


def talking_heads_weights(q: Tensor, k: Tensor, mask: AttentionMask, mix_scores: Tensor, mix_weights: Tensor) -> Tensor:
    """Returns P_h = Σ_g W_hg·softmax(Σ_f L_gf·S_f + M), S = QKᵀ/√D: B × H × T × S.

    `mix_scores` (L) and `mix_weights` (W) are H × H. The mask is added after the scores are mixed. Shazeer et al. 2020,
    arXiv 2003.02436, section 4.
    """
    scores = upcast(torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-2, -1)))
    mixed = torch.einsum("gf,bfts->bgts", mix_scores.to(scores.dtype), scores)
    if mask.bias is not None:
        mixed = mixed + mask.bias.to(mixed.dtype)
    hidden, sighted = hide(mixed, mask)
    weights = torch.einsum("hg,bgts->bhts", mix_weights.to(mixed.dtype), softmax(hidden))
    return zero_blind(weights, sighted)


@register_mechanism
class TalkingHeadsAttention(MatrixMechanism):
    """Softmax attention whose heads hear one another; both mixtures start at the identity, softmax attention."""

    name = "talking_heads"
    formula = "P = W·softmax(L·QKᵀ/√D + M), L and W over the heads"
    source = "Shazeer et al. 2020, arXiv 2003.02436; the start at the identity is ours"
    row_sum = "Σ_g W_hg"
    cost = "1×, and two mixtures of H matrices"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.mix_scores = nn.Parameter(torch.eye(site.num_heads))
        self.mix_weights = nn.Parameter(torch.eye(site.num_heads))

    def weights(self, inputs: AttentionInput) -> Tensor:
        return talking_heads_weights(inputs.q, inputs.k, inputs.mask, self.mix_scores, self.mix_weights)
