"""Fastmax, as a matrix and in linear time."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, PADDING, WIDTH, Contract, future_gradients, masks, row_by_row, settings
from reference import assert_same

from fairseq_gpam.attention import FUTURE, AttentionInput, AttentionMask, Site, build_mechanism
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
    options = {"fastmax_temperature": 2.25, **options}
    site = Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    return build_mechanism("fastmax", site, settings(fastmax_norm=1.5, **options)).double()


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("chunk", [2, 64])
@pytest.mark.parametrize("queries", [LENGTH, 3])
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


def test_the_linear_form_is_causal_and_zero_in_fully_masked_rows():
    linear = build(fastmax_form="linear")
    assert future_gradients(lambda q, k, v, x: linear(AttentionInput(q, k, v, AttentionMask(causal=True), x))[0]) == 0
    q = torch.randn(1, HEADS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    output = linear(AttentionInput(q, q, q, AttentionMask(torch.ones(1, LENGTH, dtype=torch.bool), True), q))[0]
    output.sum().backward()
    assert output.abs().max() == 0 and q.grad.isfinite().all()


@pytest.mark.parametrize("degree", [1, 2])
def test_decoding_with_the_linear_form(degree):
    mechanism = build(fastmax_form="linear", fastmax_degree=degree)
    attention = GPAMMultiheadAttention(HEADS * WIDTH, HEADS, mechanism, self_attention=True)
    attention = attention.double().eval()
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


def test_the_linear_form_refuses_what_needs_a_matrix():
    q = torch.randn(3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    linear = build(fastmax_form="linear")
    with pytest.raises(ValueError, match=r"--attention-dropout 0.1 .*--gpam-fastmax-form linear"):
        linear(AttentionInput(q, q, q, AttentionMask(), q, 0.1))
    with pytest.raises(ValueError, match="attn_mask as a matrix"):
        linear(AttentionInput(q, q, q, masks("bias", LENGTH)[0], q))


def test_negative_weights_and_weights_without_keys_are_refused():
    with pytest.raises(ValueError, match=r"degree 1 is not allowed with queries of 2 channels .*-temperature above 1"):
        build_mechanism("fastmax", Site("decoder", 0, 1, 4, 2, 2), settings(fastmax_degree=1))
    q = torch.randn(3, HEADS, 1, WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="weights cannot be returned while --gpam-fastmax-form linear decodes"):
        build(fastmax_form="linear")(AttentionInput(q, q, q, AttentionMask(), q, need_weights=True, past={}))
