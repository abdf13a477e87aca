"""Cog attention: softmax of the absolute scores, times the signs of the scores (Lv et al. 2024)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism, softmax
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, softmax_weights
from fairseq_gpam.attention.core.masks import hide, zero_rows


@register_mechanism
class CogAttention(MatrixMechanism):
    """Signed weights whose absolute values sum to 1; the first and the last layer of a stack keep softmax.

    Our reading: a mask's finite bias is part of S.
    """

    name = "cog"
    formula = "P = sign(S) ⊙ softmax(|S| + M), S = QKᵀ/√D; softmax in the first and the last layer"
    source = "Lv et al. 2024, arXiv 2411.07176; trestad/CogAttn"
    row_sum = "between −1 and 1"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights carry the signs of the scores"
    options = (
        Option(
            "cog_everywhere", bool, False, "use Cog attention in the first and the last layer too, instead of softmax"
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        if site.num_layers < 3 and not settings.cog_everywhere:
            raise ValueError(
                f"--gpam-mechanism cog keeps softmax in the first and the last layer, and {site.name} attention has "
                f"{site.num_layers} layers: none would be left; allowed: 3 layers or more, or --gpam-cog-everywhere"
            )
        self.depends_on_layer = not settings.cog_everywhere
        self.keeps_softmax = not settings.cog_everywhere and site.layer in (0, site.num_layers - 1)

    def weights(self, inputs: AttentionInput) -> Tensor:
        if self.keeps_softmax:
            return softmax_weights(inputs.q, inputs.k, inputs.mask)
        scores = dot_scores(inputs.q, inputs.k, inputs.mask)
        # Keys are hidden after the absolute value is taken.
        sizes, fully_masked = hide(scores.abs(), inputs.mask)
        return zero_rows(torch.sign(scores) * softmax(sizes), fully_masked)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", softmax here" if self.keeps_softmax else "")
