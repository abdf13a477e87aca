"""a·softmax(QKᵀ/√D + M)V − b·softmax(Q⁻K⁻ᵀ/√D + M)V with an own backward: both branches meet before the product with V.

That product, and dO·Vᵀ in the backward, are shared by the branches: 1.5 times the multiply-adds of softmax attention in
place of 2. Short sequences are computed at once and keep their weights; long ones in blocks of rows whose weights are
recomputed in the backward, so that no T × S matrix is ever held and the masked half of a causal one is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
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


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.size(-2), tensor.size(-1))


def _product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Returns scale · left @ right, … × n × m, for stacks of matrices."""
    product = torch.baddbmm(left.new_empty(1, 1, 1), _flat(left), _flat(right), beta=0, alpha=scale)
    return product.view(*left.shape[:-1], right.size(-1))


def _is_one(factor: Coefficient) -> bool:
    return isinstance(factor, float) and factor == 1


def _scaled(tensor: Tensor, factor: Coefficient, in_place: bool = False) -> Tensor:
    if _is_one(factor):
        return tensor
    return tensor.mul_(factor) if in_place else tensor * factor


def _keep(weights: Tensor, dropout_p: float, seed: int, block: Block) -> Tensor:
    """Returns the factors of a block's dropout: 0 or 1/(1 − p); the same ones for the same seed."""
    generator = torch.Generator(device=weights.device)
    generator.manual_seed(seed + block.index)
    return torch.empty_like(weights).bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


def _nonzero(coefficient: Coefficient, dtype: torch.dtype) -> Coefficient:
    """Returns a divisor: `coefficient`, or where it is nearly 0 a number too small to matter."""
    smallest = torch.finfo(dtype).eps
    if isinstance(coefficient, Tensor):
        return torch.where(coefficient.abs() < smallest, smallest, coefficient)
    return coefficient if abs(coefficient) >= smallest else smallest


@dataclass
class _Call:
    """The tensors of one call, and what its blocks share."""

    q: Tensor
    k: Tensor
    v: Tensor
    negative_q: Tensor | None
    negative_k: Tensor | None
    a: Coefficient
    b: Coefficient | None
    mask: AttentionMask
    dropout_p: float
    seed: int
    log_sums: dict[str, Tensor] = field(default_factory=dict)
    futures: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scale = 1 / math.sqrt(self.q.size(-1))
        self.blocks = plan_blocks(self.q, self.k, self.mask)
        self.at_once = len(self.blocks) == 1
        # Coefficients are constant along a row: whichever is smaller is scaled by them, weights or channels.
        self.scales_weights = self.at_once and self.k.size(-2) <= self.q.size(-1)
        # Half precision would lose digits in an unnormalised or recomputed exponential.
        self.by_exponential = not self.at_once and self.q.dtype in (torch.float32, torch.float64)

    def branches(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields name, queries and keys of each branch."""
        yield "positive", self.q, self.k
        if self.negative_q is not None:
            yield "negative", self.negative_q, self.k if self.negative_k is None else self.negative_k

    def future(self, count: int) -> Tensor:
        if count not in self.futures:
            self.futures[count] = self.q.new_full((count, count), float("-inf")).triu_(1)
        return self.futures[count]


class _Weights:
    """The weights of one block, each branch for itself, b × h × r × s; normalised once divided by `sums`."""

    def __init__(self, block: Block, call: _Call) -> None:
        self.block = block
        self.count = block.r1 - block.r0
        self.rows = (block.b, block.h, slice(block.r0, block.r1))
        self.keys = (block.b, block.h, slice(0, block.seen))
        self.a = _part(call.a, block)
        self.b = None if call.b is None else _part(call.b, block)
        self.scales_weights = call.scales_weights
        self.divisor = 1.0 if self.scales_weights else _nonzero(self.a, call.q.dtype)
        self.bias, self.sighted = None, None
        if not call.mask.is_empty and not call.mask.is_plainly_causal:
            mask, _ = _batch_part(call.mask, block).rows(block.r0, block.r1, call.q.size(2), call.k.size(2))
            self.bias, self.sighted = mask.for_scores(self.count, block.seen, call.q)
        self.weights: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.log_sums: dict[str, Tensor] = {}
        for name, queries, keys in call.branches():
            scores = _product(queries[self.rows], keys[self.keys].transpose(-2, -1), call.scale)
            if self.bias is not None:
                scores.add_(self.bias)
            elif call.mask.causal and self.count > 1:
                # Only the last `count` of the keys that this block sees can lie in some row's future.
                scores[..., block.seen - self.count :].add_(call.future(self.count))
            if not call.by_exponential:
                self.weights[name] = torch.softmax(scores, dim=-1, out=scores)
            elif name in call.log_sums:
                self.weights[name] = scores.sub_(call.log_sums[name][self.rows]).exp_()
            else:
                largest = scores.amax(dim=-1, keepdim=True)
                self.weights[name] = scores.sub_(largest).exp_()
                self.sums[name] = scores.sum(dim=-1, keepdim=True)
                self.log_sums[name] = self.sums[name].log().add_(largest)

    def combined(self, overwrite: bool) -> tuple[Tensor, Coefficient]:
        """Returns a matrix and the factor of its rows whose product is P; `overwrite` gives up the positive weights."""
        matrix = self.weights["positive"]
        factor: Coefficient = self.divisor
        owned = overwrite
        if self.scales_weights and not _is_one(self.a):
            matrix = _scaled(matrix, self.a, owned)
            owned = True
        if self.sums:
            factor = factor / self.sums["positive"]
        if self.b is not None:
            ratio = self.b / self.divisor
            if self.sums:
                ratio = ratio * (self.sums["positive"] / self.sums["negative"])
            negative = self.weights["negative"]
            if isinstance(ratio, float):
                matrix = matrix.sub_(negative, alpha=ratio) if owned else torch.sub(matrix, negative, alpha=ratio)
            elif owned:
                matrix.addcmul_(negative, ratio, value=-1)
            else:
                matrix = torch.addcmul(matrix, negative, ratio, value=-1)
            owned = True
        if self.sighted is not None:
            # A number times a bool would be fp32, whatever the matrix is.
            sighted = self.sighted.to(matrix.dtype)
            if self.scales_weights:
                matrix = _scaled(matrix, sighted, owned)
            else:
                factor = factor * sighted
        return matrix, factor


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
        seed = int(torch.randint(2**62, ()).item()) if dropout_p > 0 else 0
        call = _Call(q, k, v, negative_q, negative_k, a, b, mask, dropout_p, seed)
        keeps_weights = call.at_once and any(ctx.needs_input_grad)
        log_sums = {}
        if call.by_exponential and any(ctx.needs_input_grad):
            log_sums = {name: q.new_empty(*q.shape[:-1], 1) for name, _, _ in call.branches()}
        output = None if call.at_once else _rows_first(q, v.size(-1))
        weights: _Weights | None = None
        keep: Tensor | None = None
        for block in call.blocks:
            weights = _Weights(block, call)
            matrix, factor = weights.combined(overwrite=not keeps_weights)
            if dropout_p > 0:
                keep = _keep(matrix, dropout_p, seed, block)
                matrix = matrix * keep if matrix is weights.weights["positive"] and keeps_weights else matrix.mul_(keep)
            product = _scaled(_product(matrix, v[weights.keys]), factor, in_place=True)
            for name in log_sums:
                log_sums[name][weights.rows] = weights.log_sums[name]
            if output is None:
                output = product
            else:
                output[weights.rows] = product
        assert output is not None
        tensors = [c for c in (a, b) if isinstance(c, Tensor)]
        ctx.save_for_backward(q, k, v, negative_q, negative_k, *log_sums.values(), *tensors)
        ctx.log_sums = tuple(log_sums)
        ctx.numbers = tuple(None if isinstance(c, Tensor) else c for c in (a, b))
        ctx.given = tuple(isinstance(c, Tensor) for c in (a, b))
        ctx.mask, ctx.dropout_p, ctx.seed = mask, dropout_p, seed
        # What a single block computed is small, and kept.
        ctx.kept = (weights, keep) if keeps_weights else None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, negative_q, negative_k, *rest = ctx.saved_tensors
        log_sums = {name: rest.pop(0) for name in ctx.log_sums}
        a, b = (rest.pop(0) if given else c for given, c in zip(ctx.given, ctx.numbers, strict=True))
        call = _Call(q, k, v, negative_q, negative_k, a, b, ctx.mask, ctx.dropout_p, ctx.seed, log_sums)
        grads = _Gradients(call, ctx.needs_input_grad)
        kept, keep = ctx.kept if ctx.kept is not None else (None, None)
        for block in call.blocks:
            weights = kept or _Weights(block, call)
            matrix, factor = weights.combined(overwrite=False)
            if ctx.dropout_p > 0:
                if kept is None or keep is None:
                    keep = _keep(matrix, ctx.dropout_p, ctx.seed, block)
                matrix = matrix * keep
            grad_rows = grad_output[weights.rows]
            grads.add_keys("v", weights.keys, _product(_scaled(grad_rows, factor).transpose(-2, -1), matrix))
            grad_weights = _product(grad_rows, v[weights.keys].transpose(-2, -1))
            if keep is not None:
                grad_weights.mul_(keep)
            if weights.sighted is not None:
                grad_weights.mul_(weights.sighted)
            grads.add_branch("positive", "q", "k", weights, grad_weights, weights.a)
            if weights.b is not None:
                own_keys = "k" if negative_k is None else "negative_k"
                grads.add_branch("negative", "negative_q", own_keys, weights, grad_weights, -weights.b)
        ctx.kept = None
        return (*grads.finish(), None, None)


class _Gradients:
    """Collects the gradients of the inputs over the blocks; those of keys and values as B × H × D × S."""

    def __init__(self, call: _Call, needed: tuple[bool, ...]) -> None:
        self.call = call
        self.needed = dict(zip(("q", "k", "v", "negative_q", "negative_k", "a", "b"), needed, strict=False))
        self.grads: dict[str, Tensor] = {}
        for name in ("a", "b"):
            if self.needed[name]:
                coefficient = getattr(call, name)
                exact = torch.float64 if coefficient.dtype == torch.float64 else torch.float32
                self.grads[name] = torch.zeros_like(coefficient, dtype=exact)

    def add_branch(
        self, name: str, queries: str, keys: str, weights: _Weights, grad_weights: Tensor, coefficient: Coefficient
    ) -> None:
        """Takes the gradient of P back to one branch's queries, keys and coefficient."""
        own = weights.weights[name]
        self._add_coefficient(name, weights, own, grad_weights)
        grad_scores = torch._softmax_backward_data(grad_weights, own, -1, own.dtype)
        if self.call.scales_weights:
            grad_scores = _scaled(grad_scores, coefficient, in_place=True)
            coefficient = 1.0
        if self.needed[keys]:
            query = _scaled(getattr(self.call, queries)[weights.rows], coefficient)
            self.add_keys(keys, weights.keys, _product(query.transpose(-2, -1), grad_scores, self.call.scale))
        if self.needed[queries]:
            product = _product(grad_scores, getattr(self.call, keys)[weights.keys], self.call.scale)
            product = _scaled(product, coefficient, in_place=True)
            if self.call.at_once:
                self.grads[queries] = product
            else:
                if queries not in self.grads:
                    like = getattr(self.call, queries)
                    self.grads[queries] = _rows_first(like, like.size(-1))
                self.grads[queries][weights.rows] = product

    def add_keys(self, name: str, keys: tuple[slice, slice, slice], product: Tensor) -> None:
        """Adds to the gradient of keys or values, which many blocks and both branches meet."""
        if not self.needed[name]:
            return
        if name not in self.grads:
            if self.call.at_once:
                self.grads[name] = product
                return
            like = getattr(self.call, name)
            self.grads[name] = like.new_zeros(*like.shape[:2], like.size(-1), like.size(-2))
        b, h, seen = keys
        self.grads[name][b, h, :, seen].add_(product)

    def _add_coefficient(self, branch: str, weights: _Weights, own: Tensor, grad_weights: Tensor) -> None:
        name, sign = ("a", 1) if branch == "positive" else ("b", -1)
        if name not in self.grads:
            return
        total = self.grads[name]
        part = total if total.numel() == 1 else _part(total, weights.block)
        assert isinstance(part, Tensor)
        if part.dim() < 4 or part.size(2) == 1:
            # One number for each matrix: a dot product, which needs no memory.
            flat = own.size(0) * own.size(1), 1, own.size(2) * own.size(3)
            dots = torch.bmm(own.reshape(flat), grad_weights.reshape(flat).transpose(1, 2))
            sums = dots.view(own.size(0), own.size(1), 1, 1)
        else:
            sums = (own * grad_weights).sum(dim=-1, keepdim=True)
        part.add_(sums.to(total.dtype).sum_to_size(part.shape), alpha=sign)

    def finish(self) -> Iterator[Tensor | None]:
        for name in ("q", "k", "v", "negative_q", "negative_k"):
            grad = self.grads.get(name)
            yield grad.transpose(-2, -1) if grad is not None and name in ("k", "v", "negative_k") else grad
        for name in ("a", "b"):
            yield self.grads[name].to(getattr(self.call, name).dtype) if name in self.grads else None


def _rows_first(like: Tensor, width: int) -> Tensor:
    """Returns an empty B × H × T × D that is contiguous as T × B × H × D, which the projections read without a copy."""
    bsz, heads, length, _ = like.shape
    return like.new_empty(length, bsz, heads, width).permute(1, 2, 0, 3)


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
