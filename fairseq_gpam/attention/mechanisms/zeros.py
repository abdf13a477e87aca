"""ZeroS: linear attention whose radial weights sum to 0, times the cosines of queries and keys (Lu et al. 2025)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import split_heads, upcast
from fairseq_gpam.attention.core.kernel_sums import without_autocast
from fairseq_gpam.attention.core.recurrent import RecurrentMechanism

CHUNK = 64
NOTHING = -1e5  # in place of log 0, whose gradient is not finite


def zeros_weights(q: Tensor, k: Tensor, logits: Tensor, log_sums: Tensor, factors: Tensor) -> Tensor:
    """Returns (a_i·exp(s_j − L_i) + b_i·s_j + c_i)·(q̂_i·k̂_j) for j ≤ i, 0 elsewhere: B × H × T × T.

    Shapes: q̂ and k̂ (0 where hidden) B × H × T × D; s (`logits`) and L (`log_sums`) B × H × T × 1; a, b and c
    (`factors`) B × H × T × 3.
    """
    future = torch.ones(q.size(-2), q.size(-2), dtype=torch.bool, device=q.device).triu(1)
    a, b, c = factors.split(1, dim=-1)
    logits = logits.transpose(-2, -1)
    radial = a * (logits - log_sums).masked_fill(future, float("-inf")).exp()
    return (radial + (b * logits + c).masked_fill(future, 0.0)) * (q @ k.transpose(-2, -1))


@without_autocast
def zeros_sums(
    q: Tensor, k: Tensor, v: Tensor, parts: tuple[Tensor, ...], past: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the weights of `zeros_weights` times V, earlier keys included, and the new state; in linear time.

    `parts` are s, L and the factors; `past` is the state before the first row, B × H × 3 × D × D, the sums of k̂ᵀv
    weighted by exp(s − L), s and 1, and its L, B × H × 1 × 1. No exponent is above 0.
    """
    outputs = []
    state, before = past
    for start in range(0, q.size(-2), CHUNK):
        new_q, new_k, new_v, s, log_sums, factors = (x[..., start : start + CHUNK, :] for x in (q, k, v, *parts))
        one, last = torch.ones_like(s), log_sums[..., -1:, :]
        read = torch.stack([(before - log_sums).exp(), one, one], dim=-3) * factors.mT.unsqueeze(-1)
        earlier = ((read * new_q.unsqueeze(-3)) @ state).sum(dim=-3)
        outputs.append(earlier + zeros_weights(new_q, new_k, s, log_sums, factors) @ new_v)
        kept = torch.stack([(before - last).exp(), torch.ones_like(last), torch.ones_like(last)], dim=-3)
        written = torch.stack([(s - last).exp(), s, one], dim=-3) * new_k.unsqueeze(-3)
        state, before = kept * state + written.mT @ new_v.unsqueeze(-3), last
    return torch.cat(outputs, dim=-2), state


@register_mechanism
class ZeroSAttention(RecurrentMechanism):
    """Cosines weighted by a softmax without its constant part: the radial weights of a row sum to 0.

    The logit s of a position is small where its u = x W_u resembles the mean of the u's up to there (with a learned
    prior μ of weight e^τ, both from 0). Gates σ¹ and σʰ of each token and head weigh the linear and the remaining part
    of the softmax. LayerNorm without weights follows in each head. Decoding caches running sums only.

    The authors' explicit path takes δ from the softmax instead of from s, and their rotation is none; this is the
    paper's formula, and their linear path. `--gpam-position rotary` rotates. Not provided: their option to give the
    constant part back in the first layer, and the form without a causal mask.
    """

    name = "zeros"
    formula = "O = LayerNorm(Σ_j r_ij·(q̂_i·k̂_j)·v_j), r = σ¹·δ/n + σʰ·(softmax(s) − 1/n − δ/n), δ = s − mean(s)"
    source = "Lu et al. 2025, arXiv 2602.05230"
    row_sum = "any, before the norm; 0 without the cosines"
    cost = "3·D·(T+S) instead of T·S; 1× with attention dropout"
    positions = ("rotary",)
    why_never_neutral = "its weights are cosines times weights that sum to 0"

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.logit_proj = nn.Linear(site.embed_dim, site.num_heads * site.head_dim)
        self.gate_proj = nn.Linear(site.embed_dim, 2 * site.num_heads)
        self.prior_mean = nn.Parameter(torch.zeros(site.num_heads, 1, site.head_dim))
        self.prior_log_weight = nn.Parameter(torch.zeros(site.num_heads, 1, 1))

    def prepare(self, inputs: AttentionInput, past: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        q, heads = F.normalize(upcast(inputs.q), dim=-1), inputs.q.size(1)
        seen = inputs.zero_padding(q.new_ones(q.size(0), 1, q.size(2), 1))
        k = F.normalize(upcast(inputs.k), dim=-1) * seen

        def running(values: Tensor, name: str) -> Tensor:
            sums = values.cumsum(dim=-2) + past.get(name, 0.0)
            past[name] = sums[..., -1:, :]
            return sums

        count = running(seen, "count")
        u = upcast(split_heads(self.logit_proj(inputs.x), heads)) * seen
        weight = self.prior_log_weight.to(u.dtype).exp()
        mean = (weight * self.prior_mean + running(u, "u")) / (weight + count)
        logits = -(u * mean).sum(dim=-1, keepdim=True) / math.sqrt(u.size(-1))
        logit_sums = running(logits, "logits")
        logits = logits.masked_fill(seen == 0, NOTHING)
        before = past.get("log_sum", logits.new_full((*logits.shape[:2], 1, 1), NOTHING))
        log_sums = torch.cat([before, logits], dim=-2).logcumsumexp(dim=-2)[..., 1:, :]
        past["log_sum"] = log_sums[..., -1:, :]
        first, higher = torch.sigmoid(upcast(split_heads(self.gate_proj(inputs.x), heads))).split(1, dim=-1)
        linear = (first - higher) / count.clamp(min=1)
        constant = -(linear * logit_sums + higher) / count.clamp(min=1)
        factors = torch.cat([higher, linear, constant], dim=-1)
        past.setdefault("sums", q.new_zeros(*q.shape[:2], 3, k.size(-1), inputs.v.size(-1)))
        return upcast(inputs.v), (q, k, logits, log_sums, factors, before)

    def matrix(self, parts: tuple[Tensor, ...]) -> Tensor:
        return zeros_weights(*parts[:-1])

    def sums(self, v: Tensor, parts: tuple[Tensor, ...], past: dict[str, Tensor]) -> Tensor:
        q, k, *rows, before = parts
        output, past["sums"] = zeros_sums(q, k, v, tuple(rows), (past["sums"], before))
        return output

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        return F.layer_norm(output, output.shape[-1:])
