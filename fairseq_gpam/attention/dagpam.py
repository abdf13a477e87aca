"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.affine import Affine, Coefficient
from fairseq_gpam.attention.base import Option, Settings, Site, may_be_bypassed, register_mechanism
from fairseq_gpam.attention.coefficients import LAMBDA_OPTIONS, build_lambda
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.fused import rows_first
from fairseq_gpam.attention.masks import AttentionMask
from fairseq_gpam.attention.products import linear, product

# Elements of one head's queries, of all sentences, from which on a loop over the heads is faster than one product.
WORTH_A_LOOP = 2**15

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


def dagpam_terms(negative_q: Tensor, lambda_plus: Coefficient, lambda_minus: Coefficient) -> Affine:
    """Returns the terms of P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), B × H × T × S.

    Shapes: negative_q (Q⁻ = ReLU(Q)W_Q⁻) B × H × T × D; λ⁺ and λ⁻ broadcastable to P. Heo & Choi 2024, arXiv
    2410.15578.
    """
    return Affine(positive=1 + lambda_plus, negative=lambda_minus, negative_q=negative_q)


class _BothQueries(torch.autograd.Function):
    """Q and ReLU(Q)W_Q⁻, B × H × 2T × D, head after head: what lies between them stays in a processor's cache.

    Both gradients of Q meet here, and are written once, as its projection reads them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, weight)
        ctx.has_bias = bias is not None
        bsz, heads, length, width = q.shape
        queries = q.new_empty(bsz, heads, 2, length, width)
        rows, destination = q.permute(1, 2, 0, 3), queries.permute(1, 2, 3, 0, 4)
        positive = q.new_empty(rows.shape[1:])
        for head, matrix in enumerate(weight):
            destination[head, 0] = rows[head]
            torch.clamp_min(rows[head], 0, out=positive)
            destination[head, 1] = linear(positive, matrix, None if bias is None else bias[head])
        return queries.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_queries: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        q, weight = ctx.saved_tensors
        bsz, heads, length, width = q.shape
        grad_weight = torch.empty_like(weight)
        grad_bias = weight.new_empty(heads, width) if ctx.has_bias else None
        total = rows_first(q, length)
        rows, total_rows = q.permute(1, 2, 0, 3), total.permute(1, 2, 0, 3)
        upstream_rows = grad_queries.unflatten(2, (2, length)).permute(1, 2, 3, 0, 4)
        positive, upstream = (q.new_empty(length, bsz, width) for _ in range(2))
        flat_positive, flat_upstream = positive.flatten(0, 1), upstream.flatten(0, 1)
        for head, matrix in enumerate(weight):
            torch.clamp_min(rows[head], 0, out=positive)
            upstream.copy_(upstream_rows[head, 1])
            grad_weight[head] = product(flat_upstream.t(), flat_positive)
            if grad_bias is not None:
                torch.sum(flat_upstream, dim=0, out=grad_bias[head])
            through = product(flat_upstream, matrix).view(positive.shape)
            torch.ops.aten.threshold_backward.grad_input(through, positive, 0, grad_input=through)
            torch.add(upstream_rows[head, 0], through, out=total_rows[head])
        return total, grad_weight, grad_bias


class PerHeadLinear(nn.Linear):
    """A D × D linear map of its own for each head; the weight is (H·D) × D, the blocks of the heads stacked."""

    def __init__(self, head_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(head_dim, num_heads * head_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × T × D to the same shape."""
        bsz, _, length, _ = heads.shape
        # Queries lie in memory as T × B × H × D: for each head, T·B rows that need no copy.
        rows = heads.permute(1, 2, 0, 3).reshape(self.num_heads, length * bsz, self.head_dim)
        transposed = self.blocks().transpose(1, 2)
        if self.bias is None:
            mapped = torch.bmm(rows, transposed)
        else:
            mapped = torch.baddbmm(self.bias.view(self.num_heads, 1, self.head_dim), rows, transposed)
        return mapped.view(self.num_heads, length, bsz, self.head_dim).permute(2, 0, 1, 3)

    def blocks(self) -> Tensor:
        """Returns the map of each head, H × D (out) × D (in)."""
        return self.weight.view(self.num_heads, self.head_dim, self.head_dim)


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
    """

    name = "dagpam"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax((ReLU(Q)W_Q⁻)Kᵀ/√D + M)"
    source = "Heo & Choi 2024, arXiv 2410.15578"
    row_sum = "1+λ⁺−λ⁻"
    cost = "1.5×"
    options = DAGPAM_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.lambda_plus = build_lambda("lambda_plus", self.name, site, settings)
        self.lambda_minus = build_lambda("lambda_minus", self.name, site, settings)
        self.negative_projection = build_negative_projection(site, settings)

    def terms(self, q: Tensor, k: Tensor, mask: AttentionMask, x: Tensor) -> Affine:
        lambdas = (self.lambda_plus(), self.lambda_minus())
        projection = self.negative_projection
        if not self._maps_heads_in_turn(projection, q):
            return dagpam_terms(projection(torch.relu(q)), *lambdas)
        bias = None if projection.bias is None else projection.bias.view(projection.num_heads, -1)
        queries = _BothQueries.apply(q, projection.blocks(), bias)
        terms = dagpam_terms(queries[:, :, q.size(2) :], *lambdas)
        return dataclasses.replace(terms, queries=queries)

    @staticmethod
    def _maps_heads_in_turn(projection: nn.Linear, q: Tensor) -> TypeGuard[PerHeadLinear]:
        """Whether W_Q⁻ is applied head after head: it may be, and the queries are many."""
        if not isinstance(projection, PerHeadLinear) or not may_be_bypassed(projection, q):
            return False
        return q[:, 0].numel() >= WORTH_A_LOOP
