"""DNAS: doubly normalised attention, over the queries first and then over the keys (Ding et al. 2020)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, register_mechanism
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, masked_softmax
from fairseq_gpam.attention.core.masks import AttentionMask


def dnas_weights(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns P_ij = softmax_j(s_ij − c_j), c_j = log Σ_i exp(s_ij) over the queries i that see key j: B × H × T × T.

    s = QKᵀ/√D + the mask's bias. Queries at padded positions do not count in c. Every weight depends on all queries,
    future ones included, so this is not for decoders. Ding et al. 2020, arXiv 2009.14308.
    """
    scores = dot_scores(q, k, mask)
    if scores.size(-2) != scores.size(-1):
        raise ValueError(f"dnas needs as many queries as keys, not {scores.size(-2)} and {scores.size(-1)}")
    columns = mask.hidden_keys(scores.size(-2), scores.size(-1), scores.device)
    if columns is not None and mask.padding is not None:
        columns = columns | mask.padding[:, None, :, None]
    if columns is not None:
        # Fully masked columns stay unmasked so that their sums are finite; their weights are zeroed below.
        columns = columns & ~columns.all(dim=-2, keepdim=True)
    seen = scores if columns is None else scores.masked_fill(columns, float("-inf"))
    return masked_softmax(scores - torch.logsumexp(seen, dim=-2, keepdim=True), mask)


@register_mechanism
class DnasAttention(MatrixMechanism):
    """Softmax over scores that were first normalised over the queries; for encoders only."""

    name = "dnas"
    formula = "P = softmax_j(s_ij − c_j), c_j = log Σ_i exp(s_ij), s = QKᵀ/√D + M"
    source = "Ding et al. 2020, arXiv 2009.14308"
    row_sum = "1"
    cost = "1×"
    why_never_neutral = "it normalises over the queries first at every setting"
    sites = ("encoder",)
    key_positions = "all"

    def weights(self, inputs: AttentionInput) -> Tensor:
        return dnas_weights(inputs.q, inputs.k, inputs.mask)
