"""Computes each branch by PyTorch's scaled_dot_product_attention: on every GPU, and on a CPU where it is faster."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.affine.terms import AffineTerms, Branch
from fairseq_gpam.attention.core.base import AttentionInput
from fairseq_gpam.attention.core.masks import zero_rows

HALF_TYPES = (torch.float16, torch.bfloat16)
WIDEST = 256
AMPERE = (8, 0)


def sdpa_attention(inputs: AttentionInput, terms: AffineTerms) -> Tensor:
    """Returns the softmax branches' part of dropout(P) V, B × H × T × D.

    With dropout every branch draws the same random numbers, so that the same entries of all branches, and thus of P,
    are dropped.
    """
    num_queries, num_keys = inputs.q.size(-2), inputs.k.size(-2)
    is_causal = inputs.mask.is_plainly_causal and num_queries == num_keys
    bias, fully_masked = (None, None) if is_causal else inputs.mask.for_kernel(num_queries, num_keys, inputs.q)
    if fits_one_call(inputs, terms, is_causal, bias):
        return zero_rows(both_branches(inputs, terms, is_causal, bias), fully_masked)

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


def fits_one_call(inputs: AttentionInput, terms: AffineTerms, is_causal: bool, bias: Tensor | None) -> bool:
    """Returns whether one kernel on a GPU computes both branches without a T × S matrix, at fewer launches than two.

    Heads that share their keys (`enable_gqa`) are known to the flash kernel only, which takes half precision, one width
    of at most 256, and no mask but the future's, on GPUs since Ampere; a mask that all queries share serves twice the
    queries in any kernel.
    """
    if terms.negative_q is None or terms.negative_k is not None or inputs.dropout_p > 0 or not inputs.q.is_cuda:
        return False
    if not is_causal:
        return bias is None or bias.size(-2) == 1
    fits_flash = inputs.q.size(-1) == inputs.v.size(-1) <= WIDEST
    return fits_flash and inputs.q.dtype in HALF_TYPES and torch.cuda.get_device_capability(inputs.q.device) >= AMPERE


def both_branches(inputs: AttentionInput, terms: AffineTerms, is_causal: bool, bias: Tensor | None) -> Tensor:
    """Returns the sum of both branches, B × H × T × D, by one call: as 2H heads over H keys, or as 2T queries."""
    first, second = terms.branches(inputs.q, inputs.k)
    if is_causal:
        queries = torch.stack([first.q, second.q], dim=2).flatten(1, 2)
        attended = F.scaled_dot_product_attention(queries, inputs.k, inputs.v, is_causal=True, enable_gqa=True)
        parts = attended.unflatten(1, (-1, 2)).unbind(2)
    else:
        queries = torch.cat([first.q, second.q], dim=2)
        parts = F.scaled_dot_product_attention(queries, inputs.k, inputs.v, bias).chunk(2, dim=2)
    return first.weight * parts[0] + second.weight * parts[1]
