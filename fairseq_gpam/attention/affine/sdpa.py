"""Computes each branch by PyTorch's scaled_dot_product_attention: on every GPU, and on a CPU where it is faster."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.affine.terms import AffineTerms, Branch
from fairseq_gpam.attention.base import AttentionInput
from fairseq_gpam.attention.masks import zero_rows


def sdpa_attention(inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns the softmax branches' part of dropout(P) V, B × H × T × D.

    With dropout every branch draws the same random numbers, so that the same entries of all branches, and thus of P,
    are dropped.
    """
    *others, last = terms.branches(inputs.q, inputs.k)
    devices = [inputs.q.device] if inputs.q.is_cuda else []
    output: Tensor | None = None
    for branch in others:
        with torch.random.fork_rng(devices) if inputs.dropout_p > 0 else nullcontext():
            output = _weighted(branch, inputs)
    return _weighted(last, inputs) if output is None else output + _weighted(last, inputs)


def _weighted(branch: Branch, inputs: AttentionInput) -> Tensor:
    """Returns weight · dropout(softmax(q kᵀ/√D + M)) v, zero in fully masked rows."""
    q, k, v, mask = branch.q, branch.k, inputs.v, inputs.mask
    if mask.is_plainly_causal and q.size(-2) == k.size(-2):
        output = F.scaled_dot_product_attention(q, k, v, dropout_p=inputs.dropout_p, is_causal=True)
    else:
        bias, fully_masked = mask.for_kernel(q.size(-2), k.size(-2), q)
        output = zero_rows(F.scaled_dot_product_attention(q, k, v, bias, inputs.dropout_p), fully_masked)
    return output if isinstance(branch.weight, float) and branch.weight == 1 else branch.weight * output
