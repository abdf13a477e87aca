"""a·softmax(QKᵀ/√D + M)V − b·softmax(Q⁻K⁻ᵀ/√D + M)V with an own backward: both branches meet before the product with V.

That product, and dO·Vᵀ in the backward, are shared by the branches: 1.5 times the multiply-adds of softmax attention in
place of 2. Short sequences are computed at once and keep their weights; long ones in blocks of rows whose weights are
recomputed in the backward, so that no T × S matrix is ever held and the masked half of a causal one is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.masks import AttentionMask

# Measured on a CPU with AVX-512: below, keeping the weights is faster; above, blocks that stay in the cache are.
LONGEST_AT_ONCE = 192
BLOCK_ROWS = 128
BLOCK_WEIGHTS = 2**18

Coefficient = Tensor | float


@dataclass(frozen=True)
class Block:
    """Heads h0…h1 of sentence b, queries r0…r1, and the keys before `seen`."""

    b: slice
    h: slice
    r0: int
    r1: int
    seen: int
    index: int


def plan_blocks(q: Tensor, k: Tensor, mask: AttentionMask) -> list[Block]:
    """Cuts the weights B × H × T × S into blocks; one block if the sequences are short."""
    bsz, heads, num_queries, _ = q.shape
    num_keys = k.size(-2)
    if max(num_queries, num_keys) <= LONGEST_AT_ONCE:
        return [Block(slice(0, bsz), slice(0, heads), 0, num_queries, num_keys, 0)]
    rows = min(BLOCK_ROWS, num_queries)
    heads_at_once = max(1, min(heads, BLOCK_WEIGHTS // (rows * num_keys)))
    blocks: list[Block] = []
    for b in range(bsz):
        for h in range(0, heads, heads_at_once):
            for r0 in range(0, num_queries, rows):
                r1 = min(r0 + rows, num_queries)
                seen = num_keys - num_queries + r1 if mask.causal else num_keys
                blocks.append(
                    Block(slice(b, b + 1), slice(h, min(h + heads_at_once, heads)), r0, r1, seen, len(blocks))
                )
    return blocks


def _part(coefficient: Coefficient, block: Block) -> Coefficient:
    """Returns the coefficient of a block, broadcastable to its weights."""
    if isinstance(coefficient, float) or coefficient.numel() == 1:
        return coefficient
    full = coefficient[(None,) * (4 - coefficient.dim())]
    b = block.b if full.size(0) > 1 else slice(None)
    h = block.h if full.size(1) > 1 else slice(None)
    r = slice(block.r0, block.r1) if full.size(2) > 1 else slice(None)
    return full[b, h, r]


def _batch_part(mask: AttentionMask, block: Block) -> AttentionMask:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return tensor[block.b] if tensor is not None and tensor.dim() == 4 and tensor.size(0) > 1 else tensor

    padding = None if mask.padding is None else mask.padding[block.b]
    return AttentionMask(padding, mask.causal, cut(mask.bias), cut(mask.hidden)).heads(block.h.start, block.h.stop)


class _Weights:
    """The weights of one block: of each branch, combined, and dropped."""

    def __init__(
        self,
        block: Block,
        q: Tensor,
        k: Tensor,
        negative_q: Tensor | None,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
    ) -> None:
        num_queries, num_keys = q.size(2), k.size(2)
        self.block = block
        at = (block.b, block.h, slice(block.r0, block.r1))
        keys = (block.b, block.h, slice(0, block.seen))
        own, _ = _batch_part(mask, block).rows(block.r0, block.r1, num_queries, num_keys)
        bias, self.sighted = own.for_scores(block.r1 - block.r0, block.seen, q)
        self.positive = _branch(q[at], k[keys], bias)
        self.a, self.b = _part(a, block), None if b is None else _part(b, block)
        self.negative = None
        if negative_q is not None:
            self.negative = _branch(negative_q[at], (k if negative_k is None else negative_k)[keys], bias)

    def combined(self) -> Tensor:
        weights = self.positive * self.a
        if self.negative is not None:
            assert self.b is not None
            if isinstance(self.b, float):
                weights.sub_(self.negative, alpha=self.b)
            else:
                weights.addcmul_(self.negative, self.b.to(weights.dtype), value=-1)
        if self.sighted is not None:
            weights.mul_(self.sighted)
        return weights


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.size(-2), tensor.size(-1))


def _branch(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """Returns softmax(q kᵀ/√D + bias), B × H × T × S."""
    scores = _product(_flat(q), _flat(k).transpose(1, 2), 1 / math.sqrt(q.size(-1)))
    scores = scores.view(*q.shape[:-1], k.size(-2))
    if bias is not None:
        scores.add_(bias)
    return torch.softmax(scores, dim=-1, out=scores)


def _product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Returns scale · left @ right for stacks of matrices."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def _keep(weights: Tensor, dropout_p: float, seed: int, block: Block) -> Tensor:
    """Returns the factors of a block's dropout: 0 or 1/(1 − p); the same ones for the same seed."""
    generator = torch.Generator(device=weights.device)
    generator.manual_seed(seed + block.index)
    return torch.empty_like(weights).bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


def _rows_first(like: Tensor) -> Tensor:
    """Returns an empty B × H × T × D that is contiguous as T × B × H × D, which the projections read without a copy."""
    bsz, heads, length, width = like.shape
    return like.new_empty(length, bsz, heads, width).permute(1, 2, 0, 3)


class FusedAffine(torch.autograd.Function):
    """The forward and backward of the module's formula, by blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        negative_q: Tensor | None,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
        dropout_p: float,
    ) -> Tensor:
        blocks = plan_blocks(q, k, mask)
        seed = int(torch.randint(2**62, ()).item()) if dropout_p > 0 else 0
        at_once = len(blocks) == 1
        output = None if at_once else _rows_first(q)
        kept: _Weights | None = None
        keep: Tensor | None = None
        for block in blocks:
            weights = _Weights(block, q, k, negative_q, negative_k, a, b, mask)
            combined = weights.combined()
            if dropout_p > 0:
                keep = _keep(combined, dropout_p, seed, block)
                combined.mul_(keep)
            values = v[block.b, block.h, : block.seen]
            product = torch.bmm(_flat(combined), _flat(values))
            product = product.view(*combined.shape[:-1], v.size(-1))
            if output is None:
                output = product
                kept = weights
            else:
                output[block.b, block.h, block.r0 : block.r1] = product
        assert output is not None
        ctx.save_for_backward(q, k, v, negative_q, negative_k, *(c for c in (a, b) if isinstance(c, Tensor)))
        ctx.coefficients = tuple(None if isinstance(c, Tensor) else c for c in (a, b))
        ctx.tensors = tuple(isinstance(c, Tensor) for c in (a, b))
        ctx.mask, ctx.dropout_p, ctx.seed, ctx.blocks = mask, dropout_p, seed, blocks
        # What a single block computed is small, and kept.
        ctx.kept, ctx.keep = (kept, keep) if at_once and any(ctx.needs_input_grad) else (None, None)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, negative_q, negative_k, *tensors = ctx.saved_tensors
        a, b = (tensors.pop(0) if given else c for given, c in zip(ctx.tensors, ctx.coefficients, strict=True))
        scale = 1 / math.sqrt(q.size(-1))
        at_once = len(ctx.blocks) == 1
        grads = _Gradients(q, k, v, negative_q, negative_k, a, b, ctx.needs_input_grad, at_once)
        for block in ctx.blocks:
            weights = ctx.kept or _Weights(block, q, k, negative_q, negative_k, a, b, ctx.mask)
            combined = weights.combined()
            keep = ctx.keep
            if ctx.dropout_p > 0:
                if keep is None:
                    keep = _keep(combined, ctx.dropout_p, ctx.seed, block)
                combined.mul_(keep)
            rows = (block.b, block.h, slice(block.r0, block.r1))
            keys = (block.b, block.h, slice(0, block.seen))
            grad_rows = _flat(grad_output[rows])
            grads.add_value(keys, torch.bmm(_flat(combined).transpose(1, 2), grad_rows))
            grad_weights = torch.bmm(grad_rows, _flat(v[keys]).transpose(1, 2)).view(combined.shape)
            if keep is not None:
                grad_weights.mul_(keep)
            if weights.sighted is not None:
                grad_weights.mul_(weights.sighted)
            grads.add_branch("positive", rows, keys, weights.positive, grad_weights, weights.a, 1.0, scale)
            if weights.negative is not None:
                grads.add_branch("negative", rows, keys, weights.negative, grad_weights, weights.b, -1.0, scale)
        ctx.kept = ctx.keep = None
        return (*grads.finish(), None, None)


class _Gradients:
    """Collects the gradients of the inputs over the blocks."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        negative_q: Tensor | None,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        needed: tuple[bool, ...],
        at_once: bool,
    ) -> None:
        self.at_once = at_once
        self.inputs: dict[str, Tensor | None] = {
            "q": q, "k": k, "v": v, "negative_q": negative_q, "negative_k": negative_k,
        }  # fmt: skip
        self.coefficients: dict[str, Any] = {"positive": a, "negative": b}
        self.needed = dict(zip((*self.inputs, *self.coefficients), needed, strict=False))
        self.grads: dict[str, Tensor | None] = dict.fromkeys(self.inputs)
        self.sums: dict[str, Tensor | None] = {
            name: torch.zeros_like(c, dtype=torch.float64 if c.dtype == torch.float64 else torch.float32)
            if isinstance(c, Tensor) and self.needed[name]
            else None
            for name, c in self.coefficients.items()
        }

    def _add(self, name: str, at: tuple[slice, ...], product: Tensor, accumulate: bool) -> None:
        """Adds to the gradient of an input: keys and values are met by many blocks, queries by one."""
        reference = self.inputs[name]
        assert reference is not None
        if self.at_once:
            product = product.view(reference.shape)
            known = self.grads[name]
            self.grads[name] = product if known is None else known.add_(product)
            return
        grad = self.grads[name]
        if grad is None:
            grad = _rows_first(reference)
            if accumulate:
                grad.zero_()
            self.grads[name] = grad
        target = grad[at]
        if accumulate:
            target.add_(product.view(target.shape))
        else:
            target.copy_(product.view(target.shape))

    def add_value(self, keys: tuple[slice, ...], product: Tensor) -> None:
        if self.needed["v"]:
            self._add("v", keys, product, accumulate=True)

    def add_branch(
        self,
        name: str,
        rows: tuple[slice, ...],
        keys: tuple[slice, ...],
        weights: Tensor,
        grad_weights: Tensor,
        coefficient: Coefficient,
        sign: float,
        scale: float,
    ) -> None:
        query_name = "q" if name == "positive" else "negative_q"
        key_name = "negative_k" if name == "negative" and self.inputs["negative_k"] is not None else "k"
        if self.sums[name] is None:
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        else:
            grad_scores = weights * grad_weights
            row_sums = grad_scores.sum(dim=-1, keepdim=True)
            self._add_coefficient(name, rows, row_sums, sign)
            grad_scores.addcmul_(weights, row_sums, value=-1)
        if isinstance(coefficient, float):
            scale *= sign * coefficient
        else:
            grad_scores.mul_(coefficient)
            scale *= sign
        flat = _flat(grad_scores)
        query, key = self.inputs[query_name], self.inputs[key_name]
        assert query is not None and key is not None
        if self.needed[query_name]:
            self._add(query_name, rows, _product(flat, _flat(key[keys]), scale), accumulate=False)
        if self.needed[key_name]:
            self._add(key_name, keys, _product(flat.transpose(1, 2), _flat(query[rows]), scale), accumulate=True)

    def _add_coefficient(self, name: str, rows: tuple[slice, ...], row_sums: Tensor, sign: float) -> None:
        total = self.sums[name]
        assert total is not None
        row_sums = row_sums.to(total.dtype)
        if total.numel() == 1:
            total.add_(row_sums.sum(), alpha=sign)
            return
        full = total[(None,) * (4 - total.dim())]
        part = full[
            rows[0] if full.size(0) > 1 else slice(None),
            rows[1] if full.size(1) > 1 else slice(None),
            rows[2] if full.size(2) > 1 else slice(None),
        ]
        part.add_(row_sums.sum_to_size(part.shape), alpha=sign)

    def finish(self) -> Iterator[Tensor | None]:
        for name in self.inputs:
            yield self.grads[name]
        for name, coefficient in self.coefficients.items():
            total = self.sums[name]
            yield None if total is None else total.to(coefficient.dtype)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    a: Coefficient = 1.0,
    b: Coefficient | None = None,
    negative_q: Tensor | None = None,
    negative_k: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Returns dropout(a·softmax(q kᵀ/√D + M) − b·softmax(q⁻ k⁻ᵀ/√D + M)) v.

    Shapes: q, q⁻ B × H × T × D; k, k⁻, v B × H × S × D; a, b numbers or broadcastable to B × H × T × 1; result
    B × H × T × D. Differentiable once, in everything but the mask.
    """
    a = a if isinstance(a, Tensor) else float(a)
    b = b if b is None or isinstance(b, Tensor) else float(b)
    return FusedAffine.apply(q, k, v, negative_q, negative_k, a, b, mask, dropout_p)
