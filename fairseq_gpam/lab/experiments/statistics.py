"""Statistics of comparisons between arms that were trained with the same seeds.

The rules for verdicts of studies without primary contrasts (`contrasts` has the rule of those that name some), fixed
before any run was examined:

- Runs are paired by seed: the same batches and, for parameters whose shapes agree in the whole model, the same initial
  weights. The tested quantity is the mean over the seeds of the difference arm − baseline.
- Verdicts use the two-sided paired t test: its p is exact if the differences are normal, and it has power with few
  seeds. The exact sign-flip permutation test is reported too: it assumes only that differences are symmetric, but its
  smallest p is 2/2ⁿ, so with five seeds (0.0625) it can never be significant.
- p values are corrected by Holm's method over all arms of a table, which is valid under any dependence (the arms share
  the baseline). In a study these are all arms that its grid plans, including those that have not run yet, because a
  verdict must not become weaker when the study is completed.
- The verdict is the first of these that applies: *too few seeds* with fewer than three pairs; *better* or *worse* if
  the corrected p is below 0.05; *equivalent within ±δ* if the 95 % t interval of the difference lies within ±δ; else
  *inconclusive*.
- Logged losses are rounded. The standard deviation of differences is therefore taken to be at least that of rounding
  errors: three differences that all happen to be 0.001, the last digit, prove nothing.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
MIN_PAIRS = 3
TOO_FEW = "too few seeds"
MOST_SEEDS = 10_000
EXACT_PAIRS = 16
"""Up to this many pairs all sign flips are enumerated."""
Contrast = tuple[str, str]
"""Two arms, of which the second is subtracted from the first."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % t interval; with fewer than two values the interval and `sd` are None."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Two arms compared in one quantity; `p_holm` and `verdict` depend on the whole table."""

    seeds: tuple[int, ...]
    interval: Interval
    p_t: float | None
    p_sign_flip: float | None
    p_holm: float | None = None
    verdict: str = TOO_FEW


def interval(values: Sequence[float], least_sd: float = 0.0) -> Interval:
    """Returns the mean of at least one value and its 95 % t interval; the standard deviation is at least `least_sd`."""
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) < 2:
        return Interval(len(data), mean, None, None, None)
    sd = max(float(data.std(ddof=1)) if np.ptp(data) else 0.0, least_sd)
    half = float(special.stdtrit(len(data) - 1, 1 - ALPHA / 2)) * sd / math.sqrt(len(data))
    return Interval(len(data), mean, sd, mean - half, mean + half)


def paired_t(differences: Interval) -> float | None:
    """Returns the two-sided p of the paired t test; None for fewer than two pairs."""
    if differences.sd is None:
        return None
    if differences.sd == 0:
        return 1.0 if differences.mean == 0 else 0.0
    t = abs(differences.mean) / differences.sd * math.sqrt(differences.n)
    return float(2 * special.stdtr(differences.n - 1, -t))


def sign_flip(differences: Sequence[float], samples: int = 100_000) -> float | None:
    """Returns the two-sided p of the sign-flip permutation test for a mean of 0; None without pairs.

    Exact, over all 2ⁿ flips, for up to 16 pairs; else over `samples` random flips and the observed one.
    """
    data = np.asarray(differences, dtype=float)
    if len(data) == 0:
        return None
    observed = abs(data.sum())
    # The tolerance makes sums equal that differ only by rounding.
    limit = observed * (1 - 1e-12)
    if len(data) <= EXACT_PAIRS:
        return float(np.mean(np.abs(_all_signs(len(data)) @ data) >= limit))
    signs = np.random.default_rng(1).choice((1.0, -1.0), size=(samples, len(data)))
    return float((1 + np.sum(np.abs(signs @ data) >= limit)) / (samples + 1))


@functools.cache
def _all_signs(pairs: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=pairs)))


def seeds_needed(effect: float, sd: float | None, arms: int) -> int | None:
    """Returns how many pairs detect a true mean of `effect` with 80 % power in a two-sided paired t test.

    The level is 0.05 / `arms`, Holm's strictest step in a table of that many arms; `sd` is that of the differences.
    None if more than 10,000 are needed, or if `sd` is None or 0, which says nothing about the spread of other seeds.
    """
    from statsmodels.stats.power import TTestPower

    if not sd or effect == 0:
        return None
    alpha, size = ALPHA / arms, abs(effect) / sd
    by_normal = ((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)) / size) ** 2
    if by_normal > MOST_SEEDS:
        return None
    # The t test needs more pairs than the normal approximation gives; for very large effects its power is 1.
    pairs = max(MIN_PAIRS, math.ceil(by_normal))
    while size < 20 and TTestPower().power(size, pairs, alpha) < POWER:
        pairs += 1
    return pairs


def difference(arm: Mapping[int, float], baseline: Mapping[int, float], resolution: float = 0.0) -> Difference | None:
    """Returns arm − baseline over the seeds that both have, without Holm's correction; None if there are none.

    `resolution` is the step to which the values are rounded.
    """
    seeds = tuple(sorted(arm.keys() & baseline.keys()))
    if not seeds:
        return None
    values = [arm[seed] - baseline[seed] for seed in seeds]
    # A rounding error is uniform, with standard deviation step/√12, and a difference has two of them.
    shown = interval(values, resolution / math.sqrt(6))
    return Difference(seeds, shown, paired_t(shown), sign_flip(values))


def verdict(difference: Difference, delta: float, lower_is_better: bool) -> str:
    """Returns the verdict in words; `difference` must contain the corrected p."""
    shown = difference.interval
    if shown.n < MIN_PAIRS or shown.low is None or shown.high is None or difference.p_holm is None:
        return TOO_FEW
    if difference.p_holm < ALPHA:
        return "better" if (shown.mean < 0) == lower_is_better else "worse"
    return "equivalent within ±δ" if -delta <= shown.low and shown.high <= delta else "inconclusive"


def holm(p_values: Mapping[Contrast, float], tests: int = 0) -> dict[Contrast, float]:
    """Returns the p values corrected by Holm's step-down method (Holm 1979).

    `tests` is the planned number of tests if `p_values` are not all of them; the missing p are taken to be larger.
    statsmodels' multipletests gives the same, but runs the garbage collector, which takes a second with PyTorch loaded.
    """
    ordered, tests = sorted(p_values, key=lambda contrast: p_values[contrast]), max(tests, len(p_values))
    steps = (min(1.0, (tests - rank) * p_values[contrast]) for rank, contrast in enumerate(ordered))
    return dict(zip(ordered, itertools.accumulate(steps, max), strict=True))


def compare(
    arms: Mapping[str, Mapping[int, float]],
    contrasts: Iterable[Contrast],
    delta: float,
    lower_is_better: bool,
    resolution: float = 0.0,
    planned: int = 0,
    least_pairs: int = MIN_PAIRS,
) -> dict[Contrast, Difference]:
    """Returns first − second for each contrast of two arms in one quantity, Holm-corrected over all of them.

    `arms` holds values by seed, rounded to steps of `resolution`; `planned` is the planned number of contrasts, if
    these are not all. There is no verdict with fewer than `least_pairs` common seeds; a contrast without any is left
    out.
    """
    differences = {
        (first, second): tested
        for first, second in contrasts
        if (tested := difference(arms.get(first, {}), arms.get(second, {}), resolution)) is not None
    }
    p_values = {pair: tested.p_t for pair, tested in differences.items() if tested.p_t is not None}
    corrected = holm(p_values, max(planned, len(differences)))
    result = {}
    for pair, tested in differences.items():
        tested = dataclasses.replace(tested, p_holm=corrected.get(pair))
        if tested.interval.n >= least_pairs:
            tested = dataclasses.replace(tested, verdict=verdict(tested, delta, lower_is_better))
        result[pair] = tested
    return result


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ over `n` runs with a 95 % percentile bootstrap interval; undefined values are None.

    `between` is ρ of the arms' means, `within` that of the runs after the effects of arm and seed are subtracted.
    """

    n: int
    rho: float | None
    low: float | None = None
    high: float | None = None
    between: float | None = None
    within: float | None = None


def spearman(
    x: Sequence[float], y: Sequence[float], arms: Sequence[str], seeds: Sequence[int], samples: int = 2000
) -> Correlation:
    """Returns Spearman's rank correlation of `x` and `y` over runs, each of an arm and a seed.

    Neither the runs of an arm nor those of a seed, which share batches, are independent: the bootstrap draws arms and
    seeds, both with replacement, and takes the runs of each drawn pair. There is no interval for fewer than four arms
    or two seeds, or for constant values.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rho = _rank_correlation(a, b)
    if rho is None:
        return Correlation(len(a), None)
    arm_names, arm_of = np.unique(np.asarray(arms), return_inverse=True)
    seed_names, seed_of = np.unique(np.asarray(seeds), return_inverse=True)
    counts = np.bincount(arm_of)
    means = [np.bincount(arm_of, values) / counts for values in (a, b)]
    correlation = Correlation(len(a), rho, between=_rank_correlation(*means), within=_within(a, b, arm_of, seed_of))
    if len(arm_names) < 4 or len(seed_names) < 2:
        return correlation
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(samples):
        often_arm, often_seed = (
            np.bincount(generator.integers(size, size=size), minlength=size)
            for size in (len(arm_names), len(seed_names))
        )
        chosen = np.repeat(np.arange(len(a)), often_arm[arm_of] * often_seed[seed_of])
        if (value := _rank_correlation(a[chosen], b[chosen])) is not None:
            drawn.append(value)
    if not drawn:
        return correlation
    low, high = np.quantile(drawn, (ALPHA / 2, 1 - ALPHA / 2))
    return dataclasses.replace(correlation, low=float(low), high=float(high))


def _within(x: np.ndarray, y: np.ndarray, arm_of: np.ndarray, seed_of: np.ndarray) -> float | None:
    """Returns ρ of what additive effects of arm and seed leave over; None if they leave fewer than three dimensions."""
    effects = np.concatenate([np.eye(arm_of.max() + 1)[arm_of], np.eye(seed_of.max() + 1)[seed_of]], axis=1)
    basis, sizes, _ = np.linalg.svd(effects, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    if len(x) - basis.shape[1] < 3:
        return None
    rest = [values - basis @ (basis.T @ values) for values in (x, y)]
    # What is left by rounding alone is no spread.
    if any(np.abs(left).max() <= 1e-9 * np.abs(values).max() for left, values in zip(rest, (x, y), strict=True)):
        return None
    # A run that its arm and seed determine wholly leaves nothing, and rounding must not rank what is equal.
    is_free = np.square(basis).sum(axis=1) < 1 - 1e-9
    ranked = (np.round(left[is_free] / np.abs(left).max(), 9) for left in rest)
    return _rank_correlation(*ranked)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
