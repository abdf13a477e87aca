"""HNAS: a learned mixture of doubly normalised and softmax attention (Ding et al. 2020)."""

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, format_values, softmax_weights
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.mechanisms.dnas import dnas_weights


@register_mechanism
class HnasAttention(MatrixMechanism):
    """A mixture of doubly normalised and softmax weights; u = 0 is softmax attention. For encoders only, like DNAS.

    One u for each head, u = sigmoid(θ), is our reading.
    """

    name = "hnas"
    formula = "P = u·DNAS + (1−u)·softmax(QKᵀ/√D + M)"
    source = "Ding et al. 2020, arXiv 2009.14308"
    row_sum = "1"
    cost = "1×, and a second softmax"
    why_never_neutral = "the share u of doubly normalised attention is never 0"
    sites = ("encoder",)
    key_positions = "all"
    options = (
        Option(
            "hnas_share",
            float,
            0.5,
            "the initial value of u, the learned share of doubly normalised attention",
            check=lambda share: 0 < share < 1,
            allowed="a number between 0 and 1, both excluded",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        start = math.log(settings.hnas_share / (1 - settings.hnas_share))
        self.theta = no_decay_parameter(torch.full((site.num_heads,), start))

    def weights(self, inputs: AttentionInput) -> Tensor:
        share, call = torch.sigmoid(self.theta).view(-1, 1, 1), (inputs.q, inputs.k, inputs.mask)
        return share * dnas_weights(*call) + (1 - share) * softmax_weights(*call)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, u {format_values(torch.sigmoid(self.theta))}"
