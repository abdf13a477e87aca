"""Softmax attention and its scaled control."""

from __future__ import annotations

from torch import Tensor

from fairseq_gpam.attention.affine import Affine, affine_attention
from fairseq_gpam.attention.base import AttentionMechanism, Settings, Site, register_mechanism
from fairseq_gpam.attention.coefficients import LAMBDA_OPTIONS, build_lambda
from fairseq_gpam.attention.masks import AttentionMask


@register_mechanism
class SoftmaxAttention(AttentionMechanism):
    """Scaled dot-product attention, through the same core as the other members of the affine family."""

    name = "softmax"
    formula = "P = softmax(QKᵀ/√D + M)"
    source = "Vaswani et al. 2017, arXiv 1706.03762, eq. 1"
    row_sum = "1"
    cost = "1×"

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: AttentionMask,
        x: Tensor,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        return affine_attention(q, k, v, mask, Affine(), dropout_p, need_weights, self.backend)


@register_mechanism
class ScaledSoftmaxAttention(AttentionMechanism):
    """(1+λ⁺)·softmax: daGPAM without its negative branch, the control for the factor 1+λ⁺ alone."""

    name = "scaled_softmax"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M)"
    source = "a control of this project"
    row_sum = "1+λ⁺"
    cost = "1×"
    options = LAMBDA_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.lambda_plus = build_lambda("lambda_plus", self.name, site, settings)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: AttentionMask,
        x: Tensor,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        terms = Affine(positive=1 + self.lambda_plus())
        return affine_attention(q, k, v, mask, terms, dropout_p, need_weights, self.backend)
