"""α-entmax of rows of scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import entmax

from fairseq_gpam.attention.core.sparse import Entmax

ALPHAS = st.one_of(st.sampled_from([1.01, 1.5, 2.0, 2.01]), st.floats(1.01, 3.5))
SCALES = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0, 1e3])


def rows(seed, scale, keys, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(5, keys, generator=generator, dtype=torch.float64).to(dtype)


@settings(deadline=None)
@given(seed=st.integers(0, 99), scale=SCALES, keys=st.integers(1, 200), alphas=st.lists(ALPHAS, min_size=5, max_size=5))
def test_the_weights_are_those_of_the_halved_interval(seed, scale, keys, alphas):
    scores = rows(seed, scale, keys)
    weights = Entmax.apply(scores, torch.tensor(alphas, dtype=torch.float64)[:, None])
    for row, alpha, actual in zip(scores, alphas, weights, strict=True):
        # Above α = 2 the weight of a key near the threshold rises without bound, and rounding of the scores with it.
        torch.testing.assert_close(actual, entmax(row, alpha), rtol=0, atol=1e-10 if alpha <= 2 else 1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 99), scale=SCALES, keys=st.integers(1, 40), alpha=ALPHAS)
def test_one_alpha_is_the_alpha_of_every_row(seed, scale, keys, alpha):
    scores = rows(seed, scale, keys).requires_grad_()
    shared, each = Entmax.apply(scores, alpha), Entmax.apply(scores, torch.full((5, 1), alpha, dtype=torch.float64))
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-9)
    grad = rows(seed + 1, 1.0, keys)
    gradients = (torch.autograd.grad(weights, scores, grad)[0] for weights in (shared, each))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seed=st.integers(0, 99), alphas=st.lists(st.floats(1.05, 3.5), min_size=5, max_size=5))
def test_the_gradients_are_those_of_finite_differences(seed, alphas):
    scores, alpha = rows(seed, 0.2, 6), torch.tensor(alphas, dtype=torch.float64)[:, None]
    # Differences say nothing where a weight is about to vanish.
    weights = Entmax.apply(scores, alpha)
    smooth = ((weights == 0) | (weights > 1e-2)).all(dim=-1)
    inputs = scores[smooth].requires_grad_(), alpha[smooth].requires_grad_()
    assert torch.autograd.gradcheck(Entmax.apply, inputs, atol=1e-4, rtol=1e-3)


@settings(deadline=None)
@given(seed=st.integers(0, 99), scale=SCALES, keys=st.integers(1, 300), alpha=ALPHAS)
def test_no_row_changes_a_bit_of_another(seed, scale, keys, alpha):
    scores, others = rows(seed, scale, keys, torch.float32), rows(seed + 1, 3.0, keys, torch.float32)
    others[2] = scores[2]
    alphas = torch.linspace(1.01, alpha, 5)[:, None]
    other_alphas = torch.where(torch.arange(5)[:, None] == 2, alphas, 2.5)
    for before, after in ((alpha, alpha), (alphas, other_alphas)):
        assert torch.equal(Entmax.apply(scores, before)[2], Entmax.apply(others, after)[2])


@pytest.mark.parametrize("alpha", [1.01, 1.5, 2.0, 3.0])
def test_hidden_keys_and_rows_that_are_not_finite(alpha):
    scores = rows(1, 1.0, 7)
    scores[0, 3:], scores[1, 2], scores[2, 2] = -torch.inf, torch.nan, torch.inf
    weights = Entmax.apply(scores, alpha)
    torch.testing.assert_close(weights[0, :3], Entmax.apply(scores[:1, :3], alpha)[0])
    assert not weights[0, 3:].any() and weights[1:3].isnan().all() and weights[3:].isfinite().all()
