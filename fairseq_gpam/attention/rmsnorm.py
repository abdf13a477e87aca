"""RMSNorm over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq_gpam.attention.families import upcast


def rms_norm(values: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns values / sqrt(mean(values²) + eps) · weight; values … × D, weight D; in fp32 for half precision."""
    wide = upcast(values)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(normed.dtype)).type_as(values)
