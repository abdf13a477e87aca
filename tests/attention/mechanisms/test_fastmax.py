"""Fastmax, as a matrix and in linear time."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, PADDING, WIDTH, Contract, masks, row_by_row
from reference import assert_same
from tiny import mechanism_of

from fairseq_gpam.attention import FUTURE, AttentionInput, AttentionMask
from fairseq_gpam.attention.core import kernel_sums
from fairseq_gpam.attention.mechanisms import fastmax
from fairseq_gpam.modules import GPAMMultiheadAttention

LINEAR_KINDS = ("nothing", "right", "left", "a sentence of padding", "causal", "causal, right", "causal, left")


def normalised(vectors, size):
    centred = vectors - vectors.sum(-1, keepdim=True) / vectors.size(-1)
    return size * centred / ((centred**2).sum(-1, keepdim=True) ** 0.5).clamp(min=1e-12)


def polynomial_map(q, k, bias, visible, size, degree=2, temperature=1.0):
    scores = normalised(q, size) @ normalised(k, size).transpose(-1, -2) / temperature
    if degree == 2:
        scores = scores + bias

    def weigh(b, h, i, seen):
        values = sum(scores[b, h, i, seen] ** power / math.factorial(power) for power in range(degree + 1))
        if degree == 1:
            values = values * torch.exp(bias[b, h, i, seen])
        return values / values.sum()

    return row_by_row(visible, weigh)


class TestFastmax(Contract):
    name = "fastmax"
    variants = (
        {},
        {"fastmax_norm": 2.0, "fastmax_temperature": 0.5},
        {"fastmax_degree": 1, "fastmax_temperature": 1.5},
    )

    def weights(self, mechanism, q, k, x, bias, visible):
        return polynomial_map(q, k, bias, visible, mechanism.norm, mechanism.degree, mechanism.temperature)


def build(**options):
    return mechanism_of("fastmax", "decoder", fastmax_temperature=2.25, fastmax_norm=1.5, **options).double()


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(("chunk", "queries"), [(2, LENGTH), (64, 3)])
@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_the_linear_form_is_the_matrix_form(kind, queries, chunk, degree, monkeypatch):
    monkeypatch.setattr(kernel_sums, "CHUNK", chunk)
    q = torch.randn(3, HEADS, queries, WIDTH, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(3, HEADS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask, bias, visible = masks(kind, queries)
    output, weights = build(fastmax_form="linear", fastmax_degree=degree)(AttentionInput(q, k, v, mask, q))
    assert weights is None
    expected = polynomial_map(q, k, bias, visible, 1.5, degree, 2.25) @ v
    assert_same(output, expected, [q, k, v])


@pytest.mark.parametrize("degree", [1, 2])
def test_decoding_with_the_linear_form(degree):
    mechanism = build(fastmax_form="linear", fastmax_degree=degree)
    attention = GPAMMultiheadAttention(HEADS * WIDTH, HEADS, mechanism, self_attention=True).double().eval()
    x = torch.randn(LENGTH, 3, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor(PADDING["left"]).bool()
    full, _ = attention(x, x, x, padding, need_weights=False, attn_mask=FUTURE)
    state = {}
    for i in range(LENGTH):
        one = x[i : i + 1]
        step, _ = attention(one, one, one, padding[:, i : i + 1], state, need_weights=False)
        torch.testing.assert_close(step[0], full[i], rtol=1e-9, atol=1e-10)
        (buffer,) = state.values()
        assert buffer.keys() == {"past.sums"}
        assert buffer["past.sums"].shape == (3, HEADS, 1 + WIDTH + (degree - 1) * WIDTH**2, WIDTH + 1)


def test_long_sequences_need_no_matrix(monkeypatch):
    """More than 2·D² keys: auto takes the sums."""
    monkeypatch.setattr(fastmax.FastmaxAttention, "weights", lambda *_: pytest.fail("a matrix was made"))
    q = torch.randn(1, HEADS, 2 * WIDTH**2 + 1, WIDTH, dtype=torch.float64)
    build()(AttentionInput(q, q, q, AttentionMask(causal=True), q))
