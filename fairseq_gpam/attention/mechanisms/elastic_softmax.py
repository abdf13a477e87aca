"""Elastic softmax: every weight is lowered by a learned share of 1/n and cut at 0 (Fu et al. 2026)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, format_values, softmax_weights
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.masks import zero_hidden


@register_mechanism
class ElasticSoftmaxAttention(MatrixMechanism):
    """Softmax weights above a threshold of −τ/n, lowered by it, n the visible keys; τ = 0 is softmax attention.

    τ is learned for each head from −1, the paper's value, at which a row that sees one key is 0; the authors' second
    file starts at −0.5 because −1 learns slowly. The rest of their layer, a learned bias for each distance, is not
    provided; rotary positions are (`--gpam-position rotary`).
    """

    name = "elastic_softmax"
    formula = "P = relu(softmax(QKᵀ/√D + M) + τ/n)"
    source = "Fu et al. 2026, arXiv 2601.00919; Fzkuji/flash-lazy-attention"
    row_sum = "between 0 and 1 for −1 ≤ τ ≤ 0"
    rows_are_independent = True
    cost = "1×"
    neutral = (("elastic_tau", 0.0),)
    options = (Option("elastic_tau", float, -1.0, "the initial τ of every head"),)

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.tau = no_decay_parameter(torch.full((site.num_heads,), settings.elastic_tau))

    def weights(self, inputs: AttentionInput) -> Tensor:
        weights = softmax_weights(inputs.q, inputs.k, inputs.mask)
        share = self.tau.to(weights.dtype).view(-1, 1, 1) / inputs.mask.visible_counts(weights)
        # A τ above 0 would give hidden keys a weight, so the mask applies again.
        return zero_hidden((weights + share).relu_(), inputs.mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, τ {format_values(self.tau)}"
