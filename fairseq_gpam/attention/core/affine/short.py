"""Short sequences without gradients (mostly decoding): the queries of both branches are stacked in one product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine.terms import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.masks import zero_rows


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
