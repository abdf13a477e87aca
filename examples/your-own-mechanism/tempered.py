"""Tempered attention: softmax attention at a temperature τ."""

from torch import Tensor

from fairseq_gpam.attention import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.base import softmax
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import hide, zero_rows


@register_mechanism
class TemperedAttention(MatrixMechanism):
    """Softmax attention whose scores are divided by τ; τ = 1 is softmax attention."""

    name = "tempered"
    formula = "P = softmax(QKᵀ/(τ√D) + M)"
    source = "an example"
    row_sum = "1"
    cost = "1×"
    options = (
        Option("tempered_tau", float, 2.0, "the temperature τ", check=lambda tau: tau > 0, allowed="a number > 0"),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.tau: float = settings.tempered_tau

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores, fully_masked = hide(dot_scores(inputs.q / self.tau, inputs.k, inputs.mask), inputs.mask)
        return zero_rows(softmax(scores), fully_masked)
