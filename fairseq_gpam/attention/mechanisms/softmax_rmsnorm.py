"""Softmax attention followed by an RMSNorm of each head: a control that isolates the effect of Differential's norm."""

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism
from fairseq_gpam.attention.core.positions import rms_norm


@register_mechanism
class SoftmaxRMSNormAttention(AffineMechanism):
    """Softmax attention and a per-head RMSNorm with one weight vector for all heads."""

    name = "softmax_rmsnorm"
    formula = "O = RMSNorm(softmax(QKᵀ/√D + M)·V), per head"
    source = "a control of this project for Differential (arXiv 2410.05258) and gated attention"
    row_sum = "1, before the norm"
    cost = "1×"
    why_never_neutral = "its RMSNorm follows the sum at every setting"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.norm_weight = nn.Parameter(torch.ones(site.head_dim))

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return rms_norm(output, self.norm_weight, 1e-5)
