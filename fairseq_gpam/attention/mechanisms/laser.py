"""LASER: attention over exp(V), of which the logarithm is taken (Duvvuri & Dhillon 2024)."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.attention.core.masks import hide, zero_rows

ROWS = 16
LARGE = 20.0
"""Values up to this size lose nothing in a product of weights and exponentials, even in single precision: what a weight
below e⁻⁸⁷ would add to a sum is less than e⁻⁴⁷ of it."""


@without_autocast
def weighted_sums(weights: Tensor, values: Tensor) -> Tensor:
    """Returns the sums of B × H × S × D weighted by B × H × T × S; in fp16 the exponentials would overflow."""
    return weights @ values


def log_sum_exp(log_weights: Tensor, values: Tensor) -> Tensor:
    """Returns log Σ_j exp(log P_ij + v_jd), B × H × T × D; log P is B × H × T × S, −inf on hidden keys.

    The authors' listing subtracts the largest of all values first, whether or not a row may see it, so that one large
    later value makes every earlier row overflow. Here each row subtracts the largest of its own terms.
    """
    return torch.logsumexp(log_weights.unsqueeze(-1) + values.unsqueeze(-3), dim=-2)


def by_rows(log_weights: Tensor, values: Tensor) -> Tensor:
    """Returns log_sum_exp of a few rows at a time, whose terms are not kept for the backward pass."""
    blocks = log_weights.split(ROWS, dim=-2)
    if torch.is_grad_enabled() and len(blocks) > 1:
        return torch.cat([checkpoint(log_sum_exp, block, values, use_reentrant=False) for block in blocks], dim=-2)
    return torch.cat([log_sum_exp(block, values) for block in blocks], dim=-2)


@register_mechanism
class LaserAttention(MatrixMechanism):
    """The logarithm of attention over the values' exponentials: the softmax's gradient grows with the values.

    A row with one visible key has that key's value. A row that sees no large value is one product of weights and
    exponentials. The others have S × D terms each: a few rows are computed at a time, and again in the backward pass.
    The weights that are returned are those of the softmax. Attention dropout is refused: a row whose weights are all
    dropped has the logarithm of 0.
    """

    name = "laser"
    formula = "O = log(softmax(QKᵀ/√D + M)·exp(V))"
    source = "Duvvuri & Dhillon 2024, arXiv 2411.03493"
    row_sum = "1, before the logarithm"
    cost = "1×, and an exponential of each value"
    why_never_neutral = "the logarithm of a mean of exponentials is not the mean"

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        if inputs.dropout_p > 0:
            raise ValueError(
                f"--attention-dropout {inputs.dropout_p} is not allowed with --gpam-mechanism laser, which takes the "
                "logarithm of a weighted sum; allowed: 0"
            )
        scores, fully_masked = hide(dot_scores(inputs.q, inputs.k, inputs.mask), inputs.mask)
        log_weights, values = torch.log_softmax(scores, dim=-1), upcast(inputs.v)
        weights, is_large = log_weights.exp(), values.abs() > LARGE
        output = torch.log(weighted_sums(weights, torch.exp(values.masked_fill(is_large, 0.0))))
        if is_large.any():
            sees_large = ((log_weights > -torch.inf) & is_large.any(dim=-1).unsqueeze(-2)).any(dim=-1, keepdim=True)
            output = torch.where(sees_large, by_rows(log_weights, values), output)
        output = zero_rows(output, fully_masked).type_as(inputs.v)
        return output, zero_rows(weights, fully_masked).type_as(inputs.v) if inputs.need_weights else None
