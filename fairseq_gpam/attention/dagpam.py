"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.affine import AffineTerms, Coefficient
from fairseq_gpam.attention.base import AttentionInput, Option, Settings, Site, may_be_bypassed, register_mechanism
from fairseq_gpam.attention.coefficients import LAMBDA_OPTIONS, build_lambda
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.fused import QueryMap

DAGPAM_OPTIONS = (
    *LAMBDA_OPTIONS,
    Option(
        "negative_projection",
        str,
        "head",
        "one W_Q⁻ (head dimension squared) for each head, or one shared by the heads of a layer",
        choices=("head", "shared"),
    ),
    Option("negative_bias", bool, False, "W_Q⁻ has a bias"),
    Option("negative_init", str, "xavier", "how W_Q⁻ starts", choices=("xavier", "zero", "minus-identity")),
)


def dagpam_terms(negative_q: Tensor | QueryMap, lambda_plus: Coefficient, lambda_minus: Coefficient) -> AffineTerms:
    """Returns the terms of P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), B × H × T × S.

    Shapes: negative_q (Q⁻ = ReLU(Q)W_Q⁻, or how it is made) B × H × T × D; λ⁺ and λ⁻ broadcastable to P. Heo & Choi
    2024, arXiv 2410.15578.
    """
    return AffineTerms(positive=1 + lambda_plus, negative=lambda_minus, negative_q=negative_q)


def _negative_queries(q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ReLU(Q)W_Q⁻, B × H × T × D."""
    return _heads(_per_head(torch.relu(q), weight.transpose(1, 2), bias), q)


def _both_queries_backward(
    q: Tensor, grad_queries: Tensor, grad_q: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Writes both branches' gradients of Q to `grad_q` at once; returns those of W_Q⁻ and its bias."""
    upstream, mapped_upstream = grad_queries.chunk(2, dim=2)
    rows, positive = _rows(mapped_upstream), torch.relu(q)
    through = _heads(torch.bmm(rows, weight), q)
    torch.add(upstream, torch.ops.aten.threshold_backward(through, positive, 0), out=grad_q)
    return torch.bmm(rows.transpose(1, 2), _rows(positive)), None if bias is None else rows.sum(dim=1)


def _rows(heads: Tensor) -> Tensor:
    """Returns B × H × T × D as H × (T·B) × D: what fairseq's projections made needs no copy."""
    return heads.permute(1, 2, 0, 3).flatten(1, 2)


def _heads(rows: Tensor, like: Tensor) -> Tensor:
    """Returns H × (T·B) × D as B × H × T × D, as many as `like` has."""
    bsz, heads, length, width = like.shape
    return rows.view(heads, length, bsz, width).permute(2, 0, 1, 3)


def _per_head(heads: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """Returns B × H × T × D times a matrix for each head, plus a bias for each head, as H × (T·B) × D."""
    rows = _rows(heads)
    return torch.bmm(rows, matrices) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, matrices)


class _BothQueries(torch.autograd.Function):
    """Q and ReLU(Q)W_Q⁻, B × H × 2T × D; both gradients of Q are written once."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, weight, bias)
        return torch.cat([q, _negative_queries(q, weight, bias)], dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_queries: Tensor) -> tuple[Tensor | None, ...]:
        q, weight, bias = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        return grad_q, *_both_queries_backward(q, grad_queries, grad_q, weight, bias)


class PerHeadLinear(nn.Linear):
    """A D × D linear map of its own for each head; the weight is (H·D) × D, the blocks of the heads stacked."""

    def __init__(self, head_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(head_dim, num_heads * head_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × T × D to the same shape."""
        return _heads(_per_head(heads, self.blocks().transpose(1, 2), self.head_bias()), heads)

    def blocks(self) -> Tensor:
        """Returns the map of each head, H × D (out) × D (in)."""
        return self.weight.view(self.num_heads, self.head_dim, self.head_dim)

    def head_bias(self) -> Tensor | None:
        """Returns the bias of each head, H × D."""
        return None if self.bias is None else self.bias.view(self.num_heads, self.head_dim)


def build_negative_projection(site: Site, settings: Settings) -> nn.Linear:
    """Builds W_Q⁻ with the initial values that `--gpam-negative-init` names; a bias starts at 0."""
    head_dim, bias = site.head_dim, settings.negative_bias
    projection: nn.Linear
    if settings.negative_projection == "shared":
        projection = nn.Linear(head_dim, head_dim, bias=bias)
    else:
        projection = PerHeadLinear(head_dim, site.num_heads, bias)
    with torch.no_grad():
        for block in projection.weight.view(-1, head_dim, head_dim):
            if settings.negative_init == "xavier":
                nn.init.xavier_uniform_(block)
            elif settings.negative_init == "zero":
                nn.init.zeros_(block)
            else:
                nn.init.eye_(block).neg_()
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection


@register_mechanism
class DualGPAMAttention(AffineMechanism):
    """Two softmax branches over the same keys and values, the second one subtracted.

    Rows sum to 1+λ⁺−λ⁻, entries lie in [−λ⁻, 1+λ⁺]; λ⁺ = λ⁻ = 0 is softmax attention. What the paper leaves open (the
    λ's scope, start and bound, W_Q⁻ per head or shared, its bias and start) are options.

    Reviews of the paper report 0.1–0.84 % more parameters. On its models W_Q⁻ shared by the heads adds 0.12–0.80 %, one
    for each head 0.94–3.2 %; neither is proven to be the authors'. `info --arch` prints which one a model has.
    """

    name = "dagpam"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax((ReLU(Q)W_Q⁻)Kᵀ/√D + M)"
    source = "Heo & Choi 2024, arXiv 2410.15578"
    row_sum = "1+λ⁺−λ⁻"
    cost = "1.5×"
    neutral = (("lambda", "trainable"), ("lambda_max", None), ("lambda_plus", 0.0), ("lambda_minus", 0.0))
    options = DAGPAM_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.lambda_plus = build_lambda("lambda_plus", self.name, site, settings)
        self.lambda_minus = build_lambda("lambda_minus", self.name, site, settings)
        self.negative_projection = build_negative_projection(site, settings)

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        lambdas = (self.lambda_plus(), self.lambda_minus())
        projection = self.negative_projection
        # The reference's gradients are autograd's own.
        is_reference = self.backend == "reference"
        if is_reference or not isinstance(projection, PerHeadLinear) or not may_be_bypassed(projection, inputs.q):
            return dagpam_terms(projection(torch.relu(inputs.q)), *lambdas)
        parameters = (projection.blocks(), projection.head_bias())
        query_map = QueryMap(
            _negative_queries, _both_queries_backward, lambda q: _BothQueries.apply(q, *parameters), parameters
        )
        return dagpam_terms(query_map, *lambdas)
