"""Integral attention: a softmax of scores averaged over several signals (Kobyzev et al. 2025)."""

import math
from dataclasses import replace

from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism


@register_mechanism
class IntegralAttention(AffineMechanism):
    """Softmax of the mean of G signals, each of them the scores of D/G channels: (1/G)·Σ_g Q_g K_gᵀ/√(D/G).

    The sum over the parts is QKᵀ itself, so this is softmax attention with scores divided by √G, and is computed that
    way. The paper's text and code were not available. The formula and G = 8 come from two independent public
    descriptions, the scale 1/√(D/G) from one of them. The paper keeps softmax in the lower layers, as does
    `softmax@0-2;integral@3-5`. G = 1 is softmax attention.
    """

    name = "integral"
    formula = "P = softmax((1/G)·Σ_g Q_g K_gᵀ/√(D/G) + M) = softmax(QKᵀ/√(D·G) + M)"
    source = "Kobyzev et al. 2025, arXiv 2508.18387; scale and G from public descriptions"
    row_sum = "1"
    cost = "1×"
    why_never_neutral = "G is not trained, so G = 1 would stay softmax attention"
    options = (
        Option(
            "integral_signals",
            int,
            8,
            "the number G of signals; it must divide the head dimension",
            check=lambda count: count > 0,
            allowed="a whole number > 0 that divides the head dimension",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.signals: int = settings.integral_signals
        if site.query_dim % self.signals:
            raise ValueError(
                f"--gpam-integral-signals {self.signals} is not allowed with queries of {site.query_dim} channels "
                f"in a head; allowed: a number that divides {site.query_dim}"
            )

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        return super().forward(replace(inputs, q=inputs.q / math.sqrt(self.signals)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.signals} signals"
