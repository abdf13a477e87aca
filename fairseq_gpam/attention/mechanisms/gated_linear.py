"""Gated linear attention: a state of D × D numbers that fades channel by channel (Yang et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import (
    AttentionInput,
    AttentionMechanism,
    Settings,
    Site,
    apply_weights,
    register_mechanism,
)
from fairseq_gpam.attention.core.causal import new_positions_hidden, require_causal
from fairseq_gpam.attention.core.families import refuse_fused, rms_norm, split_heads, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast

CHUNK = 16
RANK = 16
TEMPERATURE = 16.0


def decayed_products(q: Tensor, k: Tensor, q_sums: Tensor, k_sums: Tensor, offset: int) -> Tensor:
    """Returns w_ij = Σ_d q_id k_jd exp(c_id − c_jd) for j ≤ i + offset, 0 elsewhere: B × H × T × S.

    Shapes: q and its c (`q_sums`, sums of log α up to each position) B × H × T × D; k and its c (`k_sums`)
    B × H × S × D. No exponent is above 0.
    """
    seen = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=q.device).tril(offset)[..., None]
    exponents = (q_sums.unsqueeze(-2) - k_sums.unsqueeze(-3)).masked_fill(~seen, float("-inf"))
    return torch.einsum("bhid,bhjd,bhijd->bhij", q, k, exponents.exp())


@without_autocast
def gated_linear_weights(q: Tensor, k: Tensor, log_decay: Tensor) -> Tensor:
    """Returns the P with which `gated_linear_sums` gives P·V: B × H × T × T, computed a few rows at a time."""
    sums = log_decay.cumsum(dim=-2)
    rows = [
        decayed_products(q[..., start : start + CHUNK, :], k, sums[..., start : start + CHUNK, :], sums, start)
        for start in range(0, q.size(-2), CHUNK)
    ]
    return torch.cat(rows, dim=-2)


@without_autocast
def gated_linear_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns o_t = q_t S_t, S_t = Diag(α_t) S_{t−1} + k_tᵀ v_t, and the last state.

    Shapes: q, k, v, o and log α (`log_decay`) B × H × T × D; the state S B × H × D × D, zero before the first
    position if None. Yang et al. 2023, arXiv 2312.06635, eq. 3, computed in chunks as in section 4.
    """
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.size(-1), v.size(-1))
    outputs = []
    for start in range(0, q.size(-2), CHUNK):
        new_q, new_k, new_v, decay = (part[..., start : start + CHUNK, :] for part in (q, k, v, log_decay))
        sums = decay.cumsum(dim=-2)
        inside = decayed_products(new_q, new_k, sums, sums, 0)
        outputs.append((new_q * sums.exp()) @ state + inside @ new_v)
        last = sums[..., -1:, :]
        state = last.exp().transpose(-2, -1) * state + (new_k * (last - sums).exp()).transpose(-2, -1) @ new_v
    return torch.cat(outputs, dim=-2), state


@register_mechanism
class GatedLinearAttention(AttentionMechanism):
    """Causal linear attention without a normaliser, whose state decays by a gate for each channel.

    α = sigmoid(x W₁W₂ + b)^(1/16), W₁W₂ of rank 16, as in the authors' code. The output of each head goes through
    RMSNorm (eps 1e-5, one weight vector for all heads) and a gate silu(x W_r) without a bias, as in
    fla-org/flash-linear-attention. The authors' first code, berlino/gated_linear_attention, has a LayerNorm without
    weights, gives W_r a bias, and initialises W₁ and W₂ by Xavier with gain 2^(−5/2); here all new projections are
    initialised as nn.Linear. Queries and keys have the width of fairseq's projections, twice that in either code. In
    decoding only the state is cached, D × D numbers for each head. Weights can be negative.
    """

    name = "gated_linear"
    formula = "O = RMSNorm(q_t S_t/√D) ⊙ silu(x W_r), S_t = Diag(α_t) S_{t−1} + k_tᵀv_t, α = sigmoid(x W₁W₂+b)^(1/16)"
    source = "Yang et al. 2023, arXiv 2312.06635; berlino/gated_linear_attention"
    row_sum = "any, before the norm"
    cost = "D·(T+S) instead of T·S; D× with attention dropout"
    why_never_neutral = "its weights are not normalised"
    sites = ("decoder",)
    key_positions = "all"
    caches_keys = False

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        refuse_fused(self.name, settings)
        self.decay_down = nn.Linear(site.embed_dim, RANK, bias=False)
        self.decay_up = nn.Linear(RANK, site.num_heads * site.query_dim)
        self.gate_proj = nn.Linear(site.embed_dim, site.num_heads * site.head_dim, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(site.head_dim))

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        require_causal(self.name, inputs)
        if inputs.mask.bias is not None:
            raise ValueError(
                "a bias in attn_mask is not allowed with --gpam-mechanism gated_linear, which has no scores"
            )
        if inputs.q.size(-2) != inputs.k.size(-2):
            raise ValueError(
                f"--gpam-mechanism gated_linear is not allowed with {inputs.k.size(-2)} keys for {inputs.q.size(-2)} "
                "queries; allowed: one key and value for each query"
            )
        past = inputs.past
        if past is not None and (inputs.need_weights or inputs.dropout_p > 0):
            raise ValueError(
                "weights and attention dropout are not allowed while --gpam-mechanism gated_linear decodes step by "
                "step: no key is cached; allowed: a full forward pass"
            )
        q, k, v = upcast(inputs.q) * inputs.q.size(-1) ** -0.5, upcast(inputs.k), upcast(inputs.v)
        log_decay = F.logsigmoid(upcast(self.decay_up(self.decay_down(inputs.x)))) / TEMPERATURE
        log_decay = split_heads(log_decay, q.size(1))
        hidden = new_positions_hidden(inputs)
        if hidden is not None:
            k, log_decay = (part.masked_fill(hidden[:, None, :, None], 0.0) for part in (k, log_decay))
        weights = None
        if inputs.need_weights or inputs.dropout_p > 0:
            weights = gated_linear_weights(q, k, log_decay)
            heads = apply_weights(weights, v, inputs.dropout_p)
        else:
            heads, state = gated_linear_sums(q, k, v, log_decay, None if past is None else past.get("state"))
            if past is not None:
                past["state"] = state
        gate = F.silu(upcast(split_heads(self.gate_proj(inputs.x), q.size(1))))
        output = (rms_norm(heads, self.norm_weight, 1e-5) * gate).type_as(inputs.v)
        return output, weights.type_as(inputs.v) if inputs.need_weights and weights is not None else None
