"""Positions and norms for any mechanism: rotary and ALiBi positions of self-attention, a norm of queries and keys."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_gpam.attention.core.masks import AttentionMask

BASE = 10_000.0
EPSILON = 1e-6


@dataclass(frozen=True)
class Rotation:
    """Turns channels j and j + D/2 of a vector at position p by the angle p·10000^(−2j/D); cos, sin B × 1 × T × D/2.

    Su et al. 2021, arXiv 2104.09864, which pairs neighbouring channels; halves are the convention of most models since.
    """

    cos: Tensor
    sin: Tensor

    def turn(self, vectors: Tensor, sign: int = 1) -> Tensor:
        """Returns the vectors, B × H × T × D, turned, or with sign −1 turned back; in their own dtype."""
        first, second = vectors.to(self.cos.dtype).chunk(2, dim=-1)
        sin = sign * self.sin
        return torch.cat([first * self.cos - second * sin, second * self.cos + first * sin], dim=-1).type_as(vectors)


@dataclass(frozen=True)
class Form:
    """What is done to queries and keys between their projections and the mechanism: norms (weights D), then a rotation.

    A mechanism with queries or keys of its own gives them the same form.
    """

    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    rotation: Rotation | None = None

    def query(self, projected: Tensor) -> Tensor:
        """Returns projected queries, B × H × T × D, in the form in which a mechanism receives its own."""
        return self.rotate(projected if self.q_norm is None else rms_norm(projected, self.q_norm, EPSILON))

    def key(self, projected: Tensor) -> Tensor:
        """Returns projected keys at the queries' positions, B × H × T × D, in that form."""
        return self.rotate(projected if self.k_norm is None else rms_norm(projected, self.k_norm, EPSILON))

    def rotate(self, vectors: Tensor) -> Tensor:
        return vectors if self.rotation is None else self.rotation.turn(vectors)

    def unrotate(self, vectors: Tensor) -> Tensor:
        return vectors if self.rotation is None else self.rotation.turn(vectors, -1)


def rms_norm(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns RMSNorm over the last dimension, in fp32 for half precision (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return F.rms_norm(wide, weight.shape, weight.to(wide.dtype), eps).type_as(values)


def rotation(padding: Tensor | None, before: Tensor | None, q: Tensor) -> tuple[Rotation, Tensor]:
    """Returns the rotation of the positions of q, B × H × T × D, and how many tokens there are now, B.

    padding: bool, B × T, True = no token, which has no position of its own; before: B, the tokens of earlier steps.
    """
    tokens = q.new_ones(q.size(0), q.size(2), dtype=torch.long) if padding is None else (~padding).long()
    counts = tokens.cumsum(dim=1) + (0 if before is None else before.unsqueeze(1))
    exact = torch.promote_types(q.dtype, torch.float32)
    half = torch.arange(0, q.size(-1), 2, device=q.device, dtype=exact)
    angles = (counts - 1).clamp(min=0).to(exact).unsqueeze(-1) * BASE ** (-half / q.size(-1))
    return Rotation(angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)), counts[:, -1]


def with_alibi(mask: AttentionMask, q: Tensor, num_keys: int, heads: int) -> AttentionMask:
    """Returns the mask with the bias −m_h·|i − j| added, m_h = 2^(−8h/H) for the maps h = 1 … H = `heads`.

    q has T queries, the last T of the S tokens; positions skip padding. Press et al. 2021, arXiv 2108.12409. Some
    code adds m·j instead, which is the same only for softmax.
    """
    num_queries = q.size(2)
    exact = torch.promote_types(q.dtype, torch.float32)
    positions = torch.arange(num_keys, device=q.device, dtype=exact).view(1, 1, 1, -1)
    if mask.padding is not None:
        positions = (~mask.padding).cumsum(dim=-1).to(exact)[:, None, None, :]
    distances = (positions[..., num_keys - num_queries :].mT - positions).abs()
    slopes = 2 ** (-8 * torch.arange(1, heads + 1, device=q.device, dtype=exact) / heads)
    bias = (-slopes.view(-1, 1, 1) * distances).to(q.dtype)
    return replace(mask, bias=bias if mask.bias is None else mask.bias + bias)
