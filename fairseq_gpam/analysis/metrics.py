"""The diagnostics as pure functions, each declared with its exact definition and source.

Shapes: weights … × T × S, signed; visible bool, broadcastable to them, True = the query is not padding and may see the
key; states … × T × C; tokens bool … × T, True = not padding. None means that all are True. Results have the shape of
the leading dimensions unless stated otherwise. Undefined values (one token, one head, no visible key) are NaN.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairseq_gpam.attention.core.measures import (  # noqa: F401  (the cheap metrics belong to these, too)
    DEFINITIONS,
    DONG,
    GPAM,
    Definition,
    composite_norm,
    entropy,
    mean_over_rows,
    mean_token,
    metric,
    negative_mass,
    residual_norm,
    residual_ratio,
    row_sum,
    without_padding,
    zero_unseen,
)

BAO = "Bao et al. 2024, arXiv 2402.02098"
GU = "Gu et al. 2025, arXiv 2410.10781"
SUN = "Sun et al. 2024, arXiv 2402.17762"


@metric("residual ratio (best token)", "the same with the best x found by gradient descent (an upper bound)", DONG)
def residual_ratio_argmin(states: Tensor, tokens: Tensor | None = None, steps: int = 60) -> Tensor:
    """Returns the residual ratio with the best x instead of the mean token (section 2 of the paper).

    The composite norm is a product of two maxima and not convex in x. The descent starts from the best of the mean,
    median and mid-range token, so the result is an upper bound that is never above the mean-token form.
    """
    total = composite_norm(without_padding(states, tokens))
    kept = torch.ones(states.shape[:-1], dtype=torch.bool, device=states.device) if tokens is None else tokens
    padding = ~kept.unsqueeze(-1)
    blank = states.masked_fill(padding, float("nan"))
    middle = (
        states.masked_fill(padding, float("-inf")).amax(dim=-2, keepdim=True)
        + states.masked_fill(padding, float("inf")).amin(dim=-2, keepdim=True)
    ) / 2
    starts = (mean_token(states, tokens), blank.nanmedian(dim=-2, keepdim=True).values, middle)
    norms = torch.stack([composite_norm(without_padding(states - start, tokens)) for start in starts])
    best, chosen = norms.min(dim=0)
    point = torch.stack(starts).gather(0, chosen[None, ..., None, None].expand(1, *starts[0].shape))[0]
    states = without_padding(states, tokens)
    counted = kept.to(states.dtype).unsqueeze(-2)
    magnitude = (states - point).abs()
    scale = (counted @ magnitude).sum(dim=-1, keepdim=True) / (counted.sum(dim=-1, keepdim=True) * states.size(-1))
    for step in range(steps):
        residual = states - point
        magnitude = residual.abs()
        columns, rows = counted @ magnitude, magnitude.sum(dim=-1).unsqueeze(-2) * counted
        columns_max, rows_max = columns.amax(dim=-1, keepdim=True), rows.amax(dim=-1, keepdim=True)
        best = torch.minimum(best, (columns_max * rows_max).sqrt()[..., 0, 0])
        # A softmax smooths the maxima; a subgradient would depend on one column and one row at a time.
        sharpness = 10.0 * (1 + step)
        pull = torch.softmax(sharpness * columns / columns_max, dim=-1) / columns_max
        push = torch.softmax((sharpness * rows / rows_max).masked_fill(counted == 0, float("-inf")), dim=-1) / rows_max
        signs = residual.sign()
        direction = (counted @ signs) * pull + push @ signs
        length = direction.abs().amax(dim=-1, keepdim=True)
        stride = 0.3 * scale / (1 + step / 4)
        point = point + torch.where(length > 0, stride * direction / length, 0.0)
    return torch.where(total > 0, best / total, torch.nan)


@metric("mean pairwise cosine", "(‖Σ x_i/|x_i|‖² − n) / (n(n−1)) over the n tokens of a sequence", GPAM + ", Figure 4")
def mean_cosine(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns the mean cosine of all pairs of different tokens; a zero vector counts as orthogonal to all others."""
    units = torch.nn.functional.normalize(without_padding(states, tokens), dim=-1, eps=1e-30)
    diagonal = units.pow(2).sum(dim=(-2, -1))
    count = _count(states, tokens)
    pairs = units.sum(dim=-2).pow(2).sum(dim=-1) - diagonal
    return torch.where(count > 1, pairs / (count * (count - 1)), torch.nan)


@metric(
    "effective rank",
    "exp(−Σ p log p), p = s/Σs, s the singular values of X",
    "Roy & Vetterli 2007",
    name="effective_rank",
)
@metric("stable rank", "‖X‖_F² / ‖X‖₂²", "Rudelson & Vershynin 2007", name="stable_rank")
def ranks(states: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the stable and the effective rank, both from one decomposition of X itself, not of XXᵀ."""
    matrix = without_padding(states, tokens)
    if matrix.size(-2) < matrix.size(-1):
        matrix = matrix.transpose(-2, -1)
    # The small triangular factor has the same singular values as the whole matrix.
    values = torch.linalg.svdvals(torch.linalg.qr(matrix, mode="r").R)
    stable = values.pow(2).sum(dim=-1) / values[..., 0].pow(2)
    shares = values / values.sum(dim=-1, keepdim=True)
    return stable, torch.special.entr(shares).sum(dim=-1).exp()


for _rank, _name in enumerate(("largest", "second largest", "third largest"), start=1):
    DEFINITIONS[f"massive_activation_{_rank}"] = Definition(
        f"massive activation, {_name}", f"the {_name} |h| over the median |h| of a sequence", SUN, logarithmic=True
    )


def massive_activations(states: Tensor, tokens: Tensor | None = None, count: int = 3) -> Tensor:
    """Returns the `count` largest |h| over tokens and channels, relative to the median (arXiv 2402.17762): … × count.

    The median of an even number of values is the lower one.
    """
    magnitude = states.abs()
    if tokens is not None:
        magnitude = magnitude.masked_fill(~tokens.unsqueeze(-1), float("nan"))
    flat = magnitude.flatten(-2)
    median = flat.nanmedian(dim=-1, keepdim=True).values
    return flat.nan_to_num(nan=-1.0).topk(count, dim=-1).values / median


@metric("kurtosis", "E(h−μ)⁴ / (E(h−μ)²)² over tokens and channels, 3 for a normal distribution", logarithmic=True)
def kurtosis(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns the kurtosis of the activations of every sequence."""
    count = (_count(states, tokens) * states.size(-1))[..., None, None]
    mean = without_padding(states, tokens).sum(dim=(-2, -1), keepdim=True) / count
    centred = without_padding(states - mean, tokens)
    second = centred.pow(2).sum(dim=(-2, -1), keepdim=True) / count
    fourth = centred.pow(4).sum(dim=(-2, -1), keepdim=True) / count
    return (fourth / second.pow(2))[..., 0, 0]


@metric("spectral gap", "s₁/s₂, the two largest singular values of P", "arXiv 2410.07799", logarithmic=True)
def spectral_gap(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the ratio of the two largest singular values ("Mind the Gap"); infinite at rank one.

    The paper uses eigenvalues, but those of a causal P are merely its diagonal.
    """
    values = torch.linalg.svdvals(zero_unseen(weights, visible))
    if values.size(-1) < 2:
        return torch.full_like(values[..., 0], torch.nan)
    return values[..., 0] / values[..., 1]


@metric(
    "sink rate", "share of maps whose first token has a weight above 0.3, averaged over the rows", GU, name="sink_rate"
)
def sink(weights: Tensor, visible: Tensor | None = None, threshold: float = 0.3) -> Tensor:
    """Returns 1 if the weight on the first visible key, averaged over the rows, is above `threshold`, else 0.

    Averaged over layers, heads and samples it is the sink rate (equation 6 of the paper, for the first token).
    """
    share = mean_over_rows(_first_key(zero_unseen(weights, visible), visible), weights, visible)
    return (share > threshold).to(weights.dtype)


@metric("first-token share", "Σ_i |P_i1| / Σ_ij |P_ij|", GU)
def first_token_share(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the share of the weight on the first visible key."""
    magnitude = zero_unseen(weights, visible).abs()
    return _first_key(magnitude, visible).sum(dim=-1) / magnitude.sum(dim=(-2, -1))


def _first_key(weights: Tensor, visible: Tensor | None) -> Tensor:
    """Returns the index of the first key visible to any row: … × T."""
    if visible is None:
        return weights[..., 0]
    seen = visible.expand(weights.shape).any(dim=-2)
    first = seen.to(torch.uint8).argmax(dim=-1)
    return weights.gather(-1, first[..., None, None].expand(*weights.shape[:-1], 1))[..., 0]


@metric("distance between heads", "1 − cos of two heads' maps as vectors, mean over pairs: 0 = redundant")
def head_redundancy(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean cosine distance of all pairs of heads: 0 for equal heads.

    Shapes: weights … × H × T × S; result without H.
    """
    return 1 - mean_cosine(zero_unseen(weights, visible).flatten(-2))


@metric("softmax Jacobian, L1", "2(1 − Σp²), p = softmax(QKᵀ/√D + M), mean over rows", GPAM + ", Lemma 3")
def softmax_jacobian_l1(probabilities: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean of Σ_ij |J_ij| over the rows, J = diag(p) − ppᵀ; it is largest for a uniform row."""
    p = zero_unseen(probabilities, visible)
    return mean_over_rows(2 * (1 - p.pow(2).sum(dim=-1)), p, visible)


@metric("softmax Jacobian, Frobenius", "sqrt(Σp² − 2Σp³ + (Σp²)²), mean over rows", "closed form")
def softmax_jacobian_frobenius(probabilities: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean of ‖J‖_F over the rows, J = diag(p) − ppᵀ."""
    p = zero_unseen(probabilities, visible)
    square = p.pow(2).sum(dim=-1)
    return mean_over_rows((square - 2 * p.pow(3).sum(dim=-1) + square.pow(2)).clamp(min=0).sqrt(), p, visible)


@metric(
    "QK eigenvalues, variance",
    "mean |μ − mean|² of the D eigenvalues of W_Q W_Kᵀ of a head",
    BAO,
    name="qk_eigenvalue_variance",
)
@metric("QK eigenvalues, mean", "mean of the D eigenvalues of W_Q W_Kᵀ of a head", BAO, name="qk_eigenvalue_mean")
def qk_eigenspectrum(query_weight: Tensor, key_weight: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Returns mean (a real number) and variance of the eigenvalues μ for each head, from its D × D product: H and H.

    Shapes: both weights (H·D) × C. Raises ValueError if their C differ, because the form is then not square.
    """
    if query_weight.size(1) != key_weight.size(1):
        raise ValueError(
            f"queries of {query_weight.size(1)} and keys of {key_weight.size(1)} channels have no spectrum"
        )
    queries = query_weight.view(num_heads, -1, query_weight.size(1))
    keys = key_weight.view(num_heads, -1, key_weight.size(1))
    values = torch.linalg.eigvals(keys @ queries.transpose(-2, -1))
    mean = values.mean(dim=-1)
    return mean.real, (values - mean.unsqueeze(-1)).abs().pow(2).mean(dim=-1)


def number_of_paths(num_layers: int, length: int, num_heads: int) -> int:
    """Returns C(L, k)·H^k: the number of paths through a head in k of the L layers and the skip in the others."""
    return math.comb(num_layers, length) * num_heads**length


def path_residuals(maps: Sequence[Tensor], length: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns ‖P − rank1(P)‖ / ‖P‖ of `count` random paths of one length, P = P_lk,hk … P_l1,h1.

    The norm is the composite norm; rank1 is the best rank-one approximation (by SVD), which also suits signed P's,
    whose rows need not sum to 1. Paths are drawn uniformly, with replacement. Shapes: each of `maps` H × T × T,
    unpadded, in the order of the layers; result `count`. Dong et al. 2021, arXiv 2103.03404, sec. 3.
    """
    products = []
    for _ in range(count):
        layers = torch.randperm(len(maps), generator=generator)[:length].sort().values.tolist()
        steps = [maps[layer][torch.randint(maps[layer].size(0), (), generator=generator)] for layer in layers]
        products.append(functools.reduce(lambda product, step: step @ product, steps))
    paths = torch.stack(products)
    left, values, right = torch.linalg.svd(paths, full_matrices=False)
    rank_one = values[..., :1, None] * left[..., :, :1] @ right[..., :1, :]
    return composite_norm(paths - rank_one) / composite_norm(paths)


def log_log_slope(ratios: Sequence[float], floor: float = 1e-6, least_points: int = 4) -> tuple[float, float, int]:
    """Fits log(−log r) = slope · depth + intercept; returns slope, intercept and the number of points.

    A ratio that falls doubly exponentially, r = exp(−exp(intercept + slope · depth)), has a positive slope; for a
    constant ratio or an exponential decay the slope tends to 0. The first entry is depth 0. Ratios outside (floor, 1)
    are left out, because those below the floor are rounding errors. With fewer than `least_points` points, slope and
    intercept are NaN.
    """
    points = [(depth, math.log(-math.log(r))) for depth, r in enumerate(ratios) if floor < r < 1]
    if len(points) < least_points:
        return math.nan, math.nan, len(points)
    slope, intercept = np.polyfit([depth for depth, _ in points], [height for _, height in points], deg=1)
    return float(slope), float(intercept), len(points)


def attention_relevance(weights: Tensor, gradient: Tensor) -> Tensor:
    """Returns (∇A ⊙ A)⁺, averaged over the heads (Chefer et al. 2021, arXiv 2103.15679, eq. 5).

    It is non-negative even if A is signed. Shapes: both … × H × T × S; result … × T × S.
    """
    return (gradient * weights).clamp(min=0).mean(dim=-3)


def translation_relevance(encoder: Sequence[Tensor], decoder: Sequence[Tensor], cross: Sequence[Tensor]) -> Tensor:
    """Returns the relevance of the source for every target position, through encoder, decoder and cross-attention.

    Chefer et al. 2021, arXiv 2103.15679, eqs. 6-11: self-attention adds Ā·R; cross-attention adds R̄_ttᵀ·Ā·R̄_ss, where R̄
    is I plus the row-normalised R − I. Shapes: the results of `attention_relevance` by layer, … × S × S, … × T × T and
    … × T × S; result … × T × S, non-negative.
    """
    source = _eye_like(encoder[0])
    for layer in encoder:
        source = source + layer @ source
    target = _eye_like(decoder[0])
    relevance = torch.zeros_like(cross[0])
    for self_layer, cross_layer in zip(decoder, cross, strict=True):
        # Both updates use the relevance before this layer.
        target, relevance = target + self_layer @ target, relevance + self_layer @ relevance
        mixed = _normalise(target).transpose(-2, -1) @ cross_layer @ _normalise(source)
        relevance = relevance + mixed
    return relevance


def _normalise(relevance: Tensor) -> Tensor:
    eye = _eye_like(relevance)
    gained = relevance - eye
    total = gained.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, gained / total, 0.0) + eye


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.size(-1), dtype=matrix.dtype, device=matrix.device).expand_as(matrix)


def _count(states: Tensor, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        return torch.full(states.shape[:-2], float(states.size(-2)), dtype=states.dtype, device=states.device)
    return tokens.sum(dim=-1).to(states.dtype)
