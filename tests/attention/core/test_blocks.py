"""Blocks of rows agree with the plain formula, gradients included, and never allocate a T × S matrix."""

import math

import pytest
import torch
from masks import make_masks
from reference import assert_same, row_softmax
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention, block_plan
from fairseq_gpam.attention.core.affine.blocks import block_attention
from fairseq_gpam.attention.core.affine.naive import naive_attention

HEADS = 2
WIDTH = 8


def heads(length, dtype=torch.float32, batch=1):
    return torch.randn(length, batch, HEADS, WIDTH, dtype=dtype).permute(1, 2, 0, 3).requires_grad_()


def inputs(length, dtype=torch.float32, batch=1):
    q, k, v, negative_q = (heads(length, dtype, batch) for _ in range(4))
    a = torch.rand(HEADS, 1, 1, dtype=dtype).add_(1).requires_grad_()
    b = torch.rand(HEADS, 1, 1, dtype=dtype).requires_grad_()
    return q, k, v, negative_q, a, b


def blocks(q, k, v, mask, a=1.0, b=0.0, negative_q=None, dropout_p=0.0):
    return block_attention(AttentionInput(q, k, v, mask, q, dropout_p), AffineTerms(a, b, negative_q))


def naive(q, k, v, mask, terms):
    return naive_attention(AttentionInput(q, k, v, mask, q), terms)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            # An expanded tensor stores one number for many elements.
            if isinstance(tensor, torch.Tensor) and 0 not in tensor.stride():
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("mask", [AttentionMask(causal=True), AttentionMask()], ids=["causal", "none"])
def test_a_long_sequence_never_holds_a_square_matrix(mask, dropout_p):
    length = 1500
    q, k, v, negative_q, a, b = inputs(length)
    with LargestTensor() as seen:
        naive(q, k, v, mask, AffineTerms(a, b, negative_q))
    assert seen.largest >= length**2
    with LargestTensor() as seen:
        output = blocks(q, k, v, mask, a, b, negative_q, dropout_p=dropout_p)
        output.backward(torch.ones_like(output))
    assert seen.largest <= length * 128 * HEADS < length**2 / 5


@pytest.mark.parametrize("length", [20, 193, 385])
def test_dropout_acts_on_the_combined_weights_and_equally_in_the_backward(length):
    """With the identity as values the output is the dropped matrix, which shows what was kept; the gradient follows."""
    q, k, _, negative_q, a, b = inputs(length, torch.float64)
    v = torch.eye(length, dtype=torch.float64).expand(1, HEADS, length, length).contiguous().requires_grad_()
    mask = AttentionMask(causal=True)
    leaves = [q, k, negative_q, a, b]
    dropped = blocks(q, k, v, mask, a, b, negative_q, dropout_p=0.3)
    plain, weights = naive(q, k, v, mask, AffineTerms(a, b, negative_q))
    kept = dropped != 0
    visible = weights != 0
    assert 0.65 < kept[visible].double().mean() < 0.75
    assert_same(dropped, torch.where(kept, plain / 0.7, 0.0), leaves)


@pytest.mark.parametrize("a", [0.0, 1e-30, -0.5])
@pytest.mark.parametrize("length", [5, 250])
def test_a_positive_branch_of_any_factor_also_zero(a, length):
    q, k, v, negative_q, _, b = inputs(length, torch.float64)
    factor = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    mask = AttentionMask(causal=True)
    found = blocks(q, k, v, mask, factor, b, negative_q)
    expected, _ = naive(q, k, v, mask, AffineTerms(factor, b, negative_q))
    assert_same(found, expected, [q, k, v, negative_q, factor, b])


@pytest.mark.parametrize("length", [30, 300])
def test_bfloat16_with_factors_in_float32_is_within_two_hundredths_of_float32(length):
    exact = inputs(length)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact[:4]] + list(exact[4:])
    mask = AttentionMask(causal=True)
    results = []
    for q, k, v, negative_q, a, b in (exact, half):
        output = blocks(q, k, v, mask, a, b, negative_q)
        gradients = torch.autograd.grad(output, (q, k, v, negative_q, a, b), torch.ones_like(output))
        results.append([output, *gradients])
    for one, other in zip(*results, strict=True):
        assert (one - other.float()).norm() <= 2e-2 * one.norm()


@pytest.mark.parametrize("length", [30, 300])
@pytest.mark.parametrize("a", [0.0, 1e-3])
def test_a_small_positive_factor_does_not_overflow_half_precision(length, a):
    exact = inputs(length)
    q, k, v, negative_q = (tensor.detach().half().requires_grad_() for tensor in exact[:4])
    factor, b = torch.tensor([a]).half(), torch.tensor([0.5]).half()
    output = blocks(q, k, v, AttentionMask(causal=True), factor, b, negative_q)
    output.backward(torch.ones_like(output))
    assert all(torch.isfinite(tensor).all() for tensor in (output, q.grad, k.grad, v.grad, negative_q.grad))


@pytest.mark.parametrize("length", [30, 300])
def test_everything_dropped_is_nothing(length):
    q, k, v, negative_q, a, b = inputs(length)
    output = blocks(q, k, v, AttentionMask(causal=True), a, b, negative_q, dropout_p=1.0)
    output.backward(torch.ones_like(output))
    assert not output.any()
    assert not q.grad.any()


KINDS = ("nothing", "causal", "right", "causal, left", "right, fairseq's future, bias")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1.0, 40.0], ids=["small scores", "large scores"])
@pytest.mark.parametrize("heads_at_once", [1, 2, 4, 8, 12])
def test_blocks_of_any_size_give_what_the_reference_gives(kind, factor, heads_at_once, monkeypatch):
    """200 queries are four blocks of 50 rows; 3 sentences of 4 heads are cut into groups of heads or of sentences."""
    monkeypatch.setattr(block_plan, "BLOCK_WEIGHTS", heads_at_once * 50 * 200)
    length, batch, num_heads = 200, 3, 4

    def tensor():
        return torch.randn(length, batch, num_heads, WIDTH, dtype=torch.float64).permute(1, 2, 0, 3)

    q, k, v, negative_q = (tensor().requires_grad_() for _ in range(4))
    with torch.no_grad():
        q.mul_(factor)
    a, b = (torch.rand(num_heads, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaves = [q, k, v, negative_q, a, b]
    mask = make_masks(kind, batch, length, length).mask
    found = blocks(q, k, v, mask, a, b, negative_q)
    expected, _ = naive(q, k, v, mask, AffineTerms(a, b, negative_q))
    assert_same(found, expected, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("factor", [10.0, 30.0, 1e4])
@pytest.mark.parametrize("padded", [False, True])
def test_large_scores_of_short_sequences_stay_finite(factor, sign, padded, dtype):
    q, k, v, negative_q, a, b = inputs(20, dtype)
    with torch.no_grad():
        for each in (q, negative_q):
            each.copy_(factor * (sign * each.abs() if sign else each))
        if sign:
            k.abs_()
    padding = torch.zeros(1, 20, dtype=torch.bool)
    padding[:, -4:] = padded
    mask = AttentionMask(padding)
    found = blocks(q, k, v, mask, a, b, negative_q)
    exact = [each.detach().double().requires_grad_() for each in (q, k, v, negative_q, a, b)]
    expected, _ = naive(*exact[:3], mask, AffineTerms(exact[4], exact[5], exact[3]))
    # Scores of a size of 1e4 have at most three decimals in fp32.
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6 * factor
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    found.sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in (q, k, v, negative_q, a, b))


@pytest.mark.parametrize("exponent", [-200, -125, -44, 44, 125, 200])
def test_equal_scores_of_any_size_give_the_mean(exponent):
    """2^exponent, or the sum of 20 of them, lies beyond fp32."""
    v = torch.randn(1, HEADS, 20, WIDTH)
    k = torch.ones_like(v)
    q = k * (exponent * math.log(2) / math.sqrt(WIDTH))
    found = blocks(q, k, v, AttentionMask(), 1.5, 0.25, -q)
    torch.testing.assert_close(found, 1.25 * v.mean(dim=2, keepdim=True).expand_as(v))


@pytest.mark.parametrize("length", [193, 250, 320, 512])
@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_rows_that_only_fill_a_block_move_no_gradient(length, hides, dropout_p):
    """A causal mask with a finite bias, such as that of ALiBi, leaves every row a key, but a block is filled up."""
    q, k, v, negative_q, a, b = inputs(length, torch.float64)
    bias = torch.randn(HEADS, length, length, dtype=torch.float64)
    hidden = torch.rand(1, 1, length, length) < 0.3 if hides else None
    mask = AttentionMask(causal=True, bias=bias.unsqueeze(0), hidden=hidden)
    output = blocks(q, k, v, mask, a, b, negative_q, dropout_p=dropout_p)
    leaves = [q, k, v, negative_q, a, b]
    if dropout_p:
        gradients = torch.autograd.grad(output.square().sum(), leaves)
        assert all(gradient.isfinite().all() for gradient in gradients)
    else:
        assert_same(output, naive(q, k, v, mask, AffineTerms(a, b, negative_q))[0], leaves)


def test_an_empty_batch():
    q, k, v, negative_q, a, b = inputs(5, batch=1)
    none = [each[:0] for each in (q, k, v, negative_q)]
    for need_weights in (False, True):
        terms = AffineTerms(a, b, none[3])
        output, _ = affine_attention(
            AttentionInput(*none[:3], AttentionMask(), none[0], need_weights=need_weights), terms
        )
        assert output.shape == (0, HEADS, 5, WIDTH)


def with_weights(q, k, v):
    return affine_attention(AttentionInput(q, k, v, AttentionMask(), q, need_weights=True), AffineTerms())


def test_weights_asked_for_may_be_written_to():
    q, k, v, *_ = inputs(6)
    _, expected = naive(q, k, v, AttentionMask(), AffineTerms())
    with torch.no_grad():
        with_weights(q, k, v)[1].mul_(100)
    weights = with_weights(q, k, v)[1]
    torch.testing.assert_close(weights, expected)
    gradients = [torch.autograd.grad(each[..., 0].sum(), q) for each in (weights.mul_(2), 2 * expected)]
    torch.testing.assert_close(*gradients)


def test_keys_of_another_dtype_where_weights_are_asked_for():
    q, k, v, *_ = inputs(6)
    with torch.autocast("cpu", torch.bfloat16):
        output, weights = with_weights(q.bfloat16(), k, v)
        (output.float().sum() + weights.float().square().sum()).backward()
    assert all(torch.isfinite(each.grad).all() for each in (q, k, v))


@pytest.mark.parametrize("shape", [(1, 1, 300), (7, 4, 200), (40, 8, 64), (3, 12, 1000), (2, 6, 5000), (300, 2, 33)])
def test_a_group_of_heads_has_whole_sentences_or_a_part_of_one_and_fits_the_memory(shape):
    bsz, heads_of_model, length = shape
    factors = torch.ones(1, heads_of_model, 2, 1, 1)
    plan = block_plan.BlockPlan(
        torch.Size((bsz, heads_of_model, 2 * length, WIDTH)), length, factors, AttentionMask(), 0.0, 1
    )
    group = plan.heads_at_once
    assert group % heads_of_model == 0 if group > heads_of_model else heads_of_model % group == 0
    assert group <= bsz * heads_of_model
    weights = plan.rows * length
    assert group == 1 or group * weights <= block_plan.BLOCK_WEIGHTS
    larger = min(
        n for n in range(group + 1, 2 * bsz * heads_of_model + 2) if n % heads_of_model == 0 or heads_of_model % n == 0
    )
    assert group == bsz * heads_of_model or larger * weights > block_plan.BLOCK_WEIGHTS


@pytest.mark.parametrize("kind", ["causal", "causal, left", "none", "right, bias"])
@pytest.mark.parametrize("prefix", [1, 50, 77])
@pytest.mark.parametrize("length", [20, 197])
def test_queries_after_a_prefix_attend_to_it_and_to_their_own_past(length, prefix, kind):
    """197 queries are blocks of 50 rows; the keys of the prefix come before those of the queries."""
    batch, keys = 3, prefix + length
    masks = make_masks(kind, batch, length, keys, dtype=torch.float64)
    leaves = q, k, v, negative_q = [
        torch.randn(batch, HEADS, size, WIDTH, dtype=torch.float64, requires_grad=True)
        for size in (length, keys, keys, length)
    ]
    visible = masks.visible.expand(batch, HEADS, length, keys)
    positive, negative = (
        row_softmax(each @ k.transpose(-2, -1) / math.sqrt(WIDTH) + masks.added, visible) for each in (q, negative_q)
    )
    expected = (1.25 * positive - 0.5 * negative) @ v
    found = blocks(q, k, v, masks.mask, 1.25, 0.5, negative_q)
    assert_same(found, expected, leaves)
