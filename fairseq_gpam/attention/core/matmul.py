"""Matrix products by whichever library is faster on this processor.

PyTorch multiplies matrices with MKL, which uses AVX-512 only on Intel processors. oneDNN, which is part of PyTorch,
uses it wherever it exists. Both compute in fp32 but add in different orders, so results differ by rounding.
`torch.backends.mkldnn.flags(False)` selects MKL everywhere.
"""

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this many multiply-adds, oneDNN's overhead for each call and for each new shape costs more than it gains.
WORTH_ONEDNN = 2**22


@functools.cache
def onednn_is_faster() -> bool:
    """Returns whether this is an AMD processor with AVX-512 and PyTorch includes both libraries."""
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "AuthenticAMD" in processor("vendor_id")


def processor(field: str) -> str:
    """Returns the entry `field` ("vendor_id", "model name") that the system lists for its first processor."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def library() -> str:
    """Returns which library computes large matrix products in fp32 on the processor."""
    return "oneDNN" if onednn_is_faster() and torch.backends.mkldnn.enabled else "PyTorch"


def _by_onednn(left: Tensor, rows: int, inner: int, columns: int) -> bool:
    if left.dtype != torch.float32 or left.device.type != "cpu" or rows * inner * columns < WORTH_ONEDNN:
        return False
    return library() == "oneDNN"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns x weightᵀ + bias. Shapes: x … × C, weight C′ × C, bias C′. Not differentiable."""
    columns, inner = weight.shape
    if _by_onednn(x, x.numel() // max(1, inner), inner, columns):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def product(left: Tensor, right: Tensor, total: Tensor | None = None) -> Tensor:
    """Returns left @ right for two matrices, plus `total` (which may be overwritten). Not differentiable."""
    (rows, inner), columns = left.shape, right.size(1)
    if not _by_onednn(left, rows, inner, columns):
        return torch.mm(left, right) if total is None else total.addmm_(left, right)
    if total is None:
        return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(left, total, right.t(), None, "add")
