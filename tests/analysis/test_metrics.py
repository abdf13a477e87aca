import itertools
import math

import pytest
import torch

from fairseq_gpam.analysis import metrics
from fairseq_gpam.attention.core import measures

F64 = torch.float64


def entropy_normalised(*matrix):
    return metrics.entropy(*matrix, normalised=True)


def stable_rank(states, tokens=None):
    return metrics.ranks(states, tokens)[0]


def effective_rank(states, tokens=None):
    return metrics.ranks(states, tokens)[1]


STATE_METRICS = [
    metrics.residual_norm,
    metrics.residual_ratio,
    metrics.residual_ratio_argmin,
    metrics.mean_cosine,
    stable_rank,
    effective_rank,
    metrics.massive_activations,
    metrics.kurtosis,
]
WEIGHT_METRICS = [
    metrics.row_sum,
    metrics.negative_mass,
    metrics.entropy,
    entropy_normalised,
    metrics.spectral_gap,
    metrics.sink,
    metrics.first_token_share,
    metrics.head_redundancy,
    metrics.softmax_jacobian_l1,
    metrics.softmax_jacobian_frobenius,
]


def test_every_metric_is_declared_with_a_definition():
    # These two are recorded under names that say more.
    renamed = {"sink", "massive_activations"}
    names = {function.__name__ for function in (*STATE_METRICS, *WEIGHT_METRICS)}
    assert names - measures.DEFINITIONS.keys() == renamed


def tensor(rows):
    return torch.tensor(rows, dtype=F64)


def orthonormal(n, channels):
    return torch.linalg.qr(torch.randn(channels, n, dtype=F64))[0].T


def causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


UNIFORM, ONE_HOT = torch.full((6, 6), 1 / 6, dtype=F64), torch.eye(5, dtype=F64)
ON_THE_FIRST = torch.eye(5, dtype=F64)[:1].expand(5, 5)
CAUSAL = causal(4) / causal(4).sum(dim=-1, keepdim=True, dtype=F64)
SIGNED = tensor([[1.5, -0.5], [0.5, 0.0]])
# Columns sum to 4 and 6, rows to 3 and 7; the mean token is (2, 1), and what is left ±(1, 3).
STATES = tensor([[1, -2], [3, 4]])
# 1xᵀ is the collapsed matrix; another matrix of rank one is not.
RANK_ONE = tensor([[1], [3]]) @ tensor([[1, 1]])
EMPTY_ROW = tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.2]])
SPIKE = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 2]), 3)[:, :2].to(F64) * 3
BY_HAND = [
    (metrics.composite_norm, (STATES,), math.sqrt(6 * 7)),
    (metrics.residual_norm, (STATES,), math.sqrt(6 * 4)),
    (metrics.residual_ratio, (STATES,), math.sqrt(24 / 42)),
    (metrics.residual_ratio, (RANK_ONE,), math.sqrt(2 * 2) / math.sqrt(4 * 6)),
    (metrics.residual_ratio, (RANK_ONE[:1].expand(7, 2),), 0),
    (metrics.residual_ratio_argmin, (RANK_ONE[:1].expand(7, 2),), 0),
    (effective_rank, (torch.eye(5, 9, dtype=F64),), 5),
    (stable_rank, (torch.eye(5, 9, dtype=F64),), 5),
    (effective_rank, (RANK_ONE,), 1),
    (stable_rank, (RANK_ONE,), 1),
    # Singular values 2, 1, 1: p = 1/2, 1/4, 1/4.
    (effective_rank, (torch.diag(tensor([2, 1, 1])),), math.exp(1.5 * math.log(2))),
    (stable_rank, (torch.diag(tensor([2, 1, 1])),), 6 / 4),
    # Sorted: 1 2 3 4 6 12, lower median 3.
    (metrics.massive_activations, (tensor([[-12, 1, 2], [6, -3, 4]]),), [4, 2, 4 / 3]),
    (metrics.kurtosis, (tensor([[1, -1], [-1, 1]]),), 1),
    # Seven zeros and one value: (p³ + q³)/(pq) with p = 1/8.
    (metrics.kurtosis, (SPIKE,), (1 / 8**3 + (7 / 8) ** 3) / (7 / 64)),
    (metrics.entropy, (UNIFORM,), math.log(6)),
    (entropy_normalised, (UNIFORM,), 1),
    (metrics.row_sum, (UNIFORM,), 1),
    (metrics.negative_mass, (UNIFORM,), 0),
    (metrics.first_token_share, (UNIFORM,), 1 / 6),
    (metrics.sink, (UNIFORM,), 0),
    (metrics.softmax_jacobian_l1, (UNIFORM,), 2 * (1 - 1 / 6)),
    (metrics.softmax_jacobian_frobenius, (UNIFORM,), math.sqrt(1 / 6 - 1 / 36)),
    (metrics.entropy, (ONE_HOT,), 0),
    (metrics.spectral_gap, (ONE_HOT,), 1),
    (metrics.softmax_jacobian_l1, (ONE_HOT,), 0),
    (metrics.softmax_jacobian_frobenius, (ONE_HOT,), 0),
    (metrics.sink, (ON_THE_FIRST,), 1),
    (metrics.first_token_share, (ON_THE_FIRST,), 1),
    # A row's entropy is normalised by the keys that it sees.
    (entropy_normalised, (CAUSAL, causal(4)), 1),
    (metrics.entropy, (CAUSAL, causal(4)), sum(math.log(n) for n in range(1, 5)) / 4),
    (metrics.first_token_share, (CAUSAL, causal(4)), (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4),
    (metrics.row_sum, (SIGNED,), 0.75),
    (metrics.negative_mass, (SIGNED,), 0.5 / 2.5),
    # Shares 3/4, 1/4 and 1, 0.
    (metrics.entropy, (SIGNED,), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2),
    (metrics.first_token_share, (SIGNED,), 2 / 2.5),
    (metrics.entropy, (EMPTY_ROW,), (math.log(2) + math.log(3)) / 2),
    (metrics.entropy, (torch.zeros(3, 3),), math.nan),
    (metrics.spectral_gap, (torch.diag(tensor([3, 2, 1])),), 1.5),
    (metrics.spectral_gap, (tensor([[2]]),), math.nan),
    # More than the threshold on average.
    (metrics.sink, (tensor([[0.3, 0.7], [0.28, 0.72]]),), 0),
    (metrics.sink, (tensor([[0.3, 0.7], [0.28, 0.72]]), None, 0.28), 1),
    (metrics.number_of_paths, (12, 3, 8), 220 * 512),
    # Products of weights and gradients; negative ones are dropped before the mean over heads.
    (
        metrics.attention_relevance,
        (tensor([[[0.5, -0.5], [1, 0]], [[0.5, 0.5], [0, 1]]]), tensor([[[2, 2], [-1, 1]], [[0, 4], [1, 1]]])),
        [[0.5, 1], [0, 0.5]],
    ),
]


@pytest.mark.parametrize(("metric", "given", "expected"), BY_HAND)
def test_by_hand(metric, given, expected):
    found, expected = (torch.as_tensor(each, dtype=F64).squeeze() for each in (metric(*given), expected))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_the_best_token_beats_the_mean():
    # one channel, n−1 zeros and one v: the mean gives sqrt(2)(n−1)/n of ‖X‖; x = αv gives
    # sqrt(((n−1)|α| + |1−α|) max(|α|, |1−α|)), which is least at α = 0 for n > 4
    for n in (5, 8, 20):
        states = torch.zeros(n, 1, dtype=F64)
        states[-1] = -2.5
        assert metrics.residual_ratio(states).item() == pytest.approx(math.sqrt(2) * (n - 1) / n)
        assert metrics.residual_ratio_argmin(states).item() == pytest.approx(1, rel=1e-6)


def test_argmin_against_exhaustive_search():
    grid = torch.linspace(-3, 3, 121, dtype=F64)
    points = torch.cartesian_prod(grid, grid)
    for _ in range(5):
        states = torch.randn(6, 2, dtype=F64)
        best = metrics.composite_norm(states - points[:, None]).min() / metrics.composite_norm(states)
        found = metrics.residual_ratio_argmin(states)
        assert found.item() == pytest.approx(best.item(), rel=0.02)
        assert found <= metrics.residual_ratio(states)


def test_mean_cosine():
    assert metrics.mean_cosine(orthonormal(4, 6)).item() == pytest.approx(0, abs=1e-14)
    assert metrics.mean_cosine(tensor([[1, 2], [3, 6], [0.1, 0.2]])).item() == pytest.approx(1)
    assert metrics.mean_cosine(tensor([[1, 2], [-3, -6]])).item() == pytest.approx(-1)
    states = torch.randn(5, 3, dtype=F64)
    pairs = [torch.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(states, 2)]
    assert metrics.mean_cosine(states).item() == pytest.approx(sum(pairs) / len(pairs))
    assert metrics.mean_cosine(states[:1]).isnan()


@pytest.mark.parametrize("metric", STATE_METRICS)
def test_padding_is_not_seen_in_states(metric):
    states = torch.randn(2, 7, 4, dtype=F64)
    tokens = torch.ones(2, 7, dtype=torch.bool)
    tokens[0, :3] = False  # left padding
    tokens[1, 5:] = False
    padded = torch.where(tokens.unsqueeze(-1), states, 1e3)
    found = metric(padded, tokens)
    alone = torch.stack([metric(states[0, 3:]), metric(states[1, :5])])
    assert torch.allclose(found, alone, rtol=1e-9)
    assert torch.allclose(metric(states, torch.ones_like(tokens)), metric(states))


def test_head_redundancy():
    one = torch.rand(1, 3, 3, dtype=F64)
    assert metrics.head_redundancy(one.expand(4, 3, 3)).item() == pytest.approx(0)
    assert metrics.head_redundancy(one).isnan()
    disjoint = torch.eye(9, dtype=F64)[:3].view(3, 3, 3)
    assert metrics.head_redundancy(disjoint).item() == pytest.approx(1)
    assert metrics.head_redundancy(torch.cat([one, -one])).item() == pytest.approx(2)


def test_softmax_jacobian_norms_are_those_of_the_jacobian():
    scores = torch.randn(4, 6, dtype=F64)
    probabilities = scores.softmax(dim=-1)
    jacobians = [torch.autograd.functional.jacobian(lambda s: s.softmax(dim=-1), row) for row in scores]
    l1 = sum(j.abs().sum() for j in jacobians) / 4
    frobenius = sum(j.norm() for j in jacobians) / 4
    assert metrics.softmax_jacobian_l1(probabilities).item() == pytest.approx(l1.item())
    assert metrics.softmax_jacobian_frobenius(probabilities).item() == pytest.approx(frobenius.item())


@pytest.mark.parametrize("metric", WEIGHT_METRICS)
@pytest.mark.parametrize("future", [False, True])
def test_padding_is_not_seen_in_weights(metric, future):
    weights = torch.randn(2, 3, 6, 6, dtype=F64)
    tokens = torch.ones(2, 6, dtype=torch.bool)
    tokens[0, :2] = False
    tokens[1, 5:] = False
    seen = causal(6) if future else torch.ones(6, 6, dtype=torch.bool)
    visible = (tokens[:, None, :, None] & tokens[:, None, None, :]) & seen
    found = metric(weights, visible)  # at hidden places the weights are arbitrary numbers
    parts = []
    for row, window in ((0, slice(2, 6)), (1, slice(0, 5))):
        inner = seen[window, window]
        parts.append(metric((weights[row, :, window, window] * inner), inner))
    assert torch.allclose(found, torch.stack(parts), rtol=1e-9)


@pytest.mark.parametrize("metric", [*STATE_METRICS, *WEIGHT_METRICS])
def test_each_of_a_stack_is_measured_alone(metric):
    # The third dimension is the heads where a metric compares heads.
    stack = torch.randn(2, 3, 4, 6, 6, dtype=F64)
    found = metric(stack)
    alone = torch.stack([torch.stack([metric(each) for each in row]) for row in stack])
    assert found.shape == alone.shape
    assert torch.allclose(found, alone, rtol=1e-9)


def test_a_matrix_without_rows_is_undefined():
    weights = torch.rand(2, 3, 3, dtype=F64)
    visible = torch.zeros(2, 3, 3, dtype=torch.bool)
    assert metrics.row_sum(weights, visible).isnan().all()
    assert measures.negative_mass(weights, visible).isnan().all()


# Parameters, paths, fits


def test_qk_eigenspectrum():
    queries, keys = torch.randn(6, 8, dtype=F64), torch.randn(6, 8, dtype=F64)
    mean, variance = metrics.qk_eigenspectrum(queries, keys, 2)
    for head in range(2):
        rows = slice(3 * head, 3 * head + 3)
        full = torch.linalg.eigvals(queries[rows].T @ keys[rows])  # C × C: three eigenvalues and five zeros
        nonzero = full[full.abs().topk(3).indices]
        assert mean[head].item() == pytest.approx(nonzero.mean().real.item())
        assert variance[head].item() == pytest.approx((nonzero - nonzero.mean()).abs().pow(2).mean().item())
    same = orthonormal(3, 8)
    mean, variance = metrics.qk_eigenspectrum(2 * same, same, 1)
    assert (mean.item(), variance.item()) == (pytest.approx(2), pytest.approx(0, abs=1e-12))
    with pytest.raises(ValueError, match="8 and keys of 4"):
        metrics.qk_eigenspectrum(queries, keys[:, :4], 2)


def test_path_residuals():
    uniform = torch.full((2, 5, 5), 0.2, dtype=F64)
    assert metrics.path_residuals([uniform] * 3, 2, 4).tolist() == pytest.approx([0] * 4, abs=1e-12)
    # one layer, one head, diag(2, 1): what the best rank-one matrix leaves is diag(0, 1)
    single = torch.diag(tensor([2, 1]))[None]
    assert metrics.path_residuals([single], 1, 2).tolist() == pytest.approx([0.5, 0.5])
    # signed and with rows that do not sum to 1; paths go up through the layers
    maps = [torch.randn(2, 4, 4, dtype=F64) for _ in range(3)]
    expected = []
    for heads in itertools.product(range(2), repeat=3):
        product = maps[2][heads[2]] @ maps[1][heads[1]] @ maps[0][heads[0]]
        u, s, v = torch.linalg.svd(product)
        rest = product - s[0] * torch.outer(u[:, 0], v[0])
        expected.append((metrics.composite_norm(rest) / metrics.composite_norm(product)).item())
    for value in metrics.path_residuals(maps, 3, 20).tolist():
        assert min(abs(value - known) for known in expected) < 1e-10


def test_log_log_slope_recovers_the_exponent():
    doubly = [math.exp(-math.exp(0.2 + 0.4 * depth)) for depth in range(5)]
    slope, intercept, count = metrics.log_log_slope(doubly)
    assert (slope, intercept, count) == (pytest.approx(0.4), pytest.approx(0.2), 5)
    assert metrics.log_log_slope([0.5] * 4)[0] == pytest.approx(0)
    assert metrics.log_log_slope([1.0, 0.5, 1e-9])[2] == 1
    # Two or three points always lie near a line.
    assert math.isnan(metrics.log_log_slope(doubly[:3])[0]) and metrics.log_log_slope(doubly[:3])[2] == 3


def test_relevance_through_one_layer_by_hand():
    encoder = tensor([[0.0, 1.0], [0.0, 0.0]])
    decoder = torch.zeros(1, 1, dtype=F64)
    cross = tensor([[0.25, 0.75]])
    # source: R̄ = E + I (the row of E sums to 1), so the second token gets 0.25 · 1 more
    assert metrics.translation_relevance([encoder], [decoder], [cross]).tolist() == [[0.25, 1.0]]
    # nothing flows between source tokens: the relevance is the cross-attention's, and layers add
    zero = torch.zeros(2, 2, dtype=F64)
    assert metrics.translation_relevance([zero], [decoder] * 2, [cross] * 2).tolist() == [[0.5, 1.5]]


def test_relevance_through_the_decoder_by_hand():
    zero = torch.zeros(1, 1, dtype=F64)
    decoder = tensor([[0.0, 0.0], [0.5, 0.0]])
    cross = tensor([[1.0], [0.0]])
    first = metrics.translation_relevance([zero], [decoder], [cross])
    # R_tt = I + A, R̄_tt = I + e₂e₁ᵀ; its transpose leaves the first row where it is
    assert first.tolist() == [[1.0], [0.0]]
    # in the next layer self-attention hands the first position's relevance on to the second
    second = metrics.translation_relevance([zero], [decoder] * 2, [cross] * 2)
    assert second.tolist() == [[2.0], [0.5]]
