"""Both libraries give the same matrix products."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_gpam.attention.core import matmul
from fairseq_gpam.attention.core.matmul import linear, product

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN"
)


def close(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(300, 64), (7, 9, 64), (1, 64)])
def test_linear(shape, bias, onednn):
    x, weight = torch.randn(shape), torch.randn(48, 64)
    offset = torch.randn(48) if bias else None
    close(linear(x, weight, offset), F.linear(x.double(), weight.double(), offset.double() if bias else None))
    assert onednn


@needs_onednn
def test_a_strided_input(onednn):
    x, weight = torch.randn(20, 4, 3, 64)[:, 1], torch.randn(48, 64)
    close(linear(x, weight), x.double() @ weight.double().t())
    assert onednn


@needs_onednn
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_product_and_sum(transposed, onednn):
    left = torch.randn(48, 33).t() if transposed[0] else torch.randn(33, 48)
    right = torch.randn(20, 48).t() if transposed[1] else torch.randn(48, 20)
    total = torch.randn(33, 20)
    exact = left.double() @ right.double()
    close(product(left, right), exact)
    close(product(left, right, total.clone()), exact + total.double())
    assert len(onednn) == len(set(onednn)) == 2


@pytest.mark.parametrize("total", [None, torch.ones(5, 3)])
def test_product_by_pytorch(total):
    left, right = torch.randn(5, 4), torch.randn(4, 3)
    expected = left @ right if total is None else left @ right + total
    torch.testing.assert_close(product(left, right, None if total is None else total.clone()), expected)


@needs_onednn
def test_what_is_left_to_pytorch(onednn, monkeypatch):
    x, weight = torch.randn(30, 8), torch.randn(8, 8)
    linear(x.double(), weight.double())
    linear(x.bfloat16(), weight.bfloat16())
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight)
    monkeypatch.setattr(matmul, "WORTH_ONEDNN", 30 * 8 * 8 + 1)
    linear(x, weight)
    assert not onednn
    monkeypatch.setattr(matmul, "WORTH_ONEDNN", 30 * 8 * 8)
    linear(x, weight)
    assert onednn


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),
    ],
)
@needs_onednn
def test_which_processors_have_their_products_from_onednn(vendor, capability, expected, monkeypatch):
    monkeypatch.setattr(matmul, "processor", lambda field: vendor if field == "vendor_id" else "")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert matmul.onednn_is_faster.__wrapped__() is expected
