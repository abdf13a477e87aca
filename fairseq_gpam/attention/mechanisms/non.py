"""NON: attention with unnormalised scores as weights, divided by the square root of the number of keys."""

import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import zero_hidden


@register_mechanism
class NonAttention(MatrixMechanism):
    """Scores as weights, followed by GELU as in the source; unlike NAP, without LayerNorm.

    In the authors' code n is the length of the padded sequence, which depends on the batch. Counting the keys that are
    visible to a row is our reading.
    """

    name = "non"
    formula = "P = s/√n, s = QKᵀ/√D; O = GELU(P·V)"
    source = "Richter & Wattenhofer 2020, arXiv 2005.09561; OliverRichter/normalized-attention"
    row_sum = "any"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights are scores, not probabilities"
    options = (
        Option("non_output", str, "gelu", "what follows the weighted sum: GELU or nothing", choices=("gelu", "none")),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.output = settings.non_output

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores = dot_scores(inputs.q, inputs.k, inputs.mask)
        return zero_hidden(scores / inputs.mask.visible_counts(scores).sqrt(), inputs.mask)

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return F.gelu(output, approximate="tanh") if self.output == "gelu" else output
