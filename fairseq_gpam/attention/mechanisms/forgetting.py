"""Forgetting attention: softmax attention with gates that let older keys fade (Lin et al. 2025)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.causal import remembered, require_causal
from fairseq_gpam.attention.core.families import MatrixMechanism, dot_scores, masked_softmax, upcast


@register_mechanism
class ForgettingAttention(MatrixMechanism):
    """Softmax attention with f = sigmoid(x·w + b), one gate for each position and head; f = 1 is softmax attention.

    As in the authors' code, w is initialised from N(0, 0.02²) and b at 0, so that at first each further position halves
    a key's weight. The rest of their "Pro" layer (output gate and norm, norm of queries and keys, shift of keys and
    values) is not provided. Padding has f = 1. In decoding, the sums of log f are cached, one number for each position
    and head.
    """

    name = "forgetting"
    formula = "P = softmax(QKᵀ/√D + M + F), F_ij = Σ_{l=j+1…i} log sigmoid(x_l·w + b)"
    source = "Lin et al. 2025, arXiv 2503.02130; zhixuan-lin/forgetting-transformer"
    row_sum = "1"
    cost = "1×, and one gate for each head and position"
    why_never_neutral = "its gate sigmoid(x·w + b) is never 1"
    sites = ("decoder",)
    key_positions = "all"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.gate_proj = nn.Linear(site.embed_dim, site.num_heads)
        nn.init.normal_(self.gate_proj.weight, std=0.02)
        nn.init.zeros_(self.gate_proj.bias)

    def weights(self, inputs: AttentionInput) -> Tensor:
        require_causal(self.name, inputs)
        scores, sums = dot_scores(inputs.q, inputs.k, inputs.mask), self._sums(inputs)
        # F_ij is the difference of two sums, those up to i and to j.
        scores = scores + sums[..., sums.size(-1) - scores.size(-2) :, None] - sums[..., None, :]
        return masked_softmax(scores, inputs.mask)

    def _sums(self, inputs: AttentionInput) -> Tensor:
        """Returns Σ_{l≤j} log f_l for every key j, B × H × S, and caches them."""
        log_gates = F.logsigmoid(upcast(self.gate_proj(inputs.x))).transpose(1, 2)
        hidden = inputs.own_padding
        if hidden is not None:
            log_gates = log_gates.masked_fill(hidden[:, None, :], 0.0)
        sums = log_gates.cumsum(dim=-1)
        kept = remembered(inputs, "log_gates", self.name)
        if kept is not None:
            sums = torch.cat([kept, sums + kept[..., -1:]], dim=-1)
        if inputs.past is not None:
            inputs.past["log_gates"] = sums
        return sums
