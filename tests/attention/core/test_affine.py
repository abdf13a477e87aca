"""The shared core, O = s·V + a·SDPA(Q, K, V) − b·SDPA(Q⁻, K⁻, V) − u·mean(V): every backend against float64."""

import math

import pytest
import torch
from masks import make_masks
from reference import row_softmax

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.attention.core.affine import BACKENDS, AffineTerms, affine_attention
from fairseq_gpam.attention.core.affine.naive import affine_weights

BATCH, HEADS, WIDTH = 2, 3, 8


def test_the_backends_are_those_that_the_flag_promises():
    assert set(BACKENDS) == {"auto", "reference", "fused"}


def tensor(*shape):
    return torch.randn(*shape, requires_grad=True)


def coefficient(kind):
    if kind == "number":
        return 0.7
    shape = {"scalar": (1,), "head": (HEADS, 1, 1), "token": (BATCH, HEADS, 1, 1)}[kind]
    return (torch.rand(*shape) + 0.2).requires_grad_()


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
        seen = visible.expand(scores.shape[0], 1, *scores.shape[2:])
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


def check(backend, length, mask, visible, added, terms, inputs):
    q, k, v = inputs
    weights, output, copies = expected(q, k, v, visible, added, terms)
    found, none = affine_attention(AttentionInput(q, k, v, mask, q, 0.0, False), terms, backend)
    assert none is None
    assert torch.allclose(found.double(), output, atol=1e-5)
    again, matrix = affine_attention(AttentionInput(q, k, v, mask, q, 0.0, True), terms, backend)
    assert torch.allclose(again.double(), output, atol=1e-5)
    assert torch.allclose(matrix.double().expand_as(weights), weights, atol=1e-5)

    direction = torch.randn_like(output)
    leaves = {id(leaf): leaf for leaf in (q, k, v, *vars(terms).values()) if torch.is_tensor(leaf)}
    used = [key for key in leaves if key in copies]
    assert len(used) == len(leaves)
    got = torch.autograd.grad((found * direction.float()).sum(), [leaves[key] for key in used])
    want = torch.autograd.grad((output * direction).sum(), [copies[key] for key in used])
    for mine, theirs in zip(got, want, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        assert torch.isfinite(mine).all()
        assert (mine.double() - theirs).abs().max() <= 1e-5 * scale


def masks(kind, queries, keys):
    made = make_masks(kind, BATCH, queries, keys, HEADS)
    return made.mask, made.visible, made.added


KINDS = [
    *("nothing", "right", "causal", "causal, left", "bias, scattered", "bias, scattered, right"),
    *("a sentence of padding", "bias for each head"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [3, 63])
def test_two_branches_under_every_mask(backend, kind, length):
    inputs = [tensor(BATCH, HEADS, length, WIDTH) for _ in range(3)]
    terms = AffineTerms(coefficient("head"), coefficient("head"), tensor(BATCH, HEADS, length, WIDTH))
    check(backend, length, *masks(kind, length, length), terms, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positive", ["number", "scalar", "head", "token"])
@pytest.mark.parametrize("negative", ["number", "scalar", "head", "token"])
def test_coefficients_of_every_shape(backend, positive, negative):
    inputs = [tensor(BATCH, HEADS, 7, WIDTH) for _ in range(3)]
    terms = AffineTerms(coefficient(positive), coefficient(negative), tensor(BATCH, HEADS, 7, WIDTH))
    check(backend, 7, *masks("causal", 7, 7), terms, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["nothing", "right", "causal", "bias, scattered, right", "a sentence of padding"])
@pytest.mark.parametrize("extra", ["uniform", "identity", "sink", "negative_k", "all"])
def test_the_other_terms(backend, kind, extra):
    length = 7
    inputs = [tensor(BATCH, HEADS, length, WIDTH) for _ in range(3)]
    everything = {
        "uniform": coefficient("head"),
        "identity": coefficient("head"),
        "sink": tensor(HEADS),
        "negative_k": tensor(BATCH, HEADS, length, WIDTH),
    }
    chosen = everything if extra == "all" else {extra: everything[extra]}
    if "negative_k" in chosen:
        chosen = chosen | {"negative": coefficient("head"), "negative_q": tensor(BATCH, HEADS, length, WIDTH)}
    check(backend, length, *masks(kind, length, length), AffineTerms(coefficient("head"), **chosen), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_sequence_that_no_block_size_divides(backend):
    length = 601
    inputs = [tensor(BATCH, HEADS, length, WIDTH) for _ in range(3)]
    terms = AffineTerms(coefficient("head"), coefficient("head"), tensor(BATCH, HEADS, length, WIDTH))
    check(backend, length, *masks("causal, left", length, length), terms, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["nothing", "causal", "bias, scattered, right"])
def test_dropout_keeps_the_expectation_and_zero_dropout_is_none(backend, kind):
    q, k, v = (tensor(BATCH, HEADS, 5, WIDTH) for _ in range(3))
    terms = AffineTerms(1.5, 0.5, tensor(BATCH, HEADS, 5, WIDTH))
    mask, _, _ = masks(kind, 5, 5)
    whole, _ = affine_attention(AttentionInput(q, k, v, mask, q, 0.0, False), terms, backend)
    with torch.no_grad():
        draws = torch.stack(
            [affine_attention(AttentionInput(q, k, v, mask, q, 0.3, False), terms, backend)[0] for _ in range(1500)]
        )
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - whole).abs() <= 5 * error + 1e-6).all()
    assert draws.std(0).max() > 0.1


def test_signed_sums_are_in_fp32_for_half_precision():
    """Of 200 nearly equal weights the mean is subtracted, which in bf16 would leave little but rounding errors."""
    q, k = (torch.randn(1, 1, 200, WIDTH).mul(0.3).bfloat16() for _ in range(2))
    exact = (q.double() @ k.double().transpose(-1, -2) / WIDTH**0.5).softmax(-1) - 1 / 200
    inputs = AttentionInput(q, k, k, AttentionMask(), q)
    found = affine_weights(inputs, AffineTerms(uniform=1.0)).double()
    assert (found - exact).norm() <= 0.02 * exact.norm()
