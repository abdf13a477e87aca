"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.affine import Affine, Coefficient
from fairseq_gpam.attention.base import Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.coefficients import LAMBDA_OPTIONS, build_lambda
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.masks import AttentionMask

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


def dagpam_terms(q: Tensor, negative_q: Tensor, lambda_plus: Coefficient, lambda_minus: Coefficient) -> Affine:
    """Returns the terms of P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), B × H × T × S.

    Shapes: q (Q) and negative_q (Q⁻ = ReLU(Q)W_Q⁻) B × H × T × D; λ⁺ and λ⁻ broadcastable to P. Heo & Choi 2024, arXiv
    2410.15578.
    """
    return Affine(positive=1 + lambda_plus, negative=lambda_minus, q=q, negative_q=negative_q)


class _NegativeQueries(torch.autograd.Function):
    """Q and ReLU(Q)W_Q⁻, head after head: what lies between them stays in a processor's cache.

    Q passes through, so that both of its gradients meet here and are written once, as its projection reads them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, weight)
        ctx.has_bias = bias is not None
        mapped = _rows_first_like(q)
        rows, mapped_rows = q.permute(1, 2, 0, 3), mapped.permute(1, 2, 0, 3)
        positive = q.new_empty(rows.shape[1:])
        for head, matrix in enumerate(weight.transpose(1, 2)):
            torch.clamp_min(rows[head], 0, out=positive)
            out = mapped_rows[head].flatten(0, 1)
            if bias is None:
                torch.mm(positive.flatten(0, 1), matrix, out=out)
            else:
                torch.addmm(bias[head], positive.flatten(0, 1), matrix, out=out)
        return q, mapped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_mapped: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        q, weight = ctx.saved_tensors
        total, grad_weight = _rows_first_like(q), torch.empty_like(weight)
        grad_bias = weight.new_empty(weight.shape[:2]) if ctx.has_bias else None
        rows, passed, upstream_rows, total_rows = (each.permute(1, 2, 0, 3) for each in (q, grad_q, grad_mapped, total))
        positive, upstream, through = (q.new_empty(rows.shape[1:]) for _ in range(3))
        flat_positive, flat_upstream, flat_through = (each.flatten(0, 1) for each in (positive, upstream, through))
        for head, matrix in enumerate(weight):
            torch.clamp_min(rows[head], 0, out=positive)
            upstream.copy_(upstream_rows[head])
            torch.mm(flat_upstream.t(), flat_positive, out=grad_weight[head])
            if grad_bias is not None:
                torch.sum(flat_upstream, dim=0, out=grad_bias[head])
            torch.mm(flat_upstream, matrix, out=flat_through)
            torch.ops.aten.threshold_backward.grad_input(through, positive, 0, grad_input=through)
            torch.add(passed[head], through, out=total_rows[head])
        return total, grad_weight, grad_bias


def _rows_first_like(heads: Tensor) -> Tensor:
    """Returns an empty B × H × T × D that is contiguous as T × B × H × D."""
    bsz, num_heads, length, width = heads.shape
    return heads.new_empty(length, bsz, num_heads, width).permute(1, 2, 0, 3)


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
        q, negative_q = self.both_queries(q)
        return dagpam_terms(q, negative_q, self.lambda_plus(), self.lambda_minus())

    def both_queries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Returns Q and Q⁻ = ReLU(Q)W_Q⁻, both B × H × T × D."""
        projection = self.negative_projection
        is_plain = isinstance(projection, PerHeadLinear) and not (
            projection._forward_hooks or projection._forward_pre_hooks or torch.is_autocast_enabled(q.device.type)
        )
        if not is_plain or q.is_cuda or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return q, projection(torch.relu(q))
        assert isinstance(projection, PerHeadLinear)
        bias = projection.bias
        q, negative_q = _NegativeQueries.apply(
            q, projection.blocks(), None if bias is None else bias.view(projection.num_heads, -1)
        )
        return q, negative_q
