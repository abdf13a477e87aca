"""NAP, normalised attention pooling: scores normalised to mean 0 and variance 1 in place of probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, format_values, join_heads, split_heads
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.masks import zero_hidden, zero_rows

EPSILON = 1e-3


@register_mechanism
class NapAttention(MatrixMechanism):
    """Normalised scores as weights. The output's variance grows with the number of keys, so a norm follows it.

    Mean and standard deviation, to which 1e-3 is added, are those of the scores that a row sees; a row with one key
    gets b.

    As in the source, GELU acts on the pooled heads and LayerNorm on the output projection; with `layernorm-gelu` both
    come before the projection.
    """

    name = "nap"
    formula = "P = g·(s − mean s)/std s + b, s = QKᵀ; the layer gives LayerNorm(GELU(P·V)·W_O)"
    source = "Richter & Wattenhofer 2020, arXiv 2005.09561; OliverRichter/normalized-attention"
    row_sum = "b·n, before the norm"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights are normalised scores, not probabilities"
    options = (
        Option(
            "nap_output",
            str,
            "gelu-layernorm",
            "what follows the weighted sum: GELU before and LayerNorm after the output projection; LayerNorm and GELU "
            "before it; or nothing",
            choices=("gelu-layernorm", "layernorm-gelu", "none"),
            former_defaults=("layernorm-gelu",),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.gain = no_decay_parameter(torch.ones(site.num_heads))
        self.bias = no_decay_parameter(torch.zeros(site.num_heads))
        self.norm: nn.LayerNorm | None = None
        self.order: str = settings.nap_output
        if self.order == "layernorm-gelu":
            self.norm = nn.LayerNorm(site.num_heads * site.head_dim, EPSILON)
        elif self.order == "gelu-layernorm":
            self.norm = nn.LayerNorm(site.embed_dim, EPSILON)

    def weights(self, inputs: AttentionInput) -> Tensor:
        mask, scores = inputs.mask, dot_scores(inputs.q, inputs.k, inputs.mask, scale=1.0)
        count = mask.visible_counts(scores)
        mean = zero_hidden(scores, mask).sum(dim=-1, keepdim=True) / count
        deviation = zero_hidden(scores - mean, mask)
        variance = deviation.square().sum(dim=-1, keepdim=True) / count
        # Where all scores are equal the numerator is 0; the square root of 0 would have an infinite gradient.
        std = torch.where(variance > 0, variance, 1.0).sqrt()
        return zero_hidden(self.gain.view(-1, 1, 1) * deviation / (std + EPSILON) + self.bias.view(-1, 1, 1), mask)

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        if self.norm is None:
            return output
        if self.order == "gelu-layernorm":
            return F.gelu(output, approximate="tanh")
        # LayerNorm's bias would make fully masked rows nonzero.
        fully_masked = inputs.mask.fully_masked(output.size(-2), inputs.v.size(-2), inputs.v.device)
        pooled = F.gelu(self.norm(join_heads(output)), approximate="tanh")
        return zero_rows(split_heads(pooled, output.size(1)), fully_masked)

    def after_projection(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return self.norm(output) if self.norm is not None and self.order == "gelu-layernorm" else output

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, g {format_values(self.gain)}, b {format_values(self.bias)}"
