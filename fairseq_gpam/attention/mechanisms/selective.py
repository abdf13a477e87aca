"""Selective attention: a token may lower the weight of earlier tokens for all that follow (Leviathan et al. 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.causal import earlier_keys, remembered, require_causal
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, masked_softmax


def selections(scores: Tensor, padding: Tensor | None, own_hidden: Tensor | None) -> Tensor:
    """Returns S_ij = relu(s_ij) of head 0 for keys j before i, except the first key; 0 elsewhere: B × T × S.

    Shapes: scores (s) B × H × T × S; padding B × S and own_hidden B × T mark padded keys and padded queries, which are
    not selected and select nothing. Leviathan, Kalman & Matias 2024, arXiv 2410.02703, section 3.
    """
    selected = torch.relu(scores[:, 0])
    allowed = earlier_keys(selected)
    if padding is None:
        allowed = allowed & (torch.arange(selected.size(-1), device=selected.device) > 0)
    else:
        visible = ~padding
        first = visible & (visible.cumsum(dim=-1) == 1)
        allowed = allowed & (visible & ~first)[:, None, :]
    if own_hidden is not None:
        allowed = allowed & ~own_hidden[:, :, None]
    return selected.masked_fill(~allowed, 0.0)


@register_mechanism
class SelectiveAttention(MatrixMechanism):
    """Softmax attention where a token may lower the scores of earlier keys for all later tokens, in all heads alike.

    A token selects earlier keys by the positive scores of head 0, but neither itself nor the first token (the paper's
    <BOS>). There are no parameters. Decoding caches the accumulated selections, one number for each position. The
    paper's pruning of the key cache by these selections is not provided.
    """

    name = "selective"
    formula = "P = softmax(QKᵀ/√D + M − F), F_ij = Σ_{l<i} relu(s_lj), s of head 0, j < l, not the first key"
    source = "Leviathan, Kalman & Matias 2024, arXiv 2410.02703"
    row_sum = "1"
    cost = "1×, and a running sum of head 0's scores"
    why_never_neutral = "it has no options"
    sites = ("decoder",)
    key_positions = "all"

    def weights(self, inputs: AttentionInput) -> Tensor:
        require_causal(self.name, inputs)
        scores = dot_scores(inputs.q, inputs.k, inputs.mask)
        kept = remembered(inputs, "selected", self.name)
        selected = selections(scores, inputs.mask.padding, inputs.own_padding)
        if kept is not None:
            before = F.pad(kept, (0, selected.size(-2)))[:, None, :]
            selected = torch.cat([before, selected], dim=-2).cumsum(dim=-2)
        else:
            selected = F.pad(selected.cumsum(dim=-2), (0, 0, 1, 0))
        if inputs.past is not None:
            inputs.past["selected"] = selected[:, -1]
        return masked_softmax(scores - selected[:, None, :-1], inputs.mask)
