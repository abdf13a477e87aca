"""a·softmax(QKᵀ/√D + M)V − b·softmax(Q⁻K⁻ᵀ/√D + M)V with an own backward: both branches meet before the product with V.

That product, and dO·Vᵀ in the backward, are shared by the branches: 1.5 times the multiply-adds of softmax attention in
place of 2. Short sequences are computed at once and keep their weights; long ones in blocks of rows whose weights are
recomputed in the backward, so that no T × S matrix is ever held and the masked half of a causal one is skipped.

Inside, N = B·H counts the heads of all sentences, and tensors are N × T × D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.masks import AttentionMask

# Measured on a CPU with AVX-512: below, keeping the weights is faster; above, blocks that stay in the cache are.
LONGEST_AT_ONCE = 192
BLOCK_ROWS = 64
BLOCK_WEIGHTS = 2**18

Coefficient = Tensor | float


def _flat(tensor: Tensor) -> Tensor:
    """Returns B × H × T × D as N × T × D."""
    return tensor.reshape(-1, tensor.size(-2), tensor.size(-1))


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Returns scale · left @ right for stacks of matrices."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale, out=out)


def _scaled_(tensor: Tensor, factor: Coefficient) -> Tensor:
    return tensor if isinstance(factor, float) and factor == 1 else tensor.mul_(factor)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of exponentials, sums and softmax's backward: half precision would lose digits in them."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _keep(weights: Tensor, dropout_p: float, seed: int) -> Tensor:
    """Returns the factors of dropout, 0 or 1/(1 − p): the same ones for the same seed and shape."""
    if dropout_p >= 1:
        return torch.zeros_like(weights)
    generator = torch.Generator(device=weights.device)
    generator.manual_seed(seed)
    return torch.empty_like(weights).bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


def _draw_seed(dropout_p: float) -> int:
    return int(torch.randint(2**62, ()).item()) if dropout_p > 0 else 0


def _combine(positive: Tensor, negative: Tensor | None, a: Coefficient, b: Coefficient | None) -> Tensor:
    """Returns a·positive − b·negative in new memory, or `positive` itself if there is nothing to do."""
    weights = positive if isinstance(a, float) and a == 1 else positive * a
    if negative is None:
        return weights
    assert b is not None
    if isinstance(b, float):
        return torch.sub(weights, negative, alpha=b) if weights is positive else weights.sub_(negative, alpha=b)
    if weights is positive:
        return torch.addcmul(weights, negative, b, value=-1)
    return weights.addcmul_(negative, b, value=-1)


class AtOnce(torch.autograd.Function):
    """Short sequences: the weights of both branches are stacked, N × 2T × S, and kept for the backward."""

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
        bsz, heads, length, width = q.shape
        num_keys = k.size(2)
        scale = 1 / math.sqrt(width)
        queries = _flat(q if negative_q is None else torch.cat([q, negative_q], dim=2))
        if negative_k is None:
            scores = _product(queries, _flat(k).transpose(1, 2), scale)
        else:
            pairs = zip(queries.split(length, dim=1), (k, negative_k), strict=True)
            scores = torch.cat([_product(each, _flat(keys).transpose(1, 2), scale) for each, keys in pairs], dim=1)
        weights = scores.view(bsz, heads, -1, length, num_keys)
        bias, sighted = mask.for_scores(length, num_keys, q)
        if bias is not None:
            weights.add_(bias.unsqueeze(2) if bias.dim() == 4 else bias)
        torch.softmax(weights, dim=-1, out=weights)
        if sighted is not None:
            sighted = sighted.to(q.dtype).unsqueeze(2) if sighted.dim() == 4 else sighted.to(q.dtype)
            weights.mul_(sighted)
        combined = AtOnce.combined(weights, a, b)
        keep = _keep(combined, dropout_p, _draw_seed(dropout_p)) if dropout_p > 0 else None
        if keep is not None:
            combined = combined * keep
        output = torch.bmm(_flat(combined), _flat(v))
        ctx.save_for_backward(
            q, k, v, negative_k, queries, weights, keep, *(c for c in (a, b) if isinstance(c, Tensor))
        )
        ctx.numbers = tuple(None if isinstance(c, Tensor) else c for c in (a, b))
        ctx.given = tuple(isinstance(c, Tensor) for c in (a, b))
        return output.view(bsz, heads, length, -1)

    @staticmethod
    def combined(weights: Tensor, a: Coefficient, b: Coefficient | None) -> Tensor:
        exact = weights.to(_exact(weights.dtype))
        return _combine(exact[:, :, 0], None if b is None else exact[:, :, 1], a, b).to(weights.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, negative_k, queries, weights, keep, *rest = ctx.saved_tensors
        a, b = (rest.pop(0) if given else c for given, c in zip(ctx.given, ctx.numbers, strict=True))
        scale = 1 / math.sqrt(q.size(-1))
        length = q.size(2)
        grad_rows = _flat(grad_output)
        combined = AtOnce.combined(weights, a, b)
        if keep is not None:
            combined = combined * keep
        grad_v = torch.bmm(_flat(combined).transpose(1, 2), grad_rows).view(v.shape)
        grad_weights = torch.bmm(grad_rows, _flat(v).transpose(1, 2)).view(combined.shape)
        if keep is not None:
            grad_weights.mul_(keep)
        # A row that sees nothing has zero weights, and so no gradient.
        weights = weights.to(_exact(q.dtype))
        grad_scores = weights * grad_weights.unsqueeze(2)
        row_sums = grad_scores.sum(dim=-1, keepdim=True)
        grad_scores.addcmul_(weights, row_sums, value=-1)
        grad_a = _summed(row_sums[:, :, 0], a) if ctx.needs_input_grad[5] else None
        grad_b = _summed(row_sums[:, :, 1].neg(), b) if ctx.needs_input_grad[6] else None
        _scaled_(grad_scores[:, :, 0], a)
        if b is not None:
            grad_scores[:, :, 1].mul_(b).neg_()
        stacked = grad_scores.view(queries.size(0), queries.size(1), -1).to(q.dtype)
        if negative_k is None:
            grad_queries = _product(stacked, _flat(k), scale)
            grad_k = _product(stacked.transpose(1, 2), queries, scale).view(k.shape)
            grad_negative_k = None
        else:
            parts = tuple(zip(stacked.split(length, 1), queries.split(length, 1), (k, negative_k), strict=True))
            grad_queries = torch.cat([_product(own, _flat(keys), scale) for own, _, keys in parts], dim=1)
            grad_k, grad_negative_k = (
                _product(own.transpose(1, 2), query, scale).view(k.shape) for own, query, _ in parts
            )
        grad_queries = grad_queries.view(*q.shape[:2], -1, *q.shape[2:])
        grad_negative_q = None if b is None else grad_queries[:, :, 1]
        return grad_queries[:, :, 0], grad_k, grad_v, grad_negative_q, grad_negative_k, grad_a, grad_b, None, None


def _summed(row_sums: Tensor, coefficient: Coefficient) -> Tensor:
    """Returns B × H × T × 1 summed to the shape of a coefficient."""
    assert isinstance(coefficient, Tensor)
    exact = row_sums.to(_exact(row_sums.dtype))
    if coefficient.numel() == 1:
        return exact.sum().reshape(coefficient.shape).to(coefficient.dtype)
    return exact.sum_to_size(coefficient.shape).to(coefficient.dtype)


@dataclass(frozen=True)
class Block:
    """Heads n0…n1 (of all sentences), queries r0…r1, and the keys before `seen`."""

    n0: int
    n1: int
    r0: int
    r1: int
    seen: int
    index: int


def plan_blocks(q: Tensor, k: Tensor, mask: AttentionMask) -> list[Block]:
    """Cuts the weights N × T × S into blocks; one that a mask of its own belongs to stays in one sentence."""
    bsz, heads, num_queries, _ = q.shape
    num_keys = k.size(-2)
    group = bsz * heads if mask.is_empty or mask.is_plainly_causal else heads
    blocks: list[Block] = []
    for r0 in range(0, num_queries, BLOCK_ROWS):
        r1 = min(r0 + BLOCK_ROWS, num_queries)
        seen = num_keys - num_queries + r1 if mask.causal else num_keys
        at_once = max(1, min(group, BLOCK_WEIGHTS // ((r1 - r0) * seen)))
        for start in range(0, bsz * heads, group):
            for n0 in range(start, start + group, at_once):
                blocks.append(Block(n0, min(n0 + at_once, start + group), r0, r1, seen, len(blocks)))
    return blocks


def _of_heads(coefficient: Coefficient, bsz: int, heads: int, dtype: torch.dtype) -> Coefficient:
    """Returns a coefficient as a number, a tensor of no dimension, or as N × 1 × 1 or N × T × 1."""
    if isinstance(coefficient, float):
        return coefficient
    coefficient = coefficient.to(dtype)
    if coefficient.numel() == 1:
        return coefficient.reshape(())
    full = coefficient[(None,) * (4 - coefficient.dim())]
    return _flat(full.expand(bsz, heads, -1, -1))


def _nonzero(coefficient: Coefficient, dtype: torch.dtype) -> Coefficient:
    """Returns a divisor: `coefficient`, or where it is nearly 0 a number too small to matter."""
    smallest = torch.finfo(dtype).eps
    if isinstance(coefficient, Tensor):
        return torch.where(coefficient.abs() < smallest, smallest, coefficient)
    return coefficient if abs(coefficient) >= smallest else smallest


class _Long:
    """What the forward and the backward of `ByBlocks` share: the tensors of one call, N × T × D and contiguous."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        negative_q: Tensor | None,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
        dropout_p: float,
        seed: int,
    ) -> None:
        self.bsz, self.heads, self.length, width = q.shape
        self.num_keys = k.size(2)
        self.scale = 1 / math.sqrt(width)
        self.blocks = plan_blocks(q, k, mask)
        flat_k = _flat(k).contiguous()
        self.queries = [_flat(q).contiguous()]
        self.keys = [flat_k]
        if negative_q is not None:
            self.queries.append(_flat(negative_q).contiguous())
            self.keys.append(flat_k if negative_k is None else _flat(negative_k).contiguous())
        self.v = _flat(v).contiguous()
        self.mask, self.dropout_p, self.seed = mask, dropout_p, seed
        self.exact = _exact(q.dtype)
        self.is_half = q.dtype != self.exact
        self.a = _of_heads(a, self.bsz, self.heads, self.exact)
        self.divisor = _nonzero(self.a, self.exact)
        self.b: Coefficient | None = None
        self.ratio: Coefficient | None = None
        if b is not None:
            self.b = _of_heads(b, self.bsz, self.heads, self.exact)
            self.ratio = self.b / self.divisor
        self.future = q.new_full((BLOCK_ROWS, BLOCK_ROWS), float("-inf"), dtype=self.exact).triu_(1)
        self.largest = max((block.n1 - block.n0) * (block.r1 - block.r0) * block.seen for block in self.blocks)
        self.buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Returns uninitialised memory that every block uses again: fresh pages cost as much as the arithmetic."""
        if name not in self.buffers:
            self.buffers[name] = self.v.new_empty((shape[0] if len(shape) == 4 else 1) * self.largest)
        return self.buffers[name][: math.prod(shape)].view(shape)

    def scores(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Returns the masked scores of each branch, branches × n × r × s, and which rows see any key."""
        n, r, rows = slice(block.n0, block.n1), slice(block.r0, block.r1), block.r1 - block.r0
        shape = (len(self.queries), block.n1 - block.n0, rows, block.seen)
        scores = self.buffer("scores", *shape)
        for own, queries, keys in zip(scores, self.queries, self.keys, strict=True):
            _product(queries[n, r], keys[n, : block.seen].transpose(1, 2), self.scale, out=own)
        scores = scores.to(self.exact)
        if self.mask.is_plainly_causal:
            # Only the last rows × rows of what this block sees can lie in some row's future.
            scores[..., block.seen - rows :].add_(self.future[:rows, :rows])
            return scores, None
        if self.mask.is_empty:
            return scores, None
        sentence, h0 = divmod(block.n0, self.heads)
        mask = self.mask.sentence(sentence).heads(h0, h0 + shape[1])
        mask, _ = mask.rows(block.r0, block.r1, self.length, self.num_keys)
        bias, sighted = mask.for_scores(rows, block.seen, scores)
        if bias is not None:
            scores.add_(bias[0] if bias.dim() == 4 else bias)
        if sighted is not None:
            sighted = sighted.to(self.exact)
            sighted = sighted[0] if sighted.dim() == 4 else sighted
        return scores, sighted

    def part(self, coefficient: Coefficient, block: Block) -> Coefficient:
        if isinstance(coefficient, float) or coefficient.numel() == 1:
            return coefficient
        own = coefficient[block.n0 : block.n1]
        return own if own.size(1) == 1 else own[:, block.r0 : block.r1]

    def keep(self, weights: Tensor, block: Block) -> Tensor | None:
        return _keep(weights, self.dropout_p, self.seed + block.index) if self.dropout_p > 0 else None


class ByBlocks(torch.autograd.Function):
    """Long sequences: one block of rows after the other; the backward recomputes the weights from their log-sums."""

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
        call = _Long(q, k, v, negative_q, negative_k, a, b, mask, dropout_p, _draw_seed(dropout_p))
        output = _rows_first(q, v.size(-1))
        rows = output.permute(2, 0, 1, 3).flatten(1, 2).transpose(0, 1)
        log_sums = torch.empty(len(call.queries), *call.queries[0].shape[:2], 1, dtype=call.exact, device=q.device)
        for block in call.blocks:
            weights, sighted = call.scores(block)
            largest = weights.amax(dim=-1, keepdim=True)
            sums = weights.sub_(largest).exp_().sum(dim=-1, keepdim=True)
            n, r = slice(block.n0, block.n1), slice(block.r0, block.r1)
            log_sums[:, n, r] = largest.add_(sums.log())
            matrix = weights[0]
            factor: Coefficient = 1.0
            if call.is_half:
                # Normalised first: the range of half precision holds nothing else.
                matrix.mul_(call.part(call.a, block) / sums[0])
                if call.b is not None:
                    matrix.addcmul_(weights[1], call.part(call.b, block) / sums[1], value=-1)
            else:
                # Rows are normalised and weighted after the product with V, where they are shorter.
                factor = call.part(call.divisor, block) / sums[0]
                if call.ratio is not None:
                    ratio = (sums[0] / sums[1]).mul_(call.part(call.ratio, block))
                    matrix.addcmul_(weights[1], ratio, value=-1)
            if sighted is not None:
                factor = factor * sighted
            keep = call.keep(matrix, block)
            if keep is not None:
                matrix.mul_(keep)
            rows[n, r] = _scaled_(torch.bmm(matrix.to(q.dtype), call.v[n, : block.seen]), factor)
        tensors = (c for c in (a, b) if isinstance(c, Tensor))
        ctx.save_for_backward(q, k, v, negative_q, negative_k, log_sums, *tensors)
        ctx.numbers = tuple(None if isinstance(c, Tensor) else c for c in (a, b))
        ctx.given = tuple(isinstance(c, Tensor) for c in (a, b))
        ctx.mask, ctx.dropout_p, ctx.seed = mask, dropout_p, call.seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, negative_q, negative_k, log_sums, *rest = ctx.saved_tensors
        a, b = (rest.pop(0) if given else c for given, c in zip(ctx.given, ctx.numbers, strict=True))
        call = _Long(q, k, v, negative_q, negative_k, a, b, ctx.mask, ctx.dropout_p, ctx.seed)
        dtype, shared_keys = q.dtype, negative_k is None
        grad_rows = _flat(grad_output).contiguous()
        # Those of keys and values as N × D × S: the products that make them read the weights as they lie.
        grad_v, grad_k, grad_negative_k = (
            torch.zeros(n, width, length, dtype=call.exact, device=q.device)
            for n, length, width in (call.v.shape, call.keys[0].shape, call.keys[-1].shape)
        )
        grad_keys = (grad_k, grad_k if shared_keys else grad_negative_k)
        grad_queries = [torch.empty_like(queries) for queries in call.queries]
        coefficients: list[Coefficient] = [call.a] if call.b is None else [call.a, -call.b]
        sums = [_CoefficientGradient(c, call) if isinstance(c, Tensor) else None for c in coefficients]
        for block in call.blocks:
            weights, sighted = call.scores(block)
            n, r, seen = slice(block.n0, block.n1), slice(block.r0, block.r1), block.seen
            weights.sub_(log_sums[:, n, r]).exp_()
            factor, of_negative = call.part(call.divisor, block), call.ratio
            matrix = call.buffer("matrix", *weights.shape[1:]).to(call.exact)
            positive = weights[0]
            if call.is_half:
                positive, factor, of_negative = weights[0] * call.part(call.a, block), 1.0, call.b
            if of_negative is None:
                matrix.copy_(positive)
            else:
                of_negative = call.part(of_negative, block)
                if isinstance(of_negative, float):
                    torch.sub(positive, weights[1], alpha=of_negative, out=matrix)
                else:
                    torch.addcmul(positive, weights[1], of_negative, value=-1, out=matrix)
            keep = call.keep(matrix, block)
            if keep is not None:
                matrix.mul_(keep)
            own = grad_rows[n, r]
            weighted = own * (factor if sighted is None else factor * sighted)
            grad_v[n, :, :seen] += torch.bmm(weighted.to(dtype).transpose(1, 2), matrix.to(dtype))
            values = call.v[n, :seen].transpose(1, 2)
            grad_weights = torch.bmm(own, values, out=matrix if dtype == call.exact else None).to(call.exact)
            if keep is not None:
                grad_weights.mul_(keep)
            if sighted is not None:
                grad_weights.mul_(sighted)
            all_scores = torch.mul(weights, grad_weights, out=call.buffer("gradients", *weights.shape).to(call.exact))
            row_sums = all_scores.sum(dim=-1, keepdim=True)
            all_scores = all_scores.addcmul_(weights, row_sums, value=-1).to(dtype)
            grad_key: Tensor | None = None
            for index, coefficient in enumerate(coefficients):
                total = sums[index]
                if total is not None:
                    total.add(block, row_sums[index])
                grad_scores = all_scores[index]
                part = call.part(coefficient, block)
                product = _product(grad_scores, call.keys[index][n, :seen], call.scale)
                grad_queries[index][n, r] = product.mul_(part)
                query = (call.queries[index][n, r] * part).to(dtype).transpose(1, 2)
                if grad_key is None or not shared_keys:
                    grad_key = _product(query, grad_scores, call.scale)
                else:
                    grad_key.baddbmm_(query, grad_scores, alpha=call.scale)
                if not shared_keys or index == len(coefficients) - 1:
                    grad_keys[index][n, :, :seen] += grad_key
        grad_a, grad_b = (
            None if total is None else total.finish(coefficient, sign)
            for total, coefficient, sign in zip([*sums, None][:2], (a, b), (1, -1), strict=True)
        )
        return (
            grad_queries[0].view(q.shape),
            grad_k.to(dtype).transpose(1, 2).view(k.shape),
            grad_v.to(dtype).transpose(1, 2).view(v.shape),
            None if negative_q is None else grad_queries[1].view(q.shape),
            None if negative_k is None else grad_negative_k.to(dtype).transpose(1, 2).view(k.shape),
            grad_a if ctx.needs_input_grad[5] else None,
            grad_b if ctx.needs_input_grad[6] else None,
            None,
            None,
        )


class _CoefficientGradient:
    """Sums weights · gradient of P over the blocks, to N × 1 × 1, or N × T × 1 for a coefficient of each query."""

    def __init__(self, coefficient: Tensor, call: _Long) -> None:
        self.shape = (call.bsz, call.heads)
        of_queries = coefficient.dim() == 3 and coefficient.size(1) > 1
        length = call.length if of_queries else 1
        self.total = torch.zeros(call.bsz * call.heads, length, 1, dtype=call.exact, device=coefficient.device)

    def add(self, block: Block, row_sums: Tensor) -> None:
        own = self.total[block.n0 : block.n1]
        if own.size(1) > 1:
            own[:, block.r0 : block.r1] = row_sums
        else:
            own += row_sums.sum(dim=1, keepdim=True)

    def finish(self, coefficient: Coefficient | None, sign: int) -> Tensor:
        assert isinstance(coefficient, Tensor)
        return _summed(self.total.view(*self.shape, -1, 1) * sign, coefficient)


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
    function = AtOnce if max(q.size(-2), k.size(-2)) <= LONGEST_AT_ONCE else ByBlocks
    return function.apply(q, k, v, negative_q, negative_k, a, b, mask, dropout_p)
