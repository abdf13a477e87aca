"""The core of a whole family of mechanisms: O = s·V + a·SDPA(Q, K, V) − b·SDPA(Q⁻, K⁻, V) − u·mean(V).

Every member is one matrix P = s·I + a·softmax(QKᵀ/√D + M) − b·softmax(Q⁻K⁻ᵀ/√D + M) − u·U applied to V, where U is
uniform over the keys that a row sees. Attention dropout drops P itself, in every backend.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.base import apply_weights, softmax
from fairseq_gpam.attention.fused import Coefficient, QueryMap, fused_attention, fused_weights, is_short
from fairseq_gpam.attention.masks import AttentionMask

# Of PyTorch's kernel under a boolean mask: NaN before 2.5.
BLIND_ROWS_ARE_ZERO = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 5)
BACKENDS = ("auto", "reference", "fused")


@dataclass(frozen=True)
class AffineTerms:
    """The coefficients and the second branch of one member of the family.

    Shapes: `positive` (a), `negative` (b), `uniform` (u) and `identity` (s) are numbers or broadcastable to
    B × H × T × 1; `negative_q` B × H × T × D, or what makes it of q; `negative_k` B × H × S × D, the keys of the
    positive branch if None; `sink` H, the logit of a key that every row sees and whose value is zero.
    """

    positive: Coefficient = 1.0
    negative: Coefficient | None = None
    negative_q: Tensor | QueryMap | None = None
    negative_k: Tensor | None = None
    uniform: Coefficient | None = None
    identity: Coefficient | None = None
    sink: Tensor | None = None


def branch_weights(q: Tensor, k: Tensor, bias: Tensor | None, sink: Tensor | None = None) -> Tensor:
    """Returns softmax(q kᵀ/√D + bias) over the keys (and the sink, which is dropped): B × H × T × S."""
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if bias is not None:
        scores = scores + bias
    if sink is None:
        return softmax(scores)
    sink_scores = sink.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return softmax(torch.cat([scores, sink_scores], dim=-1))[..., :-1]


def affine_weights(q: Tensor, k: Tensor, mask: AttentionMask, terms: AffineTerms) -> Tensor:
    """Returns the combined matrix P, zero in the rows that see nothing: B × H × T × S."""
    num_queries, num_keys = q.size(-2), k.size(-2)
    bias, sighted = mask.for_scores(num_queries, num_keys, q)
    weights = terms.positive * branch_weights(q, k, bias, terms.sink)
    if terms.negative is not None:
        assert isinstance(terms.negative_q, Tensor)
        negative_k = k if terms.negative_k is None else terms.negative_k
        weights = weights - terms.negative * branch_weights(terms.negative_q, negative_k, bias)
    if terms.uniform is not None:
        weights = weights - terms.uniform * uniform_weights(mask, num_queries, num_keys, q)
    if sighted is not None:
        weights = weights * sighted
    if terms.identity is not None:
        eye = torch.zeros(num_queries, num_keys, dtype=q.dtype, device=q.device)
        eye.diagonal(num_keys - num_queries).fill_(1)
        weights = weights + terms.identity * eye
    return weights.type_as(q)


def uniform_weights(mask: AttentionMask, num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """Returns U, 1/n on the n keys that a row sees, 0 elsewhere: broadcastable to B × H × T × S."""
    hidden = mask.hidden_keys(num_queries, num_keys, like.device)
    if hidden is None:
        return like.new_full((1, num_keys), 1.0 / num_keys)
    visible = (~hidden).to(like.dtype)
    return visible / visible.sum(dim=-1, keepdim=True).clamp(min=1)


def visible_mean(v: Tensor, mask: AttentionMask, num_queries: int) -> Tensor:
    """Returns the mean of the values that each row sees, without a matrix: broadcastable to B × H × T × D.

    A causal mask makes it a running mean. A row that sees nothing gets 0.
    """
    num_keys = v.size(-2)
    if mask.hidden is not None:
        return torch.matmul(uniform_weights(mask, num_queries, num_keys, v).expand(*v.shape[:2], -1, -1), v)
    values = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
    count: Tensor
    if mask.padding is None:
        count = torch.ones(1, 1, num_keys, 1, dtype=values.dtype, device=v.device)
    else:
        count = (~mask.padding)[:, None, :, None].to(values.dtype)
        values = values * count
    if mask.causal:
        total = values.cumsum(dim=-2)[..., num_keys - num_queries :, :]
        count = count.cumsum(dim=-2)[..., num_keys - num_queries :, :]
    else:
        total, count = values.sum(dim=-2, keepdim=True), count.sum(dim=-2, keepdim=True)
    return (total / count.clamp(min=1)).type_as(v)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, terms: AffineTerms, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The plain formula: every matrix is held, P is dropped, then applied. Returns B × H × T × D and P undropped."""
    weights = affine_weights(q, k, mask, terms)
    return apply_weights(weights, v, dropout_p), weights


def choose_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    terms: AffineTerms,
    dropout_p: float,
    need_weights: bool,
    backend: str,
) -> str:
    """Returns how to compute: `reference`, `sdpa` (PyTorch's kernel for each branch) or `fused` (the own backward).

    The reference it is for sinks and for biases that are trained; where P is dropped or asked for, also for uniform and
    identity parts and under the compiler; where P is asked for, also for long sequences.
    """
    if backend == "reference" or terms.sink is not None or (mask.bias is not None and mask.bias.requires_grad):
        return "reference"
    wants_matrix = need_weights or dropout_p > 0
    if wants_matrix and (terms.uniform is not None or terms.identity is not None):
        return "reference"
    if torch.compiler.is_compiling():
        # The compiler makes its own backward and cannot look into ours.
        return "reference" if wants_matrix else "sdpa"
    if need_weights:
        return "fused" if is_short(q, k) and q.dtype == k.dtype else "reference"
    if dropout_p > 0 or backend == "fused":
        return "fused"
    if mask.causal and not mask.is_plainly_causal:
        return "fused"
    if terms.negative is None:
        return "sdpa" if q.size(-2) > 1 and q.size(-1) == v.size(-1) else "fused"
    if q.is_cuda and not is_short(q, k):
        return "sdpa"
    return "fused"


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Returns softmax(q kᵀ/√D + M) v by PyTorch's own kernel; 0 in a row that sees nothing."""
    if mask.is_plainly_causal and q.size(-2) == k.size(-2):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if mask.bias is None and BLIND_ROWS_ARE_ZERO:
        hidden = mask.hidden_keys(q.size(-2), k.size(-2), q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if hidden is None else ~hidden)
    bias, sighted = mask.for_scores(q.size(-2), k.size(-2), q)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return output if sighted is None else output * sighted.to(output.dtype)


def affine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    terms: AffineTerms,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Attends with P by the backend that fits.

    Shapes: q B × H × T × D; k, v B × H × S × D; result B × H × T × D, and P (B × H × T × S) if `need_weights`.
    """
    chosen = choose_backend(q, k, v, mask, terms, dropout_p, need_weights, backend)
    if chosen == "fused":
        branches = (terms.positive, terms.negative, terms.negative_q, terms.negative_k, dropout_p)
        if need_weights:
            return fused_weights(q, k, v, mask, *branches)
        output = fused_attention(q, k, v, mask, *branches)
    else:
        if isinstance(terms.negative_q, QueryMap):
            q, negative_q = terms.negative_q.both(q).chunk(2, dim=2)
            terms = dataclasses.replace(terms, negative_q=negative_q)
        if chosen == "reference":
            output, weights = reference_attention(q, k, v, mask, terms, dropout_p)
            return output, weights if need_weights else None
        output = sdpa(q, k, v, mask)
        if isinstance(terms.positive, Tensor) or terms.positive != 1:
            output = terms.positive * output
        if terms.negative is not None:
            assert isinstance(terms.negative_q, Tensor)
            negative_k = k if terms.negative_k is None else terms.negative_k
            output = output - terms.negative * sdpa(terms.negative_q, negative_k, v, mask)
    if terms.uniform is not None:
        output = output - terms.uniform * visible_mean(v, mask, q.size(-2))
    if terms.identity is not None:
        output = output + terms.identity * v[..., v.size(-2) - q.size(-2) :, :]
    return output.type_as(q), None
