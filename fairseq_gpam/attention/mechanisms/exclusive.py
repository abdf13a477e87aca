"""Exclusive self-attention: the output's component along the token's own value is removed (Zhai 2026)."""

import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, upcast


def without_own_value(heads: Tensor, own_values: Tensor) -> Tensor:
    """Returns y − (y·v) v/|v|², orthogonal to v; y (`heads`), v (`own_values`) and the result B × H × T × D.

    Where v = 0, y is unchanged. Zhai 2026, arXiv 2603.09078.
    """
    output, direction = upcast(heads), F.normalize(upcast(own_values), dim=-1)
    along = (output * direction).sum(dim=-1, keepdim=True)
    return (output - along * direction).type_as(heads)


@register_mechanism
class ExclusiveAttention(AffineMechanism):
    """Softmax self-attention whose output is orthogonal, head by head, to the value of the query's token.

    The weights returned are those of the softmax. It has no parameters and no setting at which it is softmax attention.
    Several public accounts of the paper agree on the formula; no code by the author was available.
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
        return without_own_value(output, inputs.v[..., inputs.v.size(-2) - output.size(-2) :, :])
