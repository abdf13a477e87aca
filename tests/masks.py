"""The masks of all tests of attention, built in one place and named by their parts, as in "causal, left"."""

from dataclasses import dataclass
from typing import Any

import torch
from reference import visibility

from fairseq_gpam.attention import FUTURE, AttentionMask

PADDED = ("right", "left", "a sentence of padding")


@dataclass(frozen=True)
class Masks:
    """fairseq's two masks, and for references what is visible and what is added to the scores."""

    padding: torch.Tensor | None
    attn_mask: Any
    visible: torch.Tensor
    added: Any

    @property
    def mask(self):
        return AttentionMask.from_fairseq(self.padding, self.attn_mask)


def padding_mask(kind, batch, keys):
    """Sentences lack none, a third and two thirds of the keys in turn; or the second one lacks all of them."""
    hidden = torch.zeros(batch, keys, dtype=torch.bool)
    for row in range(batch):
        count = row % 3 * keys // 3
        if kind == "a sentence of padding":
            hidden[row] = row == 1
        else:
            hidden[row, keys - count :] = kind == "right"
            hidden[row, :count] |= kind == "left"
    return hidden


def make_masks(kind, batch, queries, keys, heads=1, padding=None, dtype=torch.float32):
    """The masks that `kind` names; `padding` takes the place of `padding_mask`."""
    parts = kind.split(", ")
    for name in PADDED:
        if name in parts and padding is None:
            padding = padding_mask(name, batch, keys)
    if "uint8" in parts:
        padding = padding.to(torch.uint8)
    attn_mask = None
    if "bias" in parts:
        attn_mask = torch.randn(queries, keys, dtype=dtype)
    if "bias for each head" in parts:
        attn_mask = torch.randn(batch, heads, queries, keys, dtype=dtype)
    if "hiding" in parts:
        attn_mask[0, 1], attn_mask[1, 2], attn_mask[2, 0] = float("-inf"), -1e8, -1e4
    if "fairseq's future" in parts:
        attn_mask = torch.full((queries, keys), float("-inf")).triu(1) + (0 if attn_mask is None else attn_mask)
    if {"boolean", "low numbers", "scattered"} & set(parts):
        pattern = (torch.rand(queries, keys) < 0.3).fill_diagonal_(False)
        if "boolean" in parts:
            pattern[0] = True
            attn_mask = pattern
        elif "low numbers" in parts:
            attn_mask = pattern * -1e8
        else:
            attn_mask = attn_mask.masked_fill(pattern, float("-inf"))
    causal = "causal" in parts
    visible, added = visibility(batch, queries, keys, padding, attn_mask, causal)
    return Masks(padding, FUTURE if causal else attn_mask, visible, added)
