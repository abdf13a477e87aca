"""Gated DeltaNet: a fading state from which each key first removes what it finds there (Yang, Kautz & Hatamizadeh)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import split_heads, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.positions import rms_norm
from fairseq_gpam.attention.core.recurrent import RecurrentMechanism

CHUNK = 64
TAPS = 4


def faded_products(rows: Tensor, k: Tensor, sums: Tensor, diagonal: int) -> Tensor:
    """Returns rows_i·k_j·exp(c_i − c_j) for j ≤ i + diagonal, 0 elsewhere; c (`sums`) is Σ log α, B × H × T × 1."""
    seen = torch.ones(k.size(-2), k.size(-2), dtype=torch.bool, device=k.device).tril(diagonal)
    return (sums - sums.mT).masked_fill(~seen, float("-inf")).exp() * (rows @ k.mT)


@without_autocast
def delta_weights(q: Tensor, k: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """Returns the P with which `delta_sums` gives P·V, from its inputs: B × H × T × T."""
    sums = log_decay.cumsum(dim=-2)
    lower = beta * faded_products(k, k, sums, -1)
    inverse = torch.linalg.solve_triangular(lower, torch.diag_embed(beta.squeeze(-1)), upper=False, unitriangular=True)
    return faded_products(q, k, sums, 0) @ inverse


@without_autocast
def delta_sums(
    q: Tensor, k: Tensor, v: Tensor, gates: tuple[Tensor, ...], state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns o_t = q_t S_t, S_t = α_t (I − β_t k_tᵀk_t) S_{t−1} + β_t k_tᵀ v_t, and the last state.

    Shapes: q and k B × H × T × D, v and o B × H × T × D; the gates log α and β B × H × T × 1; S B × H × D × D, zero
    before the first position if None. With u_t = β_t (v_t − α_t k_t S_{t−1}) the step is S_t = α_t S_{t−1} + k_tᵀ u_t,
    so that the u's of a chunk solve a triangular system. Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, section 3.
    """
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.size(-1), v.size(-1))
    outputs = []
    for start in range(0, q.size(-2), CHUNK):
        new_q, new_k, new_v, decay, beta = (x[..., start : start + CHUNK, :] for x in (q, k, v, *gates))
        sums = decay.cumsum(dim=-2)
        lower = beta * faded_products(new_k, new_k, sums, -1)
        right = beta * (new_v - sums.exp() * (new_k @ state))
        u = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        outputs.append(sums.exp() * (new_q @ state) + faded_products(new_q, new_k, sums, 0) @ u)
        last = sums[..., -1:, :]
        state = last.exp() * state + (new_k * (last - sums).exp()).mT @ u
    return torch.cat(outputs, dim=-2), state


@register_mechanism
class GatedDeltaNet(RecurrentMechanism):
    """Causal attention over a state of D × D numbers that is corrected (delta rule) and fades (gate), per head.

    α = exp(−e^A·softplus(x·w_a + t)), β = sigmoid(x·w_b); queries, keys and values pass a causal convolution over 4
    positions for each channel and SiLU, queries and keys are scaled to length 1; RMSNorm (eps 1e-5, one weight vector
    for all heads) and the gate silu(x W_g) follow. Initial values are those of fla-org/flash-linear-attention: e^A
    uniform in (0, 16), softplus(t) log-uniform in 0.001 … 0.1. There heads are wider than the model (values 1.5 times)
    and projections have no bias; here they are fairseq's. Decoding caches the state and the last 3 inputs of each
    convolution. Padding has α = 1 and β = 0 and enters the convolutions as 0. Weights apply to the convolved values.
    """

    name = "gated_deltanet"
    formula = "O = RMSNorm(q_t S_t/√D) ⊙ silu(x W_g), S_t = α_t(I − β_t k_tᵀk_t)S_{t−1} + β_t k_tᵀv_t"
    source = "Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464; fla-org/flash-linear-attention"
    row_sum = "any, before the norm"
    cost = "D·(T+S) instead of T·S, and 4 taps of each channel; 1× with attention dropout"
    positions = ()
    why_never_neutral = "its weights are not normalised"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        heads, width = site.num_heads, site.head_dim
        self.q_taps, self.k_taps, self.v_taps = (
            nn.Parameter(torch.empty(heads, 1, channels, TAPS).uniform_(-(TAPS**-0.5), TAPS**-0.5))
            for channels in (site.query_dim, site.query_dim, width)
        )
        self.decay_proj = nn.Linear(site.embed_dim, heads, bias=False)
        self.beta_proj = nn.Linear(site.embed_dim, heads, bias=False)
        self.gate_proj = nn.Linear(site.embed_dim, heads * width, bias=False)
        self.log_rate = no_decay_parameter(torch.empty(heads).uniform_(0, 16).clamp(min=1e-4).log())
        step = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.step = no_decay_parameter(step + torch.log(-torch.expm1(-step)))
        self.norm_weight = nn.Parameter(torch.ones(width))

    def prepare(self, inputs: AttentionInput, past: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        def convolve(name: str, values: Tensor, taps: Tensor) -> Tensor:
            values = inputs.zero_padding(upcast(values))
            before = past.get(name, values.new_zeros(*values.shape[:2], TAPS - 1, values.size(-1)))
            joined = torch.cat([before, values], dim=-2)
            past[name] = joined[..., 1 - TAPS :, :]
            return inputs.zero_padding(F.silu((joined.unfold(-2, TAPS, 1) * taps.to(joined.dtype)).sum(dim=-1)))

        q, k = convolve("q", inputs.q, self.q_taps), convolve("k", inputs.k, self.k_taps)
        v = convolve("v", inputs.v, self.v_taps)
        q, k = (part * (part.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
        q = q * q.size(-1) ** -0.5
        step = F.softplus(upcast(self.decay_proj(inputs.x)) + upcast(self.step))
        log_decay = inputs.zero_padding(split_heads(-upcast(self.log_rate).exp() * step, q.size(1)))
        beta = inputs.zero_padding(torch.sigmoid(upcast(split_heads(self.beta_proj(inputs.x), q.size(1)))))
        return v, (q, k, log_decay, beta)

    def matrix(self, parts: tuple[Tensor, ...]) -> Tensor:
        return delta_weights(*parts)

    def sums(self, v: Tensor, parts: tuple[Tensor, ...], past: dict[str, Tensor]) -> Tensor:
        q, k, *gates = parts
        output, past["state"] = delta_sums(q, k, v, tuple(gates), past.get("state"))
        return output

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        gate = F.silu(upcast(split_heads(self.gate_proj(inputs.x), output.size(1))))
        return rms_norm(output, self.norm_weight, 1e-5) * gate
