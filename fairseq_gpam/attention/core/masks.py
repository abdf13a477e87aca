"""The one place where all kinds of masks become an AttentionMask.

fairseq passes a key padding mask (bool or uint8, True or 1 = hidden, B × S) and an additive attention mask
(float, T × S, −inf, −1e8 or −1e4 = hidden; or bool or uint8, True = hidden).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# fairseq's encoder layer uses -1e4 in fp16 and -1e8 in fp32 to hide keys.
HIDDEN_BELOW = -1e4


class FutureMask(enum.Enum):
    """Stands for the decoder's causal mask without a T × T matrix."""

    FUTURE = "future"

    def __repr__(self) -> str:
        return self.name


FUTURE = FutureMask.FUTURE


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query may see, and the bias that is added to their scores.

    padding: bool, B × S, True = hidden, or None.
    causal: query i may see the keys up to S − T + i (the T queries are the last of the S positions).
    bias: float, broadcastable to B × H × T × S, finite or −inf, or None.
    hidden: bool, broadcastable to B × H × T × S, True = hidden, or None.
    """

    padding: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    hidden: Tensor | None = None

    @classmethod
    def from_fairseq(
        cls, key_padding_mask: Tensor | None = None, attn_mask: Tensor | FutureMask | None = None
    ) -> AttentionMask:
        """Returns fairseq's two masks as one; an attention mask may be T × S or B × H × T × S."""
        padding = None
        if key_padding_mask is not None and key_padding_mask.dim() > 0:
            padding = key_padding_mask.bool()
        if attn_mask is None:
            return cls(padding)
        if isinstance(attn_mask, FutureMask):
            return cls(padding, causal=True)
        if attn_mask.dim() not in (2, 4):
            raise ValueError(f"attn_mask has shape {tuple(attn_mask.shape)}; allowed: T × S or B × H × T × S")
        if not attn_mask.is_floating_point():
            return cls(padding, hidden=attn_mask.bool())
        hidden = attn_mask <= HIDDEN_BELOW
        return cls(padding, bias=attn_mask.masked_fill(hidden, 0.0), hidden=hidden)

    @property
    def is_empty(self) -> bool:
        return self.padding is None and not self.causal and self.bias is None and self.hidden is None

    @property
    def is_plainly_causal(self) -> bool:
        return self.causal and self.padding is None and self.bias is None and self.hidden is None

    @property
    def may_hide_all(self) -> bool:
        """Returns whether some query may have no visible key."""
        return self.padding is not None or self.hidden is not None

    def hidden_keys(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """Returns bool, broadcastable to B × H × T × S, True = hidden; None if nothing is hidden."""
        hidden = self.hidden
        if self.causal and num_queries > 1:
            future = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
            future = future.triu(num_keys - num_queries + 1)
            hidden = future if hidden is None else hidden | future
        if self.padding is not None:
            padding = self.padding[:, None, None, :]
            hidden = padding if hidden is None else hidden | padding
        return hidden

    def visible_to(self, tokens: Tensor, num_keys: int) -> Tensor:
        """Returns which keys each query may see, none if it is padding: bool, B × 1 or H × T × S; tokens bool B × T."""
        hidden = self.hidden_keys(tokens.size(1), num_keys, tokens.device)
        visible = tokens[:, None, :, None].expand(-1, 1, -1, num_keys)
        return visible if hidden is None else visible & ~hidden

    def leading_keys(self, stop: int, num_queries: int, num_keys: int) -> int:
        """Returns how many leading keys the queries before `stop` may see."""
        return num_keys - num_queries + stop if self.causal else num_keys

    def rows(self, start: int, stop: int, num_queries: int, num_keys: int) -> AttentionMask:
        """Returns the mask of the queries start…stop, cut to the leading keys that at least one of them can see."""
        seen = self.leading_keys(stop, num_queries, num_keys)
        padding = None if self.padding is None else self.padding[:, :seen]
        bias, hidden = _slice(self.bias, start, stop, seen), _slice(self.hidden, start, stop, seen)
        return AttentionMask(padding, self.causal, bias, hidden)

    def extended(self, count: int) -> AttentionMask:
        """Returns the mask with `count` keys appended, visible to every query (bias_kv, zero_attn)."""
        if count == 0 or self.is_empty:
            return self
        if self.causal:
            raise ValueError("a causal mask cannot be extended before it is expanded")
        parts = (self.padding, self.bias, self.hidden)
        padding, bias, hidden = (None if part is None else F.pad(part, (0, count)) for part in parts)
        return AttentionMask(padding, False, bias, hidden)

    def expanded(self, num_queries: int, num_keys: int, device: torch.device) -> AttentionMask:
        """Returns the same mask with `causal` written out as a T × S matrix."""
        if not self.causal:
            return self
        hidden = replace(self, padding=None).hidden_keys(num_queries, num_keys, device)
        return replace(self, causal=False, hidden=hidden)

    def fully_masked(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
        """Returns which rows have no visible key: bool, broadcastable to B × H × T × 1; None if all rows have one."""
        hidden = self.hidden_keys(num_queries, num_keys, device) if self.may_hide_all else None
        return None if hidden is None else hidden.all(dim=-1, keepdim=True)

    def _softmax_mask(
        self, num_queries: int, num_keys: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns the hidden keys and the fully masked rows, which stay unmasked as in `for_scores`."""
        hidden = self.hidden_keys(num_queries, num_keys, device)
        if hidden is None or not self.may_hide_all:
            return hidden, None
        fully_masked = hidden.all(dim=-1, keepdim=True)
        return hidden & ~fully_masked, fully_masked

    def for_scores(self, num_queries: int, num_keys: int, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the bias of the scores, −inf where hidden, and the fully masked rows (None if there are none).

        Shapes: broadcastable to B × H × T × S and to B × H × T × 1. Fully masked rows stay unmasked here, so that their
        softmax is finite; the caller zeroes them with `zero_rows`.
        """
        hidden, fully_masked = self._softmax_mask(num_queries, num_keys, like.device)
        bias = None if self.bias is None else self.bias.to(like.dtype)
        if hidden is None:
            return bias, None
        return torch.where(hidden, float("-inf"), like.new_zeros(()) if bias is None else bias), fully_masked

    def for_kernel(self, num_queries: int, num_keys: int, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the `attn_mask` of scaled_dot_product_attention, bool if possible, and the fully masked rows."""
        if self.bias is not None:
            return self.for_scores(num_queries, num_keys, like)
        hidden, fully_masked = self._softmax_mask(num_queries, num_keys, like.device)
        return (None if hidden is None else ~hidden), fully_masked

    def visible_counts(self, like: Tensor) -> Tensor:
        """Returns the number of keys visible to each row of `like`, … × T × S, at least 1: … × T × 1, broadcastable."""
        hidden = self.hidden_keys(like.size(-2), like.size(-1), like.device)
        if hidden is None:
            return like.new_full((1, 1), float(like.size(-1)))
        return (~hidden).sum(dim=-1, keepdim=True).clamp(min=1).to(like.dtype)

    def uniform_weights(self, like: Tensor) -> Tensor:
        """Returns 1/n on the n keys visible to a row of `like`, … × T × S, 0 elsewhere: broadcastable to it."""
        weights = 1 / self.visible_counts(like)
        return zero_hidden(weights.expand(*weights.shape[:-1], like.size(-1)), self, like.size(-2))

    def visible_mean(self, v: Tensor, num_queries: int) -> Tensor:
        """Returns the mean of the values visible to each row, broadcastable to B × H × T × D; 0 in fully masked rows.

        With a causal mask it is a running mean, computed without a matrix of weights.
        """
        num_keys = v.size(-2)
        if self.hidden is not None:
            uniform = self.uniform_weights(v.new_empty(()).expand(num_queries, num_keys))
            return torch.matmul(uniform.expand(*v.shape[:2], -1, -1), v)
        values = v.float() if v.dtype in (torch.float16, torch.bfloat16) else v
        count = torch.ones(1, 1, num_keys, 1, dtype=values.dtype, device=v.device)
        if self.padding is not None:
            count = (~self.padding)[:, None, :, None].to(values.dtype)
            values = values * count
        if self.causal:
            total = values.cumsum(dim=-2)[..., num_keys - num_queries :, :]
            count = count.cumsum(dim=-2)[..., num_keys - num_queries :, :]
        else:
            total, count = values.sum(dim=-2, keepdim=True), count.sum(dim=-2, keepdim=True)
        return (total / count.clamp(min=1)).type_as(v)

    def sentences(self, start: int, stop: int) -> AttentionMask:
        """Returns the mask of the sentences start…stop."""
        padding = self.padding
        if padding is not None and padding.size(0) > 1:
            padding = padding[start:stop]
        bias, hidden = _part(self.bias, 0, start, stop), _part(self.hidden, 0, start, stop)
        return AttentionMask(padding, self.causal, bias, hidden)

    def heads(self, start: int, stop: int) -> AttentionMask:
        """Returns the mask of the heads start…stop."""
        return replace(self, bias=_part(self.bias, 1, start, stop), hidden=_part(self.hidden, 1, start, stop))


def hide(scores: Tensor, mask: AttentionMask) -> tuple[Tensor, Tensor | None]:
    """Returns scores with −inf on hidden keys, and the fully masked rows, which stay unmasked until `zero_rows`."""
    hidden, fully_masked = mask._softmax_mask(scores.size(-2), scores.size(-1), scores.device)
    return (scores if hidden is None else scores.masked_fill(hidden, float("-inf"))), fully_masked


def zero_hidden(weights: Tensor, mask: AttentionMask, num_queries: int | None = None) -> Tensor:
    """Returns weights B × H × T × S with 0 on hidden keys; `num_queries` gives T if they are only broadcastable."""
    hidden = mask.hidden_keys(num_queries or weights.size(-2), weights.size(-1), weights.device)
    return weights if hidden is None else weights.masked_fill(hidden, 0.0)


def zero_rows(rows: Tensor, fully_masked: Tensor | None) -> Tensor:
    """Returns rows (… × T × anything) with 0 where a row is fully masked."""
    return rows if fully_masked is None else rows.masked_fill(fully_masked, 0.0)


def _part(mask: Tensor | None, dim: int, start: int, stop: int) -> Tensor | None:
    """Returns the sentences (dim 0) or heads (dim 1) start…stop of a mask; a shared mask is returned unchanged."""
    if mask is None or mask.dim() < 4 or mask.size(dim) == 1:
        return mask
    return mask.narrow(dim, start, stop - start)


def _slice(mask: Tensor | None, start: int, stop: int, seen: int) -> Tensor | None:
    if mask is None:
        return None
    rows = mask if mask.size(-2) == 1 else mask[..., start:stop, :]
    return rows if mask.size(-1) == 1 else rows[..., :seen]
