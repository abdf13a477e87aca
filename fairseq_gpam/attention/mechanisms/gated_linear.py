"""Gated linear attention: a state of D × D numbers that fades channel by channel (Yang et al. 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import split_heads, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.attention.core.positions import rms_norm
from fairseq_gpam.attention.core.recurrent import RecurrentMechanism

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
class GatedLinearAttention(RecurrentMechanism):
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
    positions = ("rotary",)
    why_never_neutral = "its weights are not normalised"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.decay_down = nn.Linear(site.embed_dim, RANK, bias=False)
        self.decay_up = nn.Linear(RANK, site.num_heads * site.query_dim)
        self.gate_proj = nn.Linear(site.embed_dim, site.num_heads * site.head_dim, bias=False)
        self.norm_weight = nn.Parameter(torch.ones(site.head_dim))

    def prepare(self, inputs: AttentionInput, past: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        q, k = upcast(inputs.q) * inputs.q.size(-1) ** -0.5, upcast(inputs.k)
        log_decay = F.logsigmoid(upcast(self.decay_up(self.decay_down(inputs.x)))) / TEMPERATURE
        log_decay = split_heads(log_decay, q.size(1))
        return upcast(inputs.v), (q, inputs.zero_padding(k), inputs.zero_padding(log_decay))

    def matrix(self, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return gated_linear_weights(*parts)

    def sums(self, v: Tensor, parts: tuple[Tensor, Tensor, Tensor], past: dict[str, Tensor]) -> Tensor:
        q, k, log_decay = parts
        output, past["state"] = gated_linear_sums(q, k, v, log_decay, past.get("state"))
        return output

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        gate = F.silu(upcast(split_heads(self.gate_proj(inputs.x), output.size(1))))
        return rms_norm(output, self.norm_weight, 1e-5) * gate
