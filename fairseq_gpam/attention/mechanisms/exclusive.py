"""Exclusive self-attention: the output's component along the token's own value is removed (Zhai 2026)."""

import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, upcast


@register_mechanism
class ExclusiveAttention(AffineMechanism):
    """Softmax self-attention whose output is orthogonal, head by head, to the value of the query's token.

    The weights returned are those of the softmax. Where V is 0, Y is unchanged. It has no parameters and no setting at
    which it is softmax attention. Several public accounts of the paper agree on the formula; no code by the author was
    available.
    """

    name = "exclusive"
    formula = "O = Y − (Y·V) V/|V|² row by row, Y = softmax(QKᵀ/√D + M)·V, V of the query's own position"
    source = "Zhai 2026, arXiv 2603.09078"
    row_sum = "1, before the projection"
    cost = "1×"
    why_never_neutral = "it removes the component along the token's own value at every setting"
    sites = ("encoder", "decoder")
    key_positions = "own"

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        own_values = inputs.v[..., inputs.v.size(-2) - output.size(-2) :, :]
        wide, direction = upcast(output), F.normalize(upcast(own_values), dim=-1)
        return (wide - (wide * direction).sum(dim=-1, keepdim=True) * direction).type_as(output)
