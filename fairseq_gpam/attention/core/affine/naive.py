"""The formula with every matrix in memory.

`naive_attention` is the reference for the tests of all other ways to compute it; `short_attention` stacks the branches.
"""

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine.terms import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, apply_weights
from fairseq_gpam.attention.core.masks import zero_rows


def branch_weights(q: Tensor, k: Tensor, bias: Tensor | None, sink: Tensor | None = None) -> Tensor:
    """Returns softmax(q kᵀ/√D + bias) over the keys (and the sink, which is then removed), in fp32 for half precision.

    Shape: B × H × T × S.
    """
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
    if bias is not None:
        scores = scores + bias
    if sink is not None:
        sink_scores = sink.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink_scores], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights if sink is None else weights[..., :-1]


def affine_weights(inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns P, B × H × T × S; in fully masked rows only its identity part is not zero.

    For half precision the parts are summed in fp32.
    """
    q, k, mask = inputs.q, inputs.k, inputs.mask
    num_queries, num_keys = q.size(-2), k.size(-2)
    bias, fully_masked = mask.for_scores(num_queries, num_keys, q)
    first, *others = terms.branches(q, k)
    weights = first.weight * branch_weights(first.q, first.k, bias, terms.sink)
    for branch in others:
        weights = weights + branch.weight * branch_weights(branch.q, branch.k, bias)
    if terms.uniform is not None:
        weights = weights - terms.uniform * mask.uniform_weights(weights)
    weights = zero_rows(weights, fully_masked)
    if terms.identity is not None:
        eye = torch.zeros(num_queries, num_keys, dtype=q.dtype, device=q.device)
        eye.diagonal(num_keys - num_queries).fill_(1)
        weights = weights + terms.identity * eye
    return weights.type_as(q)


def naive_attention(inputs: AttentionInput, terms: AffineTerms) -> tuple[Tensor, Tensor]:
    """Returns dropout(P) V, B × H × T × D, and P before dropout, B × H × T × S."""
    weights = affine_weights(inputs, terms)
    return apply_weights(weights, inputs.v, inputs.dropout_p), weights


def short_attention(inputs: AttentionInput, terms: AffineTerms) -> tuple[Tensor, Tensor]:
    """Returns the softmax branches' P V, B × H × T × D, and P, B × H × T × S; not differentiable.

    One product with Kᵀ, one softmax and one product with V serve both branches, which share their keys.
    """
    k, v = inputs.k, inputs.v
    branches = terms.branches(inputs.q, k)
    bsz, heads, num_queries, width = inputs.q.shape
    num_keys = k.size(2)
    queries = inputs.q if len(branches) == 1 else torch.cat([branch.q for branch in branches], dim=2)
    flat_q, flat_k, flat_v = (each.reshape(-1, each.size(2), each.size(3)) for each in (queries, k, v))
    scores = torch.baddbmm(flat_q.new_empty(1, 1, 1), flat_q, flat_k.mT, beta=0, alpha=1 / math.sqrt(width))
    maps = scores.view(bsz, heads, len(branches), num_queries, num_keys)
    bias, fully_masked = inputs.mask.for_scores(num_queries, num_keys, k)
    if bias is not None:
        maps += bias.unsqueeze(2) if bias.dim() == 4 else bias
    torch.softmax(maps, dim=-1, out=maps)
    weights, *others = (branch.weight * each for branch, each in zip(branches, maps.unbind(2), strict=True))
    for each in others:
        weights += each
    weights = zero_rows(weights, fully_masked)
    return torch.bmm(weights.flatten(0, 1), flat_v).view(bsz, heads, num_queries, -1), weights
