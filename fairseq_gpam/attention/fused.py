"""a·softmax(QKᵀ/√D + M)V − b·softmax(Q⁻K⁻ᵀ/√D + M)V with an own backward: both branches meet before the product with V.

That product, and dO·Vᵀ in the backward, are shared by the branches: 1.5 times the multiply-adds of softmax attention in
place of 2. Short sequences are computed in groups of whole sentences and keep their weights; long ones in blocks of
rows whose weights are recomputed in the backward, so that no T × S matrix is ever held and the masked half of a causal
one is skipped.

Inside, N = B·H counts the heads of all sentences, n those of a group, and tensors are N × T × D. Of long sequences the
branches E = 2^(scores · log₂ e) stay without their sums l until after the products: with w = (a/l⁺, −b/l⁻),
P = w⁺E⁺ + w⁻E⁻.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairseq_gpam.attention.base import apply_weights
from fairseq_gpam.attention.masks import AttentionMask

# Measured on a CPU with AVX-512 and 2 MiB of second-level cache for a core: up to this length keeping the weights is
# faster; above, blocks that stay in the cache are.
LONGEST_AT_ONCE = 192
GROUP_ELEMENTS = 2**20
BLOCK_ROWS = 64
BLOCK_WEIGHTS = 2**18
BLOCK_WEIGHTS_ON_GPU = 2**24

# Powers of 2 take a third of the time of powers of e: scores are multiplied by log₂ e.
LOG2_E = math.log2(math.e)
# 2^−115 is nothing beside 1; below 2^−126 numbers are denormal, and slow to work with.
LOWEST_EXPONENT = -115.0
# Exponents that cannot exceed this need no maximum subtracted: powers, their sums and ratios stay finite in fp32.
SAFE_EXPONENT = 43.0

Coefficient = Tensor | float


def _flat(tensor: Tensor) -> Tensor:
    """Returns B × H × T × D as N × T × D."""
    return tensor.reshape(-1, tensor.size(-2), tensor.size(-1))


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Returns scale · left @ right for stacks of matrices."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale, out=out)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of exponentials, sums and softmax's backward: half precision would lose digits in them."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _keep(like: Tensor, dropout_p: float, seed: int) -> Tensor:
    """Fills `like` with the factors of dropout, 0 or 1/(1 − p): the same ones for the same seed and shape."""
    if dropout_p >= 1:
        return like.zero_()
    generator = torch.Generator(device=like.device)
    generator.manual_seed(seed)
    return like.bernoulli_(1 - dropout_p, generator=generator).div_(1 - dropout_p)


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


def _is_moderate(exponents: Tensor) -> bool:
    """Whether powers of 2 with these exponents, and sums of them, are neither too large nor too small for fp32."""
    lowest, highest = torch.aminmax(exponents)
    return lowest.item() > -SAFE_EXPONENT and highest.item() < SAFE_EXPONENT


def _softmax_of_powers_(exponents: Tensor, moderate: bool) -> None:
    """Makes each row its powers of 2 over their sum, in place: two thirds of the time of PyTorch's softmax on a CPU."""
    if not moderate:
        exponents.sub_(exponents.amax(dim=-1, keepdim=True))
    exponents.exp2_()
    exponents.div_(exponents.sum(dim=-1, keepdim=True))


def _for_branches(mask: Tensor) -> Tensor:
    """Returns a mask that fits B × H × T × S so that it fits B × H × branches × T × S."""
    return mask.unsqueeze(2) if mask.dim() == 4 else mask


def _save(ctx: Any, a: Coefficient, b: Coefficient | None, *tensors: Tensor | None) -> None:
    """Keeps the coefficients, which may be numbers, and tensors for the backward."""
    ctx.numbers = tuple(None if isinstance(c, Tensor) else c for c in (a, b))
    ctx.given = tuple(isinstance(c, Tensor) for c in (a, b))
    ctx.save_for_backward(*(c for c in (a, b) if isinstance(c, Tensor)), *tensors)


def _saved(ctx: Any) -> tuple[Any, Any, Iterator[Any]]:
    """Returns a, b and the tensors that `_save` kept."""
    tensors = iter(ctx.saved_tensors)
    a, b = (next(tensors) if given else c for given, c in zip(ctx.given, ctx.numbers, strict=True))
    return a, b, tensors


def _combined(weights: Tensor, a: Coefficient, b: Coefficient | None) -> Tensor:
    """Returns P, B × H × T × S, of the branches' weights, B × H × branches × T × S."""
    exact = weights.to(_exact(weights.dtype))
    return _combine(exact[:, :, 0], None if b is None else exact[:, :, 1], a, b).to(weights.dtype)


def _applied(combined: Tensor, v: Tensor) -> Tensor:
    """Returns P v, B × H × T × D."""
    return torch.bmm(_flat(combined), _flat(v)).view(*combined.shape[:3], v.size(-1))


def _weights_at_once(
    queries: Tensor, k: Tensor, negative_k: Tensor | None, branches: int, mask: AttentionMask
) -> Tensor:
    """Returns the weights of each branch, B × H × branches × T × S, zero in the rows that see nothing."""
    bsz, heads, stacked_length, width = queries.shape
    length, num_keys = stacked_length // branches, k.size(2)
    is_exact = queries.dtype == k.dtype == _exact(k.dtype) and not torch.is_autocast_enabled(k.device.type)
    takes_powers = is_exact and not k.is_cuda
    unit = LOG2_E if takes_powers else 1.0
    scale = unit / math.sqrt(width)
    if negative_k is None:
        scores = _product(_flat(queries), _flat(k).transpose(1, 2), scale)
    else:
        pairs = zip(queries.split(length, dim=2), (k, negative_k), strict=True)
        scores = torch.cat([_product(_flat(each), _flat(keys).transpose(1, 2), scale) for each, keys in pairs], dim=1)
    weights = scores.view(bsz, heads, branches, length, num_keys)
    moderate = takes_powers and mask.bias is None and scores.numel() > 0 and _is_moderate(scores)
    bias, sighted = mask.for_scores(length, num_keys, k)
    if bias is not None:
        weights.add_(_for_branches(bias), alpha=unit)
    if takes_powers:
        _softmax_of_powers_(weights, moderate)
    else:
        torch.softmax(weights, dim=-1, out=weights)
    # Asking a GPU whether every row sees something would cost more than the product.
    if sighted is not None and (sighted.is_cuda or not sighted.all()):
        weights.mul_(_for_branches(sighted))
    return weights


def _backward_at_once(
    grad_combined: Tensor,
    queries: Tensor,
    k: Tensor,
    negative_k: Tensor | None,
    a: Coefficient,
    b: Coefficient | None,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Returns what P's gradient, B × H × T × S, becomes: the gradients of the queries and of both keys, and row sums.

    The sum of P± ∘ dP over the keys, B × H × branches × T × 1, is what the gradients of a and b are summed from.
    """
    scale = 1 / math.sqrt(k.size(-1))
    length = weights.size(3)
    # A row that sees nothing has zero weights, and so no gradient.
    weights = weights.to(_exact(k.dtype))
    grad_scores = weights * grad_combined.unsqueeze(2)
    row_sums = grad_scores.sum(dim=-1, keepdim=True)
    grad_scores.addcmul_(weights, row_sums, value=-1)
    if not (isinstance(a, float) and a == 1):
        grad_scores[:, :, 0].mul_(a)
    if b is not None:
        grad_scores[:, :, 1].mul_(b).neg_()
    flat_queries = _flat(queries)
    stacked = grad_scores.view(*flat_queries.shape[:2], -1).to(k.dtype)
    grad_negative_k = None
    if negative_k is None:
        grad_queries = _product(stacked, _flat(k), scale)
        grad_k = _product(stacked.transpose(1, 2), flat_queries, scale).view(k.shape)
    else:
        parts = tuple(zip(stacked.split(length, 1), flat_queries.split(length, 1), (k, negative_k), strict=True))
        grad_queries = torch.cat([_product(own, _flat(keys), scale) for own, _, keys in parts], dim=1)
        grad_k, grad_negative_k = (_product(own.transpose(1, 2), query, scale).view(k.shape) for own, query, _ in parts)
    return grad_queries.view(queries.shape), grad_k, grad_negative_k, row_sums


@dataclass(frozen=True)
class QueryMap:
    """How the queries of the second branch are made of those of the first, where it is best done with what follows.

    forward: takes q and the parameters; returns q⁻, B × H × T × D.
    backward: takes q, the gradient of q and q⁻ (B × H × 2T × D), where to write all of q's, and the parameters; returns
    the gradients of the parameters.
    both: takes q; returns q and q⁻, B × H × 2T × D, differentiable.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor | None, ...]]
    both: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor | None, ...]


def _groups_of_sentences(q: Tensor, k: Tensor, is_mapped: bool) -> Iterator[slice]:
    """Yields groups of sentences whose queries and weights, of all branches, stay in a processor's cache together."""
    bsz, heads, length, width = q.shape
    rows = heads * (2 * length if is_mapped else length)
    at_once = max(1, bsz if q.is_cuda else GROUP_ELEMENTS // (rows * (width + k.size(2))))
    for start in range(0, max(1, bsz), at_once):
        yield slice(start, min(start + at_once, bsz))


def _attend_at_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    negative_k: Tensor | None,
    a: Coefficient,
    b: Coefficient | None,
    mask: AttentionMask,
    dropout_p: float,
    query_map: QueryMap | None,
    saved: list[Tensor | None] | None = None,
    asked: Tensor | None = None,
) -> Tensor:
    """Returns the output, B × H × T × D, of one group of sentences after the other.

    For each group, `saved` gets what the backward needs: q⁻ of a query map, weights, and dropout's factors of P. P
    itself is written to `asked`.
    """
    branches = 1 if b is None else 2
    output: Tensor | None = None
    for part in _groups_of_sentences(q, k, query_map is not None):
        queries, negative_q = q[part], None
        if query_map is not None:
            negative_q = query_map.forward(queries, *query_map.parameters)
            queries = torch.cat([queries, negative_q], dim=2)
        own_mask = mask.sentences(part.start, part.stop)
        own_negative_k = None if negative_k is None else negative_k[part]
        weights = _weights_at_once(queries, k[part], own_negative_k, branches, own_mask)
        combined = _combined(weights, _of(a, part), _of(b, part))
        if asked is not None:
            asked[part] = combined
        keep = None
        if dropout_p > 0:
            keep = _keep(torch.empty_like(combined), dropout_p, _draw_seed(dropout_p))
            combined = combined * keep
        if saved is not None:
            saved += [negative_q, weights, keep]
        own = _applied(combined, v[part])
        if own.size(0) == q.size(0):
            return own
        if output is None:
            output = _rows_first(v, own.size(2))
        output[part] = own
    assert output is not None
    return output


class AtOnce(torch.autograd.Function):
    """Short sequences: the weights of both branches lie together, B × H × 2 × T × S, and are kept for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
        dropout_p: float,
        query_map: QueryMap | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        """Takes what `_attend_at_once` takes, and a query map's parameters themselves: they have gradients."""
        saved: list[Tensor | None] = []
        output = _attend_at_once(q, k, v, negative_k, a, b, mask, dropout_p, query_map, saved)
        ctx.map_backward = None if query_map is None else query_map.backward
        ctx.num_parameters = len(parameters)
        _save(ctx, a, b, q, k, v, negative_k, *parameters, *saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        a, b, saved = _saved(ctx)
        q, k, v, negative_k = (next(saved) for _ in range(4))
        parameters = [next(saved) for _ in range(ctx.num_parameters)]
        is_mapped = ctx.map_backward is not None
        grad_q, grad_k, grad_v = (_empty_like(each) for each in (q, k, v))
        grad_negative_k = None if negative_k is None else _empty_like(negative_k)
        grad_parameters: list[Tensor | None] = [None] * len(parameters)
        all_row_sums = []
        for part in _groups_of_sentences(q, k, is_mapped):
            negative_q, weights, keep = (next(saved) for _ in range(3))
            queries = torch.cat([q[part], negative_q], dim=2) if is_mapped else q[part]
            own_a, own_b = _of(a, part), _of(b, part)
            upstream = _flat(grad_output[part])
            combined = _combined(weights, own_a, own_b)
            if keep is not None:
                combined = combined * keep
            grad_v[part] = torch.bmm(_flat(combined).transpose(1, 2), upstream).view(v[part].shape)
            grad_combined = torch.bmm(upstream, _flat(v[part]).transpose(1, 2)).view(combined.shape)
            if keep is not None:
                grad_combined.mul_(keep)
            grad_queries, grad_k[part], own_grad_negative_k, row_sums = _backward_at_once(
                grad_combined,
                queries,
                k[part],
                None if negative_k is None else negative_k[part],
                own_a,
                own_b,
                weights,
            )
            all_row_sums.append(row_sums)
            if grad_negative_k is not None and own_grad_negative_k is not None:
                grad_negative_k[part] = own_grad_negative_k
            if is_mapped:
                own = ctx.map_backward(q[part], grad_queries, grad_q[part], *parameters)
                grad_parameters = [_added(*pair) for pair in zip(grad_parameters, own, strict=True)]
            else:
                grad_q[part] = grad_queries
        row_totals = torch.cat(all_row_sums)
        grad_a = _summed(row_totals[:, :, 0], a) if ctx.needs_input_grad[4] else None
        grad_b = _summed(row_totals[:, :, 1].neg(), b) if ctx.needs_input_grad[5] else None
        grad_parameters = [None if grad is None else grad.to(q.dtype) for grad in grad_parameters]
        return grad_q, grad_k, grad_v, grad_negative_k, grad_a, grad_b, None, None, None, *grad_parameters


class WeightsAtOnce(torch.autograd.Function):
    """P of short sequences, where it is asked for: whatever is made of it has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        k: Tensor,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
    ) -> Tensor:
        weights = _weights_at_once(queries, k, negative_k, 1 if b is None else 2, mask)
        _save(ctx, a, b, queries, k, negative_k, weights)
        combined = _combined(weights, a, b)
        # Whoever asked may write into P; what is saved stays as it is.
        return combined.clone() if combined.data_ptr() == weights.data_ptr() else combined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_combined: Tensor) -> tuple[Tensor | None, ...]:
        a, b, saved = _saved(ctx)
        queries, k, negative_k, weights = saved
        *grads, row_sums = _backward_at_once(grad_combined, queries, k, negative_k, a, b, weights)
        grad_a = _summed(row_sums[:, :, 0], a) if ctx.needs_input_grad[3] else None
        grad_b = _summed(row_sums[:, :, 1].neg(), b) if ctx.needs_input_grad[4] else None
        return *grads, grad_a, grad_b, None


def _of(coefficient: Any, part: slice) -> Any:
    """Returns these sentences' part of a or b."""
    if isinstance(coefficient, Tensor) and coefficient.dim() == 4 and coefficient.size(0) > 1:
        return coefficient[part]
    return coefficient


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Returns the sum of two groups' gradients, in exact precision."""
    if more is None:
        return None
    return more.to(_exact(more.dtype)) if total is None else total.add_(more)


def _summed(row_sums: Tensor, coefficient: Coefficient) -> Tensor:
    """Returns B × H × T × 1 summed to the shape of a coefficient."""
    assert isinstance(coefficient, Tensor)
    exact = row_sums.to(_exact(row_sums.dtype))
    if coefficient.numel() == 1:
        return exact.sum().reshape(coefficient.shape).to(coefficient.dtype)
    return exact.sum_to_size(coefficient.shape).to(coefficient.dtype)


@dataclass(frozen=True)
class Group:
    """The heads h0…h1 of the sentences b0…b1, n of them: all heads, or those of one sentence. `index` counts groups."""

    b0: int
    b1: int
    h0: int
    h1: int
    index: int

    @property
    def size(self) -> int:
        return (self.b1 - self.b0) * (self.h1 - self.h0)

    def of(self, tensor: Tensor) -> Tensor:
        """Returns these heads of B × H × …, the same memory."""
        return tensor[self.b0 : self.b1, self.h0 : self.h1]


@dataclass(frozen=True)
class Block:
    """Queries r0…r1 of a group and the keys before `seen`; `index` counts the blocks of a group.

    All blocks have as many rows: the last ones of the last block may lie behind the last query, and count for nothing.
    """

    r0: int
    r1: int
    seen: int
    index: int


class _Space:
    """The memory of one block and the views of it that are worked on; every block lies in the same buffers."""

    def __init__(self, call: _Long, size: int, block: Block) -> None:
        shape = (size, call.branches, call.rows, block.seen)
        self.weights = call.buffer("weights", *shape)
        """n × branches × r × s: scores, then E, which for half precision is normalised."""
        self.stacked = self.weights.flatten(1, 2)
        self.positive = self.weights[:, 0]
        self.negative = self.weights[:, 1] if call.branches > 1 else None
        self.matrix = call.buffer("matrix", size, call.rows, block.seen)


class _Long:
    """What the forward and the backward of one call share: its shapes, blocks, coefficients and buffers."""

    def __init__(
        self,
        shape: torch.Size,
        num_keys: int,
        like: Tensor,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
        dropout_p: float,
        seed: int,
    ) -> None:
        self.branches = 1 if b is None else 2
        self.bsz, self.heads, stacked_length, width = shape
        self.length, self.num_keys = stacked_length // self.branches, num_keys
        self.scale = 1 / math.sqrt(width)
        self.score_scale = LOG2_E * self.scale
        self.mask, self.dropout_p, self.seed = mask, dropout_p, seed
        self.dtype, self.exact = like.dtype, _exact(like.dtype)
        # Its range holds no exponentials without their sums: weights are normalised before they meet V.
        self.is_half = self.dtype != self.exact
        self.num_blocks = -(-self.length // BLOCK_ROWS)
        self.rows = -(-self.length // self.num_blocks)
        self.heads_at_once = self._heads_at_once(BLOCK_WEIGHTS_ON_GPU if like.is_cuda else BLOCK_WEIGHTS)
        self.blocks = [self._block(index) for index in range(self.num_blocks)]
        self.may_be_safe = not (like.is_cuda or self.is_half) and mask.bias is None
        self.coefficients = self._coefficients([a] if b is None else [a, b], like)
        self.ratio = None if b is None else self.coefficients[:, :, 1] / self.coefficients[:, :, 0]
        self.device = like.device
        self.buffers: dict[str, Tensor] = {}
        self.spaces: dict[tuple[int, int], _Space] = {}
        self.future: Tensor | None = None

    def _heads_at_once(self, limit: int) -> int:
        """Returns how many heads a group has: those of whole sentences, or a divisor of one sentence's."""
        at_once = max(1, limit // (self.rows * self.num_keys))
        if at_once >= self.heads:
            return min(at_once // self.heads, self.bsz) * self.heads
        return max(part for part in range(1, at_once + 1) if self.heads % part == 0)

    def _block(self, index: int) -> Block:
        r0 = index * self.rows
        seen = self.num_keys
        if self.mask.causal:
            seen = min(seen, self.num_keys - self.length + r0 + self.rows)
        return Block(r0, r0 + self.rows, seen, index)

    def _coefficients(self, given: list[Coefficient], like: Tensor) -> Tensor:
        """Returns a and −b, B × H × branches × 1 × 1 or B × H × branches × T × 1.

        They are divided by a: one of nearly 0 becomes a number too small to matter.
        """
        full = [c if isinstance(c, Tensor) else like.new_full((1,), c, dtype=self.exact) for c in given]
        full = [c.to(self.exact)[(None,) * (4 - c.dim())] for c in full]
        length = max(c.size(2) for c in full)
        full = [c.expand(self.bsz, self.heads, length, 1) for c in full]
        smallest = torch.finfo(self.exact).eps
        full[0] = torch.where(full[0].abs() < smallest, smallest, full[0])
        return torch.stack([full[0], *(-c for c in full[1:])], dim=2)

    def groups(self) -> Iterator[Group]:
        heads = min(self.heads_at_once, self.heads)
        sentences = self.heads_at_once // heads
        index = 0
        for b0 in range(0, self.bsz, sentences):
            for h0 in range(0, self.heads, heads):
                yield Group(b0, min(b0 + sentences, self.bsz), h0, h0 + heads, index)
                index += 1

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Returns uninitialised memory that every block uses again: it stays in the cache."""
        if name not in self.buffers:
            largest = self.heads_at_once * self.rows * self.num_keys * (shape[1] if len(shape) == 4 else 1)
            self.buffers[name] = torch.empty(largest, dtype=self.exact, device=self.device)
        return self.buffers[name][: math.prod(shape)].view(shape)

    def space(self, size: int, block: Block) -> _Space:
        key = (size, block.index)
        if key not in self.spaces:
            self.spaces[key] = _Space(self, size, block)
        return self.spaces[key]

    def in_blocks(self, tensor: Tensor) -> Tensor:
        """Returns … × T × D as … × blocks × rows × D, zero behind the last query; else the same memory."""
        missing = self.num_blocks * self.rows - self.length
        if missing:
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, missing))
        return tensor.unflatten(-2, (self.num_blocks, self.rows))

    def stacked(self, group: Group, queries: Tensor) -> Tensor:
        """Returns these heads of B × H × (branches · T) × D as blocks × n × branches × rows × D."""
        blocks = self.in_blocks(group.of(queries).unflatten(2, (self.branches, self.length)))
        return blocks.flatten(0, 1).permute(2, 0, 1, 3, 4).contiguous()

    def write(self, group: Group, blocks: Tensor, factors: Tensor | float, out: Tensor) -> None:
        """Writes blocks × n × rows × D, times the factors, to these heads of B × H × T × D."""
        out = group.of(out)
        if self.num_blocks * self.rows == self.length:
            by_head = out.unflatten(-2, (self.num_blocks, self.rows)).permute(2, 0, 1, 3, 4)
            if isinstance(factors, Tensor):
                factors = factors.unflatten(1, out.shape[:2])
            torch.mul(blocks.unflatten(1, out.shape[:2]), factors, out=by_head)
        else:
            out.copy_(self.joined(blocks * factors).view(out.shape))

    def joined(self, blocks: Tensor) -> Tensor:
        """Returns blocks × n × rows × D as n × T × D."""
        return blocks.transpose(0, 1).flatten(1, 2)[:, : self.length]

    def rows_of(self, tensor: Tensor, block: Block) -> Tensor:
        """Returns the rows of a block of … × T × 1; one row for all of them stays as it is."""
        if tensor.size(-2) == 1:
            return tensor
        missing = max(0, block.r1 - self.length)
        return torch.nn.functional.pad(tensor[..., block.r0 : block.r1, :], (0, 0, 0, missing))

    def scores(self, queries: Tensor, keys: list[Tensor], block: Block, space: _Space) -> None:
        """Writes the scores of each branch, as exponents of 2, over the weights."""
        seen = [each[:, : block.seen].transpose(1, 2) for each in keys]
        if self.is_half:
            made = [torch.bmm(queries[:, branch], seen[branch % len(seen)]) for branch in range(self.branches)]
            torch.stack([each.to(self.exact) * self.score_scale for each in made], dim=1, out=space.weights)
        elif len(seen) == 1:
            _product(queries.flatten(1, 2), seen[0], self.score_scale, out=space.stacked)
        else:
            for branch, each in enumerate(seen):
                _product(queries[:, branch], each, self.score_scale, out=space.weights[:, branch])

    def hiding(self, group: Group, block: Block, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the finite bias and where keys are visible (0 or 1) for the last keys that the block sees.

        Both are broadcastable to sentences × heads × branches × r × s.
        """
        if self.mask.is_empty:
            return None, None
        if self.mask.is_plainly_causal:
            # Only the last rows × rows of what this block sees can lie in some row's future.
            if self.future is None:
                self.future = like.new_ones(self.rows, self.rows).tril_()
            width = block.seen - (self.num_keys - self.length + block.r0)
            return None, self.future if width == self.rows else self.future[:, :width]
        last = min(block.r1, self.length)
        mask = self.mask.sentences(group.b0, group.b1).heads(group.h0, group.h1)
        mask = mask.rows(block.r0, last, self.length, self.num_keys)
        hidden = mask.hidden_keys(last - block.r0, block.seen, like.device)
        return self._fitted(mask.bias, like.dtype), self._fitted(None if hidden is None else ~hidden, like.dtype)

    def _fitted(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Returns a mask with a dimension for the branches, and as many rows as a block has."""
        if mask is None:
            return None
        if 1 < mask.size(-2) < self.rows:
            mask = torch.nn.functional.pad(mask, (0, 0, 0, self.rows - mask.size(-2)))
        return _for_branches(mask).to(dtype)

    def exponentials(self, group: Group, block: Block, space: _Space, largest: Tensor | None, known: bool) -> None:
        """Turns scores into E = 2^(scores − largest), 0 where hidden; finds `largest` unless it is known."""
        scores = space.weights
        bias, visible = self.hiding(group, block, scores)
        if bias is not None:
            scores.view(group.b1 - group.b0, -1, *scores.shape[1:]).add_(bias, alpha=LOG2_E)
        tail = scores
        if visible is not None:
            tail = tail.view(group.b1 - group.b0, -1, *scores.shape[1:])
            if visible.size(-1) > 1:
                tail = tail[..., block.seen - visible.size(-1) :]
        if largest is not None:
            if not known:
                if visible is not None:
                    tail.masked_fill_(visible == 0, -math.inf)
                torch.amax(scores, dim=-1, keepdim=True, out=largest)
                if self.mask.may_hide_all:
                    largest.clamp_(min=torch.finfo(largest.dtype).min)
            # A hidden key may lie above the largest visible one.
            scores.sub_(largest).clamp_(LOWEST_EXPONENT, 0.0)
        scores.exp2_()
        if visible is not None:
            tail.mul_(visible)

    def is_safe(self, queries: Tensor, keys: list[Tensor]) -> bool:
        """Whether no score can be so large that its exponential needs a maximum subtracted (Cauchy and Schwarz)."""
        if not self.may_be_safe:
            return False
        longest = [float(torch.linalg.vector_norm(each, dim=-1).amax()) for each in (queries, *keys)]
        return longest[0] * max(longest[1:]) * self.score_scale <= SAFE_EXPONENT

    def factors(self, group: Group, sums: Tensor | None) -> Tensor:
        """Returns w of all rows, blocks × n × branches × r × 1, or a and −b without the sums."""
        own = group.of(self.coefficients).flatten(0, 1)
        blocks = own.unsqueeze(0) if own.size(2) == 1 else self.in_blocks(own).movedim(2, 0)
        return blocks if sums is None else blocks / sums

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """Returns left @ right in exact precision, in `out`."""
        return out.copy_(torch.bmm(left, right)) if self.is_half else torch.bmm(left, right, out=out)

    def combined(self, space: _Space, factors: Tensor, sums: Tensor, ratio: Tensor | None, out: Tensor) -> Tensor:
        """Returns P (half precision) or P/w⁺, n × r × s, in `out` if there is anything to do."""
        if self.is_half:
            torch.mul(space.positive, factors[:, 0], out=out)
            return out if space.negative is None else out.addcmul_(space.negative, factors[:, 1])
        if ratio is None:
            return space.positive
        assert space.negative is not None
        return torch.addcmul(space.positive, space.negative, sums[:, 0].div(sums[:, 1]).mul_(ratio), out=out)

    def keep(self, group: Group, block: Block, like: Tensor) -> Tensor | None:
        """Returns the factors of dropout: the same ones for the same block of the same call."""
        if self.dropout_p == 0:
            return None
        index = group.index * self.num_blocks + block.index
        return _keep(self.buffer("dropout", *like.shape), self.dropout_p, self.seed + index)


class ByBlocks(torch.autograd.Function):
    """Long sequences: one group of heads after the other, and in it one block of rows after the other.

    The backward makes the weights again from the scores' row sums (and maxima, where exponentials need one).
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        k: Tensor,
        v: Tensor,
        negative_k: Tensor | None,
        a: Coefficient,
        b: Coefficient | None,
        mask: AttentionMask,
        dropout_p: float,
    ) -> Tensor:
        seed = _draw_seed(dropout_p)
        call = _Long(queries.shape, k.size(2), k, a, b, mask, dropout_p, seed)
        output = _rows_first(v, call.length)
        saved: list[Tensor | None] = []
        for group in call.groups():
            keys = [group.of(each).flatten(0, 1).contiguous() for each in (k, negative_k) if each is not None]
            values = group.of(v).flatten(0, 1).contiguous()
            own_queries = call.stacked(group, queries)
            products = k.new_empty(call.num_blocks, group.size, call.rows, values.size(-1))
            coefficients = group.of(call.coefficients).flatten(0, 1)
            ratio = None if call.ratio is None else group.of(call.ratio).flatten(0, 1)
            sums = k.new_empty(*own_queries.shape[:-1], 1, dtype=call.exact)
            largest = None if call.is_safe(own_queries, keys) else torch.empty_like(sums)
            for block, own, own_sums, product in zip(
                call.blocks, own_queries.unbind(), sums.unbind(), products.unbind(), strict=True
            ):
                space = call.space(group.size, block)
                call.scores(own, keys, block, space)
                call.exponentials(group, block, space, None if largest is None else largest[block.index], False)
                torch.sum(space.weights, dim=-1, keepdim=True, out=own_sums)
                if mask.may_hide_all:
                    own_sums.masked_fill_(own_sums == 0, 1.0)
                if call.is_half:
                    space.weights.div_(own_sums)
                factors = call.rows_of(coefficients, block)
                own_ratio = None if ratio is None else call.rows_of(ratio, block)
                matrix = call.combined(space, factors, own_sums, own_ratio, space.matrix)
                keep = call.keep(group, block, matrix)
                if keep is not None:
                    matrix = keep.mul_(matrix)
                torch.bmm(matrix.to(call.dtype), values[:, : block.seen], out=product)
            call.write(group, products, 1.0 if call.is_half else call.factors(group, sums)[:, :, 0], output)
            saved += [own_queries, *keys, values, sums, largest]
        _save(ctx, a, b, *saved)
        ctx.layouts = tuple(None if x is None else (x.shape, x.stride()) for x in (queries, k, v, negative_k))
        ctx.mask, ctx.dropout_p, ctx.seed = mask, dropout_p, seed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        a, b, saved = _saved(ctx)
        (shape, _), (keys_shape, _), *_ = ctx.layouts
        call = _Long(shape, keys_shape[2], grad_output, a, b, ctx.mask, ctx.dropout_p, ctx.seed)
        grad_queries, grad_k, grad_v, *grad_negative_k = (
            _empty(layout, grad_output) for layout in ctx.layouts if layout is not None
        )
        by_branch = grad_queries.unflatten(2, (call.branches, call.length)).unbind(2)
        # The sum of P± ∘ dP over the keys, for each row: what a λ's gradient is summed from.
        per_row = (call.branches, call.bsz, call.heads, call.length, 1)
        row_totals = torch.empty(per_row, dtype=call.exact, device=grad_output.device)
        for group in call.groups():
            queries = next(saved)
            keys = [next(saved) for _ in (grad_k, *grad_negative_k)]
            values, sums, largest = (next(saved) for _ in range(3))
            upstream = call.in_blocks(group.of(grad_output)).flatten(0, 1).transpose(0, 1).contiguous()
            ratio = None if call.ratio is None else group.of(call.ratio).flatten(0, 1)
            factors = call.factors(group, None if call.is_half else sums).expand_as(sums)
            all_row_sums = torch.empty_like(sums)
            weighted_queries, weighted = queries, upstream
            if not call.is_half:
                weighted_queries, weighted = queries * factors, upstream * factors[:, :, 0]
            grad_values = torch.empty_like(values, dtype=call.exact)
            grad_keys = [torch.empty_like(each, dtype=call.exact) for each in keys]
            products = queries.new_empty(queries.shape)
            for block in reversed(call.blocks):
                index, seen = block.index, block.seen
                # The last block comes first and sees every key: it needs no zeros to add to.
                beta = 0 if index == call.num_blocks - 1 else 1
                own_sums = sums[index]
                space = call.space(group.size, block)
                weights = space.weights
                call.scores(queries[index], keys, block, space)
                call.exponentials(group, block, space, None if largest is None else largest[index], True)
                if call.is_half:
                    weights.div_(own_sums)
                own_ratio = None if ratio is None else call.rows_of(ratio, block)
                matrix = call.combined(space, factors[index], own_sums, own_ratio, space.matrix)
                keep = call.keep(group, block, matrix)
                if keep is not None:
                    matrix = torch.mul(matrix, keep, out=space.matrix)
                _accumulate(grad_values, matrix.to(call.dtype), weighted[index], seen, 1.0, beta)
                grad_weights = call.product(upstream[index], values[:, :seen].transpose(1, 2), space.matrix)
                if keep is not None:
                    grad_weights.mul_(keep)
                gradients = call.buffer("gradients", *weights.shape)
                grad_scores = torch.mul(weights, grad_weights.unsqueeze(1), out=gradients)
                row_sums = torch.sum(grad_scores, dim=-1, keepdim=True, out=all_row_sums[index])
                if not call.is_half:
                    row_sums.div_(own_sums)
                grad_scores.addcmul_(weights, row_sums, value=-1)
                if call.is_half:
                    grad_scores = grad_scores.mul_(factors[index]).to(call.dtype)
                own_tensors = (grad_scores, weighted_queries[index], products[index])
                # Branches that share their keys are more rows of one product.
                stacked = [tuple(each.flatten(1, 2) for each in own_tensors)]
                pairs = zip(*(each.unbind(1) for each in own_tensors), strict=True) if len(keys) > 1 else stacked
                for (own, query, product), each, total in zip(pairs, keys, grad_keys, strict=True):
                    torch.bmm(own, each[:, :seen], out=product)
                    _accumulate(total, own, query, seen, call.scale, beta)
            for branch, grad in enumerate(by_branch):
                factor = call.scale if call.is_half else factors[:, :, branch] * call.scale
                call.write(group, products[:, :, branch], factor, grad)
            for whole, own_grad in zip((grad_v, grad_k, *grad_negative_k), (grad_values, *grad_keys), strict=True):
                destination = group.of(whole)
                destination.copy_(own_grad.view(destination.shape))
            for total, own in zip(row_totals, all_row_sums.unbind(2), strict=True):
                call.write(group, own, 1.0, total)
        grad_a = _summed(row_totals[0], a) if ctx.needs_input_grad[4] else None
        grad_b = _summed(row_totals[1].neg(), b) if ctx.needs_input_grad[5] else None
        return grad_queries, grad_k, grad_v, grad_negative_k[0] if grad_negative_k else None, grad_a, grad_b, None, None


def _accumulate(total: Tensor, left: Tensor, right: Tensor, seen: int, scale: float, beta: int) -> None:
    """Makes the first `seen` rows of `total` beta times themselves plus scale · leftᵀ @ right (n × s × D)."""
    part = total[:, :seen]
    left = left.transpose(1, 2)
    if left.dtype == part.dtype:
        torch.baddbmm(part, left, right, beta=beta, alpha=scale, out=part)
    elif beta:
        part.add_(torch.bmm(left, right), alpha=scale)
    else:
        torch.mul(torch.bmm(left, right), scale, out=part)


def _rows_first(like: Tensor, length: int) -> Tensor:
    """Returns an empty B × H × T × D that is contiguous as T × B × H × D, which the projections read without a copy."""
    bsz, heads, _, width = like.shape
    return like.new_empty(length, bsz, heads, width).permute(1, 2, 0, 3)


def _empty(layout: tuple[torch.Size, tuple[int, ...]], like: Tensor) -> Tensor:
    """Returns an empty tensor of a shape whose dimensions lie in memory in the order that the strides name."""
    shape, strides = layout
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    return like.new_empty([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(len(shape))])


def _empty_like(tensor: Tensor) -> Tensor:
    return _empty((tensor.shape, tensor.stride()), tensor)


def is_short(q: Tensor, k: Tensor) -> bool:
    """Whether queries and keys are so few that their weights are held."""
    return max(q.size(-2), k.size(-2)) <= LONGEST_AT_ONCE


def fused_weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    a: Coefficient = 1.0,
    b: Coefficient | None = None,
    negative_q: Tensor | QueryMap | None = None,
    negative_k: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Returns what `fused_attention` returns and P before dropout, B × H × T × S; only for short sequences."""
    a, b = _number_or_tensor(a), None if b is None else _number_or_tensor(b)
    # A checkpointed activation is made without gradients and then again with them: the same weights must be dropped.
    if torch.is_grad_enabled() or dropout_p > 0:
        weights = WeightsAtOnce.apply(_both_branches(q, negative_q), k, negative_k, a, b, mask)
        return apply_weights(weights, v, dropout_p), weights
    weights = q.new_empty(*q.shape[:3], k.size(2))
    queries, query_map = _short_queries(q, negative_q)
    output = _attend_at_once(queries, k, v, negative_k, a, b, mask, dropout_p, query_map, asked=weights)
    return output, weights


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: AttentionMask,
    a: Coefficient = 1.0,
    b: Coefficient | None = None,
    negative_q: Tensor | QueryMap | None = None,
    negative_k: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Returns dropout(a·softmax(q kᵀ/√D + M) − b·softmax(q⁻ k⁻ᵀ/√D + M)) v.

    Shapes: q, q⁻ B × H × T × D; k, k⁻, v B × H × S × D; a, b numbers or broadcastable to B × H × T × 1; result
    B × H × T × D. Differentiable once, in everything but the mask.
    """
    a, b = _number_or_tensor(a), None if b is None else _number_or_tensor(b)
    if not is_short(q, k):
        return ByBlocks.apply(_both_branches(q, negative_q), k, v, negative_k, a, b, mask, dropout_p)
    queries, query_map = _short_queries(q, negative_q)
    if torch.is_grad_enabled():
        parameters = () if query_map is None else query_map.parameters
        return AtOnce.apply(queries, k, v, negative_k, a, b, mask, dropout_p, query_map, *parameters)
    return _attend_at_once(queries, k, v, negative_k, a, b, mask, dropout_p, query_map)


def _number_or_tensor(coefficient: Coefficient) -> Coefficient:
    return coefficient if isinstance(coefficient, Tensor) else float(coefficient)


def _both_branches(q: Tensor, negative_q: Tensor | QueryMap | None) -> Tensor:
    """Returns the queries of all branches, one after the other, differentiable: B × H × (branches · T) × D."""
    if isinstance(negative_q, QueryMap):
        return negative_q.both(q)
    return q if negative_q is None else torch.cat([q, negative_q], dim=2)


def _short_queries(q: Tensor, negative_q: Tensor | QueryMap | None) -> tuple[Tensor, QueryMap | None]:
    """Returns the queries of all branches, or those of the first and how both are made of them."""
    if isinstance(negative_q, QueryMap):
        return q, negative_q
    return _both_branches(q, negative_q), None
