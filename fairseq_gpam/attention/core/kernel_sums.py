"""Attention whose weights are φ(q)·φ(k), in time linear in the length, by running sums over the keys."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

CHUNK = 64
Features = Callable[[Tensor], Tensor]
Kernel = Callable[[Tensor, Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])


def without_autocast(function: Function) -> Function:
    """Decorates a function of tensors that sums over many keys: autocast to fp16 could make the sums overflow."""

    @functools.wraps(function)
    def wrapped(q: Tensor, *args: Any) -> Any:
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *args)

    return cast(Function, wrapped)


@without_autocast
def kernel_sums(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    causal: bool,
    features: Features,
    kernel: Kernel,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns Σ_j w_ij v_j / Σ_j w_ij, w_ij = φ(q_i)·φ(k_j), and the sums Σ_j φ(k_j)[v_j, 1] over all keys.

    Shapes: q B × H × T × D, k and v B × H × S × D, padding bool B × S. With `causal`, query i attends to the keys up to
    S−T+i. `features` maps … × D to φ, … × F; `kernel` computes φ(q)·φ(k), T × S, directly. `state` holds the sums over
    earlier keys, to which every query attends; like the returned sums it is B × H × F × (D+1). Rows without a visible
    key are zero.
    """
    num_queries, num_keys = q.size(-2), k.size(-2)
    ones = torch.ones(*k.shape[:-1], 1, dtype=k.dtype, device=k.device)
    if padding is not None:
        ones = ones * (~padding)[:, None, :, None]
    # The last column of the values counts the keys and becomes the normaliser.
    values = torch.cat([v.to(k.dtype) * ones, ones], dim=-1)
    before = num_keys - num_queries if causal else num_keys
    sums = state
    if sums is None:
        sums = values.new_zeros(*k.shape[:2], features(k[..., :1, :]).size(-1), values.size(-1))
    for start in range(0, before, CHUNK):
        stop = min(start + CHUNK, before)
        sums = sums + features(k[..., start:stop, :]).transpose(-2, -1) @ values[..., start:stop, :]
    rows = []
    for start in range(0, num_queries, CHUNK):
        part = q[..., start : start + CHUNK, :]
        total = features(part) @ sums
        if causal:
            places = slice(before + start, before + start + part.size(-2))
            new_k, new_values = k[..., places, :], values[..., places, :]
            total = total + torch.tril(kernel(part, new_k)) @ new_values
            sums = sums + features(new_k).transpose(-2, -1) @ new_values
        rows.append(total)
    joined = torch.cat(rows, dim=-2)
    count = joined[..., -1:]
    return joined[..., :-1] / torch.where(count > 0, count, 1.0), sums
