"""Sigmoid attention: each weight depends on its own score only, not on the other keys (Ramapuram et al. 2024)."""

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import zero_hidden


@register_mechanism
class SigmoidAttention(MatrixMechanism):
    """Independent weights in (0, 1), whose sum is near 1 at the start because of the offset −log n.

    In the authors' code n is a constant of the model. Here it is by default the number of keys visible to a row, so
    that padding and step-by-step decoding change nothing; `--gpam-sigmoid-length` sets a constant. The LayerScale and
    the norm of queries and keys that the authors add for large models are not provided.
    """

    name = "sigmoid"
    formula = "P = sigmoid(QKᵀ/√D + M − log n)"
    source = "Ramapuram et al. 2024, arXiv 2409.04431; apple/ml-sigmoid-attention"
    row_sum = "between 0 and n"
    cost = "1×"
    rows_are_independent = True
    why_never_neutral = "its weights are independent of one another"
    options = (
        Option(
            "sigmoid_length",
            int,
            0,
            "the n of the offset −log n: a constant (in the source, the length of the training sequences), or 0 for "
            "the number of keys visible to a row",
            check=lambda length: length >= 0,
            allowed="0 or a whole number of keys",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.length: int | None = settings.sigmoid_length or None

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores = dot_scores(inputs.q, inputs.k, inputs.mask)
        offset = math.log(self.length) if self.length else inputs.mask.visible_counts(scores).log()
        return zero_hidden(torch.sigmoid(scores - offset), inputs.mask)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n {self.length or 'the visible keys'}"
