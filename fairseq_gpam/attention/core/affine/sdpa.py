"""Computes each branch by PyTorch's scaled_dot_product_attention: on every GPU, and on a CPU where it is faster."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.affine.terms import AffineTerms, Branch
from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.masks import zero_rows


def sdpa_attention(inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns the softmax branches' part of dropout(P) V, B × H × T × D.

    With dropout every branch draws the same random numbers, so that the same entries of all branches, and thus of P,
    are dropped.
    """
    num_queries, num_keys = inputs.q.size(-2), inputs.k.size(-2)
    is_causal = inputs.mask.is_plainly_causal and num_queries == num_keys
    bias, fully_masked = (None, None) if is_causal else inputs.mask.for_kernel(num_queries, num_keys, inputs.q)

    def weighted(branch: Branch) -> Tensor:
        output = F.scaled_dot_product_attention(branch.q, branch.k, inputs.v, bias, inputs.dropout_p, is_causal)
        return output if isinstance(branch.weight, float) and branch.weight == 1 else branch.weight * output

    *others, last = terms.branches(inputs.q, inputs.k)
    devices = [inputs.q.device] if inputs.q.is_cuda else []
    output: Tensor | None = None
    for branch in others:
        with torch.random.fork_rng(devices) if inputs.dropout_p > 0 else nullcontext():
            output = weighted(branch)
    return zero_rows(weighted(last) if output is None else output + weighted(last), fully_masked)
