"""The two ways in which mechanisms attend: by a member of the affine family, or by a matrix of weights of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairseq_gpam.attention.affine import AffineTerms, affine_attention
from fairseq_gpam.attention.base import AttentionInput, AttentionMechanism, Settings, Site, apply_weights
from fairseq_gpam.attention.masks import AttentionMask

HALF_TYPES = (torch.float16, torch.bfloat16)


class AffineMechanism(AttentionMechanism):
    """A mechanism that only chooses its terms of the affine family; the family's core does the work."""

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        """Returns this mechanism's coefficients and its second branch."""
        raise NotImplementedError

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        terms = self.terms(inputs)
        output, weights = affine_attention(
            inputs.q, inputs.k, inputs.v, inputs.mask, terms, inputs.dropout_p, inputs.need_weights, self.backend
        )
        return self.finish(output, inputs), weights


def refuse_fused(mechanism: str, settings: Settings) -> None:
    """Raises ValueError if the fused backend is asked for, which the mechanism does not have."""
    if settings.backend == "fused":
        raise ValueError(
            f"--gpam-backend 'fused' is not allowed with mechanism {mechanism!r}, which has only one way to be "
            "computed; allowed: auto, reference"
        )


class MatrixMechanism(AttentionMechanism):
    """A mechanism whose weights are a matrix that is held as a whole: B × H × T × S."""

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        refuse_fused(self.name, settings)

    def weights(self, inputs: AttentionInput) -> Tensor:
        """Returns the weights, exactly 0 on hidden keys; in fp32 for half precision."""
        raise NotImplementedError

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        weights = self.weights(inputs).type_as(inputs.v)
        output = self.finish(apply_weights(weights, inputs.v, inputs.dropout_p), inputs)
        return output, weights if inputs.need_weights else None


def upcast(tensor: Tensor) -> Tensor:
    """Returns half precision as fp32, everything else as it is."""
    return tensor.float() if tensor.dtype in HALF_TYPES else tensor


def dot_scores(q: Tensor, k: Tensor, mask: AttentionMask, scale: float | None = None) -> Tensor:
    """Returns scale·qkᵀ plus the mask's finite bias, B × H × T × S, in fp32 for half precision; nothing is hidden.

    `scale` is 1/√D unless given.
    """
    root = math.sqrt(q.size(-1))
    scores = upcast(torch.matmul(q / root, k.transpose(-2, -1)))
    if scale is not None:
        # fp16 could not hold the product of all D channels.
        scores = scores * (scale * root)
    return scores if mask.bias is None else scores + mask.bias.to(scores.dtype)


def zero_hidden(weights: Tensor, mask: AttentionMask) -> Tensor:
    """Returns weights B × H × T × S with 0 on hidden keys."""
    hidden = mask.hidden_keys(weights.size(-2), weights.size(-1), weights.device)
    return weights if hidden is None else weights.masked_fill(hidden, 0.0)


def hide(scores: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor | None]:
    """Returns scores with −inf on hidden keys, and which rows see any key (B × H × T × 1, None: all of them).

    A row that sees nothing is left open, so that its normalised weights are finite; `zero_blind` blanks it.
    """
    hidden = mask.hidden_keys(scores.size(-2), scores.size(-1), scores.device)
    if hidden is None:
        return scores, None
    sighted = None
    if mask.may_hide_all:
        sighted = ~hidden.all(dim=-1, keepdim=True)
        hidden = hidden & sighted
    return scores.masked_fill(hidden, float("-inf")), sighted


def zero_blind(rows: Tensor, sighted: Tensor | None) -> Tensor:
    """Returns rows (… × T × anything) with 0 where a row sees nothing."""
    return rows if sighted is None else rows * sighted


def sighted_rows(mask: AttentionMask, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
    """Returns which rows see any key, broadcastable to B × H × T × 1; None if all of them do."""
    if not mask.may_hide_all:
        return None
    hidden = mask.hidden_keys(num_queries, num_keys, device)
    return None if hidden is None else ~hidden.all(dim=-1, keepdim=True)


def count_visible(mask: AttentionMask, like: Tensor) -> Tensor:
    """Returns how many keys each row of `like` (B × H × T × S) sees, at least 1: broadcastable to B × H × T × 1."""
    hidden = mask.hidden_keys(like.size(-2), like.size(-1), like.device)
    if hidden is None:
        return like.new_full((1, 1), float(like.size(-1)))
    return (~hidden).sum(dim=-1, keepdim=True).clamp(min=1).to(like.dtype)


def join_heads(heads: Tensor) -> Tensor:
    """Maps B × H × T × D to B × T × (H·D)."""
    return heads.transpose(1, 2).flatten(2)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """Maps B × T × (H·D) to B × H × T × D."""
    return joined.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def numbers(values: Tensor) -> str:
    """Returns learned numbers as `extra_repr` shows them."""
    return " ".join(f"{value:.3f}" for value in values.detach().flatten().tolist())
