"""Talking heads: scores and weights are mixed across the heads (Shazeer et al. 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, masked_softmax, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.attention.core.masks import AttentionMask


def talking_heads_maps(q: Tensor, k: Tensor, mask: AttentionMask, mix_scores: Tensor) -> Tensor:
    """Returns softmax(Σ_f L_gf·S_f + M), S = QKᵀ/√D: B × H × T × S, before the second mixture.

    `mix_scores` (L) is H × H. The mask is added after the scores are mixed. Shazeer et al. 2020,
    arXiv 2003.02436, section 4.
    """
    scores = upcast(torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-2, -1)))
    mixed = mix_heads(scores, mix_scores)
    if mask.bias is not None:
        mixed = mixed + mask.bias.to(mixed.dtype)
    return masked_softmax(mixed, mask)


@without_autocast
def mix_heads(maps: Tensor, mix_weights: Tensor) -> Tensor:
    """Returns Σ_g W_hg·maps_g, B × H × T × S, in the maps' precision; `mix_weights` (W) is H × H."""
    return torch.einsum("hg,bgts->bhts", mix_weights.to(maps.dtype), maps)


@register_mechanism
class TalkingHeadsAttention(MatrixMechanism):
    """Softmax attention with two mixtures of the heads, both initialised at the identity, which is softmax attention.

    Attention dropout acts before the second mixture, as in the source, or after it, on P itself, as it does in all
    other mechanisms.
    """

    name = "talking_heads"
    formula = "P = W·softmax(L·QKᵀ/√D + M), L and W over the heads"
    source = "Shazeer et al. 2020, arXiv 2003.02436; initialising at the identity is our choice"
    row_sum = "Σ_g W_hg"
    rows_are_independent = True
    cost = "1×, and two mixtures of H matrices"
    neutral = ()
    options = (
        Option(
            "talking_heads_dropout",
            str,
            "before",
            "whether attention dropout acts before or after the second mixture",
            choices=("before", "after"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.mix_scores = nn.Parameter(torch.eye(site.num_heads))
        self.mix_weights = nn.Parameter(torch.eye(site.num_heads))
        self.drops_first: bool = settings.talking_heads_dropout == "before"

    def weights(self, inputs: AttentionInput) -> Tensor:
        return mix_heads(talking_heads_maps(inputs.q, inputs.k, inputs.mask, self.mix_scores), self.mix_weights)

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        if inputs.dropout_p == 0 or not self.drops_first:
            return super().forward(inputs)
        maps = talking_heads_maps(inputs.q, inputs.k, inputs.mask, self.mix_scores)
        dropped = mix_heads(F.dropout(maps, inputs.dropout_p), self.mix_weights).type_as(inputs.v)
        weights = mix_heads(maps, self.mix_weights).type_as(inputs.v) if inputs.need_weights else None
        return torch.matmul(dropped, inputs.v), weights
