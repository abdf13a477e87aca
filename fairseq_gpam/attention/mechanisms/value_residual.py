"""Value residual learning: every layer adds the first layer's values to its own (Zhou et al. 2024)."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.causal import first_layer_values
from fairseq_gpam.attention.core.families import AffineMechanism
from fairseq_gpam.attention.core.lambdas import no_decay_parameter


@register_mechanism
class ValueResidualAttention(AffineMechanism):
    """Softmax self-attention over 0.5·V + 0.5·V⁰, V⁰ the first layer's values; the first layer uses V⁰ alone.

    Gradients flow through V⁰, as in the authors' code.

    The factors are fixed at 0.5, as in the authors' code, or learned for each layer with 0.5 as initial value. The
    factors 1 and 0 give softmax attention. In decoding the first layer's cached values serve all layers.
    """

    name = "value_residual"
    formula = "O = softmax(QKᵀ/√D + M)·(a·V + b·V⁰), V⁰ of the first layer"
    source = "Zhou et al. 2024, arXiv 2410.17897; Zcchill/Value-Residual-Learning"
    row_sum = "1"
    cost = "1×"
    neutral = (("value_residual_own", 1.0), ("value_residual_first", 0.0), ("value_residual_learned", True))
    sites = ("encoder", "decoder")
    needs_every_layer = True
    key_positions = "own"
    options = (
        Option(
            "value_residual_own", float, 0.5, "the factor a of a layer's own values, or its initial value if learned"
        ),
        Option("value_residual_first", float, 0.5, "the factor b of the first layer's values, or its initial value"),
        Option("value_residual_learned", bool, False, "learn a and b for each layer"),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.fixed: tuple[float, float] = (settings.value_residual_own, settings.value_residual_first)
        self.factors: nn.Parameter | None = None
        if settings.value_residual_learned and site.layer > 0:
            self.factors = no_decay_parameter(torch.tensor(self.fixed))

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        first_values = first_layer_values(self.name, self.site, inputs.v)
        if self.site.layer == 0:
            return super().forward(inputs)
        factor, first_factor = self.fixed if self.factors is None else self.factors.unbind()
        return super().forward(replace(inputs, v=factor * inputs.v + first_factor * first_values))

    def extra_repr(self) -> str:
        factor, first_factor = self.fixed if self.factors is None else self.factors.tolist()
        return f"{super().extra_repr()}, a {factor:.3f}, b {first_factor:.3f}"
