"""Exclusive self-attention: what points along a token's own value is taken out (Zhai 2026)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.affine import AffineTerms
from fairseq_gpam.attention.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.families import AffineMechanism, upcast


def without_own_value(heads: Tensor, own_values: Tensor) -> Tensor:
    """Returns y − (y·v) v/|v|², orthogonal to v; y (`heads`), v (`own_values`) and the result B × H × T × D.

    Zhai 2026, arXiv 2603.09078. A value of length 0 takes nothing out.
    """
    output, direction = upcast(heads), F.normalize(upcast(own_values), dim=-1)
    along = (output * direction).sum(dim=-1, keepdim=True)
    return (output - along * direction).type_as(heads)


@register_mechanism
class ExclusiveAttention(AffineMechanism):
    """Softmax self-attention whose output is orthogonal, head by head, to the value of the token that asks.

    The weights shown are those of the softmax. It has no parameters and no setting at which it is softmax attention.
    The formula is confirmed by several public accounts of the paper, of which no code was at hand.
    """

    name = "exclusive"
    formula = "O = Y − (Y·V) V/|V|² row by row, Y = softmax(QKᵀ/√D + M)·V, V of the query's own position"
    source = "Zhai 2026, arXiv 2603.09078"
    row_sum = "1, before the projection"
    cost = "1×"
    why_never_neutral = "it takes the part along the token's own value away at every setting"
    sites = ("encoder", "decoder")

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return AffineTerms()

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return without_own_value(output, inputs.v[..., inputs.v.size(-2) - output.size(-2) :, :])
