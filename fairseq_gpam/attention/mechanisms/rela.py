"""ReLA: rectified scores as weights, followed by a gated RMSNorm (Zhang, Titov & Sennrich 2021)."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, join_heads, split_heads, upcast
from fairseq_gpam.attention.core.masks import zero_hidden
from fairseq_gpam.attention.core.positions import rms_norm


def gated_rms_norm(heads: Tensor, scale: Tensor, gate: Tensor, eps: float = 1e-8) -> Tensor:
    """Returns RMSNorm(o)·scale·sigmoid(gate·o), o the joined heads: B × H × T × D; scale and gate H·D."""
    joined = join_heads(heads)
    # A row of zeros gives no gradient to weights or values, but the norm's gradient 1/√eps would overflow fp16.
    joined = joined.masked_fill(joined.eq(0).all(dim=-1, keepdim=True), 0)
    gated = rms_norm(upcast(joined), scale, eps) * torch.sigmoid(upcast(gate * joined))
    return split_heads(gated.type_as(heads), heads.size(1))


@register_mechanism
class RelaAttention(MatrixMechanism):
    """Sparse weights without a fixed sum, then a gated RMSNorm over the joined heads, initialised as in the source.

    Our reading: a mask's finite bias is part of the score.
    Training amplifies rounding errors; "Half precision" in docs/speed.md shows the effect in fp16 and bf16.
    """

    name = "rela"
    formula = "P = ReLU(QKᵀ/√D); O = RMSNorm(P·V)·scale ⊙ sigmoid(gate ⊙ P·V), heads joined"
    source = "Zhang, Titov & Sennrich 2021, arXiv 2104.07012; bzhangGo/zero"
    row_sum = "≥ 0, before the norm"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights are rectified scores, not probabilities"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        width = site.num_heads * site.head_dim
        self.norm_scale = nn.Parameter(torch.ones(width))
        bound = math.sqrt(3 / width)
        self.norm_gate = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def weights(self, inputs: AttentionInput) -> Tensor:
        return zero_hidden(torch.relu(dot_scores(inputs.q, inputs.k, inputs.mask)), inputs.mask)

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return gated_rms_norm(output, self.norm_scale, self.norm_gate)
