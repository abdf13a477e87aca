"""The shared core, O = s·V + a·SDPA(Q, K, V) − b·SDPA(Q⁻, K⁻, V) − u·mean(V): every backend against float64."""

import itertools
import math

import pytest
import torch
from masks import make_masks
from quick import first
from reference import row_softmax

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.attention.core.affine import BACKENDS, AffineTerms, affine_attention
from fairseq_gpam.attention.core.affine.naive import affine_weights

BATCH, HEADS, WIDTH = 2, 3, 8


def tensor(*shape):
    return torch.randn(*shape, requires_grad=True)


def coefficient(kind, length=7):
    if kind == "number":
        return 0.7
    shapes = {"scalar": (1,), "one": (1, 1, 1, 1), "head": (HEADS, 1, 1), "token": (BATCH, HEADS, 1, 1)}
    return (torch.rand(*shapes.get(kind, (BATCH, HEADS, length, 1))) + 0.2).requires_grad_()


def expected(q, k, v, visible, added, terms):
    """P in float64, term by term; float64 copies replace the leaves, so that gradients can be compared."""
    copies = {}

    def exact(value):
        if not torch.is_tensor(value):
            return value
        return copies.setdefault(id(value), value.detach().double().requires_grad_())

    q64, k64, v64 = exact(q), exact(k), exact(v)
    scale = 1 / math.sqrt(WIDTH)
    scores = q64 @ k64.transpose(2, 3) * scale + added
    if terms.sink is None:
        weights = row_softmax(scores, visible)
    else:
        sink = exact(terms.sink).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        seen = visible.expand(scores.shape)
        padded = torch.cat([seen, torch.ones_like(seen[..., :1])], dim=-1)
        weights = row_softmax(torch.cat([scores, sink], dim=-1), padded)[..., :-1]
    weights = exact(terms.positive) * weights
    if terms.negative_q is not None:
        negative_k = k64 if terms.negative_k is None else exact(terms.negative_k)
        negative = exact(terms.negative_q) @ negative_k.transpose(2, 3) * scale + added
        weights = weights - exact(terms.negative) * row_softmax(negative, visible)
    if terms.uniform is not None:
        weights = weights - exact(terms.uniform) * row_softmax(torch.zeros_like(scores), visible)
    if terms.identity is not None:
        eye = torch.eye(scores.size(2), scores.size(3), dtype=torch.float64)
        weights = weights + exact(terms.identity) * eye
    return weights, weights @ v64, copies


def check(backend, length, kind, terms):
    """Output, weights, and the gradients of both, of one member under one mask."""
    q, k, v = (tensor(BATCH, HEADS, length, WIDTH) for _ in range(3))
    masks = make_masks(kind, BATCH, length, length, HEADS)
    weights, output, copies = expected(q, k, v, masks.visible, masks.added, terms)
    result, none = affine_attention(AttentionInput(q, k, v, masks.mask, q, 0.0, False), terms, backend)
    assert none is None
    again, matrix = affine_attention(AttentionInput(q, k, v, masks.mask, q, 0.0, True), terms, backend)
    matrix = matrix.expand_as(weights)
    leaves = {id(leaf): leaf for leaf in (q, k, v, *vars(terms).values()) if torch.is_tensor(leaf)}
    assert all(key in copies for key in leaves)
    for ours, exact in ((result, output), (again, output), (matrix, weights)):
        assert torch.allclose(ours.double(), exact, atol=1e-5)
        direction = torch.randn_like(exact)
        got = torch.autograd.grad(
            (ours * direction.float()).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
        )
        want = torch.autograd.grad(
            (exact * direction).sum(), [copies[key] for key in leaves], retain_graph=True, allow_unused=True
        )
        for mine, theirs in zip(got, want, strict=True):
            mine, theirs = (torch.zeros(1) if each is None else each for each in (mine, theirs))
            assert torch.isfinite(mine).all()
            assert (mine.double() - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


KINDS = [
    *("nothing", "right", "causal", "causal, left", "bias, scattered", "bias, scattered, right"),
    *("a sentence of padding", "causal, a sentence of padding", "bias for each head"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", first(1, [7, 3, 63]))
def test_every_member_under_every_mask(kind, length):
    for backend, extra in itertools.product(BACKENDS, ("none", "uniform", "identity", "sink", "negative_k", "all")):
        everything = {
            "uniform": coefficient("head"),
            "identity": coefficient("head"),
            "sink": tensor(HEADS),
            "negative_k": tensor(BATCH, HEADS, length, WIDTH),
        }
        chosen = everything if extra == "all" else {name: everything[name] for name in everything if name == extra}
        if extra not in ("uniform", "identity", "sink"):
            chosen = chosen | {"negative": coefficient("head"), "negative_q": tensor(BATCH, HEADS, length, WIDTH)}
        check(backend, length, kind, AffineTerms(coefficient("head"), **chosen))


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_of_every_shape(backend):
    for positive, negative in itertools.product(("number", "scalar", "one", "head", "token", "query"), repeat=2):
        terms = AffineTerms(coefficient(positive), coefficient(negative), tensor(BATCH, HEADS, 7, WIDTH))
        check(backend, 7, "causal", terms)


@pytest.mark.parametrize("backend", first(1, BACKENDS))
def test_a_long_sequence_that_no_block_size_divides(backend):
    length = 601
    for kind in ("head", "query"):
        terms = AffineTerms(coefficient(kind, length), coefficient(kind, length), tensor(BATCH, HEADS, length, WIDTH))
        check(backend, length, "causal, left", terms)


def test_signed_sums_are_in_fp32_for_half_precision():
    """Of 200 nearly equal weights the mean is subtracted, which in bf16 would leave little but rounding errors."""
    q, k = (torch.randn(1, 1, 200, WIDTH).mul(0.3).bfloat16() for _ in range(2))
    exact = (q.double() @ k.double().transpose(-1, -2) / WIDTH**0.5).softmax(-1) - 1 / 200
    inputs = AttentionInput(q, k, k, AttentionMask(), q)
    found = affine_weights(inputs, AffineTerms(uniform=1.0)).double()
    assert (found - exact).norm() <= 0.02 * exact.norm()
