"""Which implementation computes a member of the family, on a CPU and, with `is_cuda` replaced, on a GPU."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from masks import make_masks
from reference import assert_same
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention, choose, describe_choices, sdpa
from fairseq_gpam.attention.core.affine.choice import CHOICES
from fairseq_gpam.attention.core.affine.naive import naive_attention, short_attention
from fairseq_gpam.attention.core.affine.sdpa import sdpa_attention

BATCH, HEADS, WIDTH = 3, 2, 8
LAUNCHES = Path(__file__).parents[3] / "examples/benchmark/launches.json"


def draw(length, dtype=torch.float64, device="cpu"):
    return torch.randn(BATCH, HEADS, length, WIDTH, dtype=dtype, device=device, requires_grad=True)


def choice(terms=None, backend="auto", length=10, mask=None, grad=True, dtype=torch.float32, **call):
    q = torch.zeros(1, HEADS, length, WIDTH, dtype=dtype)
    with torch.set_grad_enabled(grad):
        return choose(
            AttentionInput(q, q, q, mask or AttentionMask(), q, **call), terms or AffineTerms(1.5, 0.5, q), backend
        )


def test_the_choice():
    padding = torch.zeros(1, 10, dtype=torch.bool)
    one = AffineTerms()
    assert choice() == "naive"
    assert choice(grad=False) == "short"
    assert choice(grad=False, dtype=torch.bfloat16) == "naive"
    assert choice(grad=False, dropout_p=0.1) == "naive"
    assert choice(grad=False, need_weights=True) == "short"
    assert choice(need_weights=True) == "naive"
    assert choice(length=1000) == "blocks"
    assert choice(length=1000, dropout_p=0.1) == "blocks"
    assert choice(length=1000, need_weights=True) == "naive"
    assert choice(one) == "sdpa"
    assert choice(one, grad=False) == "sdpa"
    assert choice(one, grad=False, length=1) == "short"
    assert choice(one, dropout_p=0.1) == "naive"
    assert choice(one, dropout_p=0.1, length=1000) == "blocks"
    assert choice(one, mask=AttentionMask(padding)) == "sdpa"
    assert choice(one, mask=AttentionMask(padding, causal=True)) == "naive"
    assert choice(one, mask=AttentionMask(torch.zeros(1, 1000).bool(), causal=True), length=1000) == "blocks"
    assert choice(backend="fused") == choice(one, "fused") == choice(backend="fused", grad=False) == "blocks"
    assert choice(backend="reference", grad=False) == "naive"
    for terms in (AffineTerms(uniform=1.0), AffineTerms(identity=1.0)):
        assert choice(terms, length=1000) == "sdpa"
        assert choice(terms, dropout_p=0.1, length=1000) == choice(terms, need_weights=True, grad=False) == "naive"
    assert choice(AffineTerms(sink=torch.zeros(HEADS)), length=1000) == "naive"


def test_the_table_names_every_way():
    assert {row.implementation for row in CHOICES} == {"naive", "short", "sdpa", "blocks"}
    assert all(row.when in describe_choices() for row in CHOICES)


def make_mask(kind, length):
    return make_masks(kind, BATCH, length, length, HEADS, dtype=torch.float64).mask


GPU_MASKS = ("causal", "right", "causal, left", "a sentence of padding", "causal, a sentence of padding")
MASKS = ("nothing", *GPU_MASKS, "bias for each head", "right, bias for each head")


def members(length, like=draw):
    """Members of the family, with the tensors in them that have gradients."""
    a = torch.rand(HEADS, 1, 1, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(BATCH, HEADS, length, 1, dtype=torch.float64, requires_grad=True)
    negative_q, negative_k = like(length), like(length)
    return {
        "one branch": (AffineTerms(), []),
        "two branches": (AffineTerms(a, gate, negative_q), [a, gate, negative_q]),
        "two branches with keys of their own": (
            AffineTerms(a, 0.5, negative_q, negative_k),
            [a, negative_q, negative_k],
        ),
    }


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("member", list(members(1)))
def test_pytorchs_kernels_give_the_plain_formula(kind, member):
    q, k, v = (draw(9) for _ in range(3))
    terms, own = members(9)[member]
    inputs = AttentionInput(q, k, v, make_mask(kind, 9), q)
    assert_same(sdpa_attention(inputs, terms), naive_attention(inputs, terms)[0], [q, k, v, *own])


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("member", list(members(1)))
def test_pytorchs_kernels_drop_exactly_p(kind, member):
    """With the identity as values the output is the dropped matrix itself."""
    length = 12
    q, k = draw(length), draw(length)
    v = torch.eye(length, dtype=torch.float64).expand(BATCH, HEADS, length, length).contiguous()
    terms, own = members(length)[member]
    inputs = AttentionInput(q, k, v, make_mask(kind, length), q, dropout_p=0.3)
    torch.manual_seed(3)
    dropped = sdpa_attention(inputs, terms)
    plain, weights = naive_attention(AttentionInput(q, k, v, inputs.mask, q), terms)
    kept = dropped != 0
    assert 0.55 < kept[weights != 0].double().mean() < 0.85
    assert_same(dropped, torch.where(kept, plain / 0.7, 0.0), [q, k, *own])
    assert not torch.equal(dropped, sdpa_attention(inputs, terms))
    torch.manual_seed(3)
    assert torch.equal(dropped, sdpa_attention(inputs, terms))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("member", ["one branch", "two branches"])
def test_the_stacked_branches_give_the_plain_formula(kind, queries, member):
    q, k, v = draw(queries), draw(9), draw(9)
    mask = make_mask(kind, 9)
    if queries == 1:
        mask = mask.rows(8, 9, 9, 9)
    inputs = AttentionInput(q, k, v, mask, q)
    terms = members(queries)[member][0]
    with torch.no_grad():
        results = short_attention(inputs, terms), naive_attention(inputs, terms)
    torch.testing.assert_close(*results)


class Operations(TorchDispatchMode):
    """Lists the operations that are carried out, without views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


class Kernel(torch.autograd.Function):
    """Stands for PyTorch's kernel: one operation forward, three backward (for the queries, keys and values)."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(k, v)
        return q.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone(), *(each.clone() for each in ctx.saved_tensors)


@pytest.mark.parametrize("row", json.loads(LAUNCHES.read_text())["launches"], ids=lambda row: row["attention"])
def test_what_an_attention_launches_on_a_gpu_at_any_length(row, monkeypatch):
    """The operations without views, of which none synchronises; docs/speed.md shows this table."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: Kernel.apply(q, k, v))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: torch.enable_grad())
    dtype = getattr(torch, row["dtype"])
    for length in (100, 1000):
        q, k, v, negative_q = (draw(length, dtype) for _ in range(4))
        a, b = (torch.rand(HEADS, 1, 1, dtype=dtype, requires_grad=True) for _ in range(2))
        terms = AffineTerms(a, b, negative_q) if row["mechanism"] == "dagpam" else AffineTerms()
        inputs = AttentionInput(q, k, v, make_mask(row["mask"], length), q, row["dropout"])
        with Operations() as forward:
            output, _ = affine_attention(inputs, terms)
        leaves, upstream = [q, k, v, *([a, b, negative_q] if terms.negative_q is not None else [])], torch.ones_like(q)
        with Operations() as backward:
            torch.autograd.grad(output, leaves, upstream)
        names = {*forward.names, *backward.names}
        assert not {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"} & names
        assert (len(forward.names), len(backward.names)) == (row["forward"], row["backward"])


@pytest.mark.parametrize("kind", ["nothing", "causal", "right", "a sentence of padding"])
def test_both_branches_in_one_call_are_two_calls(kind, monkeypatch):
    """On the CPU, where the kernels are PyTorch's own; half precision decides, so it is taken for any dtype."""
    q, k, v = (draw(9) for _ in range(3))
    terms, tensors = members(9)["two branches"]
    inputs = AttentionInput(q, k, v, make_mask(kind, 9), q)
    monkeypatch.setattr(sdpa, "HALF_TYPES", (torch.float64,))
    calls, plain = [], F.scaled_dot_product_attention

    def counted(*arguments, **named):
        calls.append(arguments[0].shape)
        return plain(*arguments, **named)

    expected = sdpa_attention(inputs, terms)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(sdpa, "fits_one_call", lambda *_: True)
    assert_same(sdpa_attention(inputs, terms), expected, [q, k, v, *tensors])
    assert len(calls) == 1


def test_when_one_call_serves_both_branches(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    q, padding = torch.zeros(2, HEADS, 9, WIDTH), torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    two, other_keys = AffineTerms(1.5, 0.5, q), AffineTerms(1.5, 0.5, q, q)
    for dtype, terms, dropout_p, is_causal, bias, expected in (
        (torch.bfloat16, two, 0.0, True, None, True),
        (torch.float32, two, 0.0, True, None, False),
        (torch.float32, two, 0.0, False, None, True),
        (torch.float32, two, 0.0, False, padding, True),
        (torch.bfloat16, two, 0.0, False, padding.expand(-1, -1, 9, -1), False),
        (torch.bfloat16, two, 0.1, True, None, False),
        (torch.bfloat16, other_keys, 0.0, True, None, False),
        (torch.bfloat16, AffineTerms(), 0.0, True, None, False),
    ):
        inputs = AttentionInput(q.to(dtype), q, q, AttentionMask(), q, dropout_p)
        assert sdpa.fits_one_call(inputs, terms, is_causal, bias) == expected
    half, wide = q.bfloat16(), torch.zeros(2, HEADS, 9, 257, dtype=torch.bfloat16)
    for queries, values in ((half, wide), (wide, wide)):
        inputs = AttentionInput(queries, queries, values, AttentionMask(), q)
        assert not sdpa.fits_one_call(inputs, AffineTerms(1.5, 0.5, queries), True, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not sdpa.fits_one_call(AttentionInput(half, half, half, AttentionMask(), q), two, True, None)


def test_large_finite_numbers_in_half_precision_are_not_taken_for_infinity():
    q, k, v = (torch.full((1, 1, 400, 4), 100.0, dtype=torch.float16) for _ in range(3))
    for backend in ("auto", "reference", "fused"):
        output, _ = affine_attention(
            AttentionInput(q / 1000, k, v, make_mask("causal", 400), q), AffineTerms(), backend
        )
        assert output.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", GPU_MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_exactly_p_is_dropped(kind, dtype):
    length = 64
    q, k, negative_q = (torch.randn(BATCH, HEADS, length, length, device="cuda", dtype=dtype) for _ in range(3))
    v = torch.eye(length, device="cuda", dtype=dtype).expand(BATCH, HEADS, length, length).contiguous()
    mask = make_mask(kind, length)
    mask = AttentionMask(None if mask.padding is None else mask.padding.cuda(), mask.causal)
    terms = AffineTerms(1.5, 0.5, negative_q)
    dropped, _ = affine_attention(AttentionInput(q, k, v, mask, q, 0.3), terms)
    plain, weights = naive_attention(AttentionInput(q, k, v, mask, q), terms)
    kept = dropped != 0
    assert 0.65 < kept[weights != 0].float().mean() < 0.75
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(dropped, torch.where(kept, plain / 0.7, 0), rtol=tolerance, atol=tolerance)
