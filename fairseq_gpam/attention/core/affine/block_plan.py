"""How a long sequence is divided into groups of heads and blocks of rows, and how one block is computed.

Shapes: n heads in a group, r rows in a block, s keys visible to the block.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.masks import AttentionMask

# Measured on a CPU with AVX-512 and 2 MiB of second-level cache per core.
BLOCK_ROWS = 64
BLOCK_WEIGHTS = 2**18

# exp2 takes a third of the time of exp, so scores are multiplied by log₂ e.
LOG2_E = math.log2(math.e)
# 2^−115 is negligible beside 1; numbers below 2^−126 are denormal and slow.
LOWEST_EXPONENT = -115.0
# Below this exponent no maximum needs to be subtracted: powers, their sums and ratios stay finite in fp32.
SAFE_EXPONENT = 43.0


@dataclass(frozen=True)
class Group:
    """Heads h0…h1 of sentences b0…b1: all heads of several sentences, or some heads of one. `index` counts groups."""

    b0: int
    b1: int
    h0: int
    h1: int
    index: int

    @property
    def size(self) -> int:
        return (self.b1 - self.b0) * (self.h1 - self.h0)

    def of(self, tensor: Tensor) -> Tensor:
        """Returns these heads of B × H × …, as a view."""
        return tensor[self.b0 : self.b1, self.h0 : self.h1]


@dataclass(frozen=True)
class Block:
    """Queries r0…r1 of a group and the first `num_keys` keys; `index` counts the blocks of a group.

    All blocks have the same number of rows; rows beyond the last query are ignored.
    """

    r0: int
    r1: int
    num_keys: int
    index: int


class BlockPlan:
    """Shapes, blocks, branch weights and buffers for the forward or the backward pass of one call."""

    def __init__(
        self, shape: torch.Size, num_keys: int, factors: Tensor, mask: AttentionMask, dropout_p: float, seed: int
    ) -> None:
        self.branches = factors.size(2)
        self.bsz, self.heads, stacked_length, width = shape
        self.length, self.num_keys = stacked_length // self.branches, num_keys
        self.scale = 1 / math.sqrt(width)
        self.score_scale = LOG2_E * self.scale
        self.mask, self.dropout_p, self.seed = mask, dropout_p, seed
        self.dtype = factors.dtype
        self.num_blocks = -(-self.length // BLOCK_ROWS)
        self.rows = -(-self.length // self.num_blocks)
        self.heads_at_once = self._heads_at_once()
        self.blocks = [self._block(index) for index in range(self.num_blocks)]
        # P is divided by the first branch's weight, so a weight near 0 is replaced by one too small to matter.
        smallest = torch.finfo(self.dtype).eps
        first = torch.where(factors[:, :, :1].abs() < smallest, smallest, factors[:, :, :1])
        self.factors = torch.cat([first, factors[:, :, 1:]], dim=2)
        self.ratio = None if self.branches == 1 else self.factors[:, :, 1] / self.factors[:, :, 0]
        self.buffers: dict[str, Tensor] = {}
        self.future: Tensor | None = None

    def _heads_at_once(self) -> int:
        """Returns the number of heads in a group: those of whole sentences, or a divisor of one sentence's."""
        at_once = max(1, BLOCK_WEIGHTS // (self.rows * self.num_keys))
        if at_once >= self.heads:
            return min(at_once // self.heads, self.bsz) * self.heads
        return max(part for part in range(1, at_once + 1) if self.heads % part == 0)

    def _block(self, index: int) -> Block:
        r0 = index * self.rows
        num_keys = self.num_keys
        if self.mask.causal:
            num_keys = min(num_keys, self.num_keys - self.length + r0 + self.rows)
        return Block(r0, r0 + self.rows, num_keys, index)

    def groups(self) -> Iterator[Group]:
        heads = min(self.heads_at_once, self.heads)
        sentences = self.heads_at_once // heads
        starts = [(b0, h0) for b0 in range(0, self.bsz, sentences) for h0 in range(0, self.heads, heads)]
        for index, (b0, h0) in enumerate(starts):
            yield Group(b0, min(b0 + sentences, self.bsz), h0, h0 + heads, index)

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Returns uninitialised memory that all blocks share, so that it stays in the processor's cache."""
        if name not in self.buffers:
            largest = self.heads_at_once * self.rows * self.num_keys * (shape[1] if len(shape) == 4 else 1)
            self.buffers[name] = torch.empty(largest, dtype=self.dtype)
        return self.buffers[name][: math.prod(shape)].view(shape)

    def buffers_of(self, group: Group, block: Block) -> tuple[Tensor, Tensor]:
        """Returns the memory of one block: n × branches × r × s for the scores and then E, and n × r × s."""
        weights = self.buffer("weights", group.size, self.branches, self.rows, block.num_keys)
        return weights, self.buffer("matrix", group.size, self.rows, block.num_keys)

    def in_blocks(self, tensor: Tensor) -> Tensor:
        """Returns … × T × D as … × blocks × rows × D, padded with zeros; a view if no padding is needed."""
        missing = self.num_blocks * self.rows - self.length
        if missing:
            tensor = F.pad(tensor, (0, 0, 0, missing))
        return tensor.unflatten(-2, (self.num_blocks, self.rows))

    def stacked(self, group: Group, queries: Tensor) -> Tensor:
        """Returns these heads of B × H × (branches · T) × D as blocks × n × branches × rows × D."""
        blocks = self.in_blocks(group.of(queries).unflatten(2, (self.branches, self.length)))
        return blocks.flatten(0, 1).permute(2, 0, 1, 3, 4).contiguous()

    def write(self, group: Group, blocks: Tensor, factors: Tensor | float, out: Tensor) -> None:
        """Writes blocks × n × rows × D, times the factors, to these heads of B × H × T × D."""
        out = group.of(out)
        joined = (blocks * factors).transpose(0, 1).flatten(1, 2)[:, : self.length]
        out.copy_(joined.view(out.shape))

    def rows_of(self, tensor: Tensor, block: Block) -> Tensor:
        """Returns a block's rows of … × T × 1; a tensor with a single row is returned unchanged."""
        if tensor.size(-2) == 1:
            return tensor
        return F.pad(tensor[..., block.r0 : block.r1, :], (0, 0, 0, max(0, block.r1 - self.length)))

    def scores(self, queries: Tensor, keys: list[Tensor], block: Block, weights: Tensor) -> None:
        """Overwrites `weights` with the scores of each branch, as exponents of 2."""
        seen = [each[:, : block.num_keys].transpose(1, 2) for each in keys]
        unused = queries.new_empty(1, 1, 1)
        if len(seen) == 1:
            pairs = [(queries.flatten(1, 2), seen[0], weights.flatten(1, 2))]
        else:
            pairs = list(zip(queries.unbind(1), seen, weights.unbind(1), strict=True))
        for query, each, out in pairs:
            torch.baddbmm(unused, query, each, beta=0, alpha=self.score_scale, out=out)

    def hiding(self, group: Group, block: Block, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the finite bias and which keys are visible (0 or 1), possibly for only the last of the block's keys.

        Both are broadcastable to sentences × heads × branches × r × s.
        """
        if self.mask.is_empty:
            return None, None
        if self.mask.is_plainly_causal:
            # Only the last rows × rows square of the block can contain future keys.
            if self.future is None:
                self.future = like.new_ones(self.rows, self.rows).tril_()
            width = block.num_keys - (self.num_keys - self.length + block.r0)
            return None, self.future if width == self.rows else self.future[:, :width]
        last = min(block.r1, self.length)
        mask = self.mask.sentences(group.b0, group.b1).heads(group.h0, group.h1)
        mask = mask.rows(block.r0, last, self.length, self.num_keys)
        hidden = mask.hidden_keys(last - block.r0, block.num_keys, like.device)
        return self._fitted(mask.bias, like.dtype), self._fitted(None if hidden is None else ~hidden, like.dtype)

    def _fitted(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Returns a mask with a dimension for the branches, padded to the rows of a block.

        The rows that fill a block see every key: one that sees none would make gradients NaN.
        """
        if mask is None:
            return None
        if 1 < mask.size(-2) < self.rows:
            mask = F.pad(mask, (0, 0, 0, self.rows - mask.size(-2)), value=float(mask.dtype == torch.bool))
        return (mask.unsqueeze(2) if mask.dim() == 4 else mask).to(dtype)

    def exponentials(self, group: Group, block: Block, scores: Tensor, largest: Tensor | None, known: bool) -> None:
        """Turns scores into E = 2^(scores − largest), 0 where hidden; finds `largest` unless it is known."""
        bias, visible = self.hiding(group, block, scores)
        by_sentence = scores.view(group.b1 - group.b0, -1, *scores.shape[1:])
        if bias is not None:
            by_sentence.add_(bias, alpha=LOG2_E)
        tail = by_sentence
        if visible is not None and visible.size(-1) > 1:
            tail = tail[..., block.num_keys - visible.size(-1) :]
        if largest is not None:
            if not known:
                if visible is not None:
                    tail.masked_fill_(visible == 0, -math.inf)
                torch.amax(scores, dim=-1, keepdim=True, out=largest)
                if self.mask.may_hide_all:
                    largest.clamp_(min=torch.finfo(largest.dtype).min)
            # A hidden key's score may exceed the largest visible one.
            scores.sub_(largest).clamp_(LOWEST_EXPONENT, 0.0)
        scores.exp2_()
        if visible is not None:
            tail.mul_(visible)

    def cannot_overflow(self, queries: Tensor, keys: list[Tensor]) -> bool:
        """Returns whether all scores can be exponentiated without subtracting a maximum (by Cauchy and Schwarz)."""
        if self.mask.bias is not None:
            return False
        longest = [float(torch.linalg.vector_norm(each, dim=-1).amax()) for each in (queries, *keys)]
        return longest[0] * max(longest[1:]) * self.score_scale <= SAFE_EXPONENT

    def factors_over_sums(self, group: Group, sums: Tensor) -> Tensor:
        """Returns c/l of all rows: blocks × n × branches × r × 1."""
        factors = group.of(self.factors).flatten(0, 1)
        blocks = factors.unsqueeze(0) if factors.size(2) == 1 else self.in_blocks(factors).movedim(2, 0)
        return blocks / sums

    def combined(self, group: Group, block: Block, weights: Tensor, sums: Tensor, out: Tensor) -> Tensor:
        """Returns P before dropout, divided by the first branch's c/l: n × r × s, in `out` or E (`weights`) itself."""
        if self.ratio is None:
            return weights[:, 0]
        ratio = self.rows_of(group.of(self.ratio).flatten(0, 1), block)
        factor = sums[:, 0].div(sums[:, 1]).mul_(ratio)
        return torch.addcmul(weights[:, 0], weights[:, 1], factor, out=out)

    def dropout_mask(self, group: Group, block: Block, like: Tensor) -> Tensor | None:
        """Returns 0 or 1/(1 − p) for every weight, the same in the forward and the backward pass of a call."""
        if self.dropout_p == 0:
            return None
        mask = self.buffer("dropout", *like.shape)
        if self.dropout_p >= 1:
            return mask.zero_()
        generator = torch.Generator().manual_seed(self.seed + group.index * self.num_blocks + block.index)
        return mask.bernoulli_(1 - self.dropout_p, generator=generator).div_(1 - self.dropout_p)
