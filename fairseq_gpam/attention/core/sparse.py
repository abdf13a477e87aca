"""α-entmax, and the base of the mechanisms that by it give many keys a weight of exactly 0."""

from typing import Any

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores
from fairseq_gpam.attention.core.masks import hide, zero_rows

# Newton's method takes six to twelve steps, halving one for each bit of the result.
MOST_STEPS = 100


class Entmax(torch.autograd.Function):
    """α-entmax of rows of scores: p = (s − τ)₊ᵉ with s = (α−1)·scores, e = 1/(α−1), and τ such that Σp = 1.

    Peters, Niculae & Martins 2019, arXiv 1905.05702; the derivative by α as in Correia et al. 2019, arXiv 1909.00015.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, alpha: Tensor | float) -> Tensor:
        """Returns the weights, … × S (−∞: hidden), for one α > 1 or that of each row, … × 1.

        As with softmax, a row whose greatest score is NaN or infinite is NaN, so that a diverged run is noticed.
        """
        scaled = (scores - scores.amax(dim=-1, keepdim=True)) * (alpha - 1)
        reach = (scaled - _threshold(scaled, alpha)).clamp_(min=0)
        weights = reach.pow_(1 / (alpha - 1))
        weights /= weights.sum(dim=-1, keepdim=True)
        ctx.alpha = None if isinstance(alpha, Tensor) else alpha
        ctx.save_for_backward(weights, *([alpha] if isinstance(alpha, Tensor) else []))
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        weights, *saved = ctx.saved_tensors
        alpha = saved[0] if saved else ctx.alpha
        has_weight = weights.ceil()
        # A key without a weight counts as 1 where 0 would give an infinite power or logarithm.
        positive = weights + (1 - has_weight)
        slope = positive.pow(2 - alpha) * has_weight
        # τ moves so that the sum of the weights stays.
        centred = grad - (slope * grad).sum(dim=-1, keepdim=True) / slope.sum(dim=-1, keepdim=True)
        if not saved:
            return slope * centred, None
        power = 1 / (alpha - 1)
        by_alpha = power * weights * (power - positive.log()) * centred
        return slope * centred, by_alpha.sum(dim=-1, keepdim=True)


def _threshold(scaled: Tensor, alpha: Tensor | float) -> Tensor:
    """Returns τ of rows whose greatest s is 0, to rounding: … × 1.

    It is where the e-norm of (s − τ)₊ is 1. For α ≤ 2 the norm is convex, and Newton's method begun below τ comes from
    below. Above it the interval is halved. A row stops by itself, whatever the other rows are.
    """
    power, smallest = 1 / (alpha - 1), torch.finfo(scaled.dtype).eps
    low = torch.full_like(scaled[..., :1], -1.0)
    halved = torch.as_tensor(alpha > 2)
    halves = bool(halved.any())
    width = 1.0
    # New memory for every result would take longer than the results.
    reach, slope, positive = (torch.empty_like(scaled) for _ in range(3))
    for _ in range(MOST_STEPS):
        torch.sub(scaled, low, out=reach).clamp_(min=0)
        torch.pow(reach, power - 1, out=slope).mul_(torch.ceil(reach, out=positive))
        norm = reach.mul_(slope).sum(dim=-1, keepdim=True) ** (alpha - 1)
        step = (norm - 1) * norm ** (power - 1) / slope.sum(dim=-1, keepdim=True)
        if halves:
            width /= 2
            above = ((scaled - low - width).clamp_(min=0) ** power).sum(dim=-1, keepdim=True) >= 1
            step = torch.where(halved, torch.where(above, width, 0.0), step)
        moves = step > smallest
        low = torch.where(moves, low + step, low)
        if not moves.any() and (not halves or width < smallest):
            break
    return low


class SparseMechanism(MatrixMechanism):
    """Weights P = α-entmax(QKᵀ/√D + M), row by row."""

    row_sum = "1"
    cost = "1×, and 6 to 12 passes over P"
    rows_are_independent = True
    fixed_alpha = 2.0

    def alphas(self, scores: Tensor) -> Tensor | float:
        """Returns the α of every row of the scores, B × H × T × 1, or one for all."""
        return self.fixed_alpha

    def weights(self, inputs: AttentionInput) -> Tensor:
        scores, fully_masked = hide(dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask)
        weights: Tensor = Entmax.apply(scores, self.alphas(scores))
        return zero_rows(weights, fully_masked)
