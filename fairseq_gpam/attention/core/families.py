"""The two kinds of mechanisms: members of the affine family, and those that compute their own matrix of weights."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention
from fairseq_gpam.attention.core.base import AttentionInput, AttentionMechanism, apply_weights, softmax
from fairseq_gpam.attention.core.masks import AttentionMask, hide, zero_rows

# Weights computed at a time where no gradient is wanted: 1 MB in single precision, which a core caches.
BLOCK = 2**18


class AffineMechanism(AttentionMechanism):
    """A member of the affine family: it declares its terms, and `affine_attention` computes the result."""

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        """Returns this mechanism's coefficients and second branch, if it has one: by default those of softmax."""
        return AffineTerms()

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        output, weights = affine_attention(inputs, self.terms(inputs), self.backend)
        return self.finish(output, inputs), weights


class MatrixMechanism(AttentionMechanism):
    """A mechanism that computes its full matrix of weights, B × H × T × S.

    Where neither gradients nor the weights are wanted, one that has `rows_are_independent` computes BLOCK weights at a
    time on a CPU, which is faster on long sequences and needs less memory; not with `--gpam-backend reference`.
    """

    # Whether `weights` of some of the queries, with q, k, v and mask cut to them, are these rows of the whole matrix.
    rows_are_independent: ClassVar[bool] = False
    has_fused = False

    def weights(self, inputs: AttentionInput) -> Tensor:
        """Returns the weights, exactly 0 on hidden keys; in fp32 for half precision."""
        raise NotImplementedError

    def forward(self, inputs: AttentionInput) -> tuple[Tensor, Tensor | None]:
        if self._may_be_split(inputs):
            output, weights = torch.cat([self._attend(part)[0] for part in _blocks(inputs)], dim=-2), None
        else:
            output, weights = self._attend(inputs)
        return self.finish(output, inputs), weights if inputs.need_weights else None

    def _may_be_split(self, inputs: AttentionInput) -> bool:
        if inputs.need_weights or inputs.dropout_p > 0 or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return self.rows_are_independent and self.backend != "reference" and inputs.q.device.type == "cpu"

    def _attend(self, inputs: AttentionInput) -> tuple[Tensor, Tensor]:
        weights = self.weights(inputs).type_as(inputs.v)
        return apply_weights(weights, inputs.v, inputs.dropout_p), weights


def _blocks(inputs: AttentionInput) -> Iterator[AttentionInput]:
    """Yields the input cut to a few neighbouring queries at a time, and to the leading keys that they can see."""
    (num_sentences, num_heads, num_queries), num_keys = inputs.q.shape[:3], inputs.k.size(-2)
    step = max(1, BLOCK // max(1, num_sentences * num_heads * num_keys))
    if step >= num_queries:
        yield inputs
        return
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        mask = inputs.mask.rows(start, stop, num_queries, num_keys)
        seen = inputs.mask.leading_keys(stop, num_queries, num_keys)
        q, k, v = inputs.q[:, :, start:stop], inputs.k[:, :, :seen], inputs.v[:, :, :seen]
        yield replace(inputs, q=q, k=k, v=v, mask=mask)


def upcast(tensor: Tensor) -> Tensor:
    """Returns half-precision tensors as fp32 and others unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dot_scores(q: Tensor, k: Tensor, mask: AttentionMask, scale: float | None = None) -> Tensor:
    """Returns scale·qkᵀ plus the mask's finite bias, B × H × T × S, in fp32 for half precision; no key is masked here.

    `scale` is 1/√D by default.
    """
    root = math.sqrt(q.size(-1))
    scores = upcast(torch.matmul(q / root, k.transpose(-2, -1)))
    if scale is not None:
        # q is divided by √D first, because the unscaled product can overflow in fp16.
        scores = scores * (scale * root)
    return scores if mask.bias is None else scores + mask.bias.to(scores.dtype)


def softmax_weights(q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
    """Returns softmax(QKᵀ/√D + M), B × H × T × S, 0 in fully masked rows; in fp32 for half precision."""
    return masked_softmax(dot_scores(q, k, mask), mask)


def masked_softmax(scores: Tensor, mask: AttentionMask) -> Tensor:
    """Returns the softmax over the visible keys, B × H × T × S, 0 in fully masked rows; in fp32 for half precision."""
    open_scores, fully_masked = hide(scores, mask)
    return zero_rows(softmax(open_scores), fully_masked)


def join_heads(heads: Tensor) -> Tensor:
    """Maps B × H × T × D to B × T × (H·D)."""
    return heads.transpose(1, 2).flatten(2)


def split_heads(joined: Tensor, num_heads: int) -> Tensor:
    """Maps B × T × (H·D) to B × H × T × D."""
    return joined.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def append_constant_keys(
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    num_queries: int,
    biases: tuple[Tensor | None, Tensor | None],
    add_zero_attn: bool,
) -> tuple[Tensor, Tensor, AttentionMask]:
    """Appends the learned key of bias_kv and the zero key of zero_attn, visible to every query, to B × H × S × D.

    `biases` are a key and a value, each 1 × 1 × C, or None.
    """
    rows, num_heads, num_keys, _ = k.shape
    keys, values = [k], [v]
    for parts, bias in zip((keys, values), biases, strict=True):
        if bias is not None:
            parts.append(split_heads(bias.expand(rows, -1, -1), num_heads))
        if add_zero_attn:
            parts.append(parts[0].new_zeros(rows, num_heads, 1, parts[0].size(-1)))
    if len(keys) == 1:
        return k, v, mask
    mask = mask.expanded(num_queries, num_keys, k.device).extended(len(keys) - 1)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2), mask


def format_values(values: Tensor) -> str:
    """Returns the values as text for `extra_repr`."""
    return " ".join(f"{value:.3f}" for value in values.detach().flatten().tolist())
