"""Verdicts on synthetic data with known differences, and every number against an independent reference."""

import math

import numpy as np
import pytest
from scipy import stats

from fairseq_gpam.lab.experiments import statistics


def made_table(generator, arms=5, seeds=5, effect=0.0, noise=1.0):
    """A baseline and arms with values by seed; the first arm is shifted by `effect` standard deviations of the noise.

    Every seed shifts all arms alike by ten times the noise, which pairing has to remove.
    """
    shift = generator.normal(0, 10 * noise, seeds)
    table = {"baseline": shift + generator.normal(0, noise / math.sqrt(2), seeds)}
    for number in range(arms):
        table[f"arm {number}"] = shift + generator.normal(0, noise / math.sqrt(2), seeds)
    table["arm 0"] = table["arm 0"] + effect * noise
    return {name: dict(enumerate(values, start=1)) for name, values in table.items()}


def compared(table, lower_is_better=True, resolution=0.0):
    """Every arm against the baseline, by its name."""
    pairs = [(arm, "baseline") for arm in table if arm != "baseline"]
    return {
        arm: tested for (arm, _), tested in statistics.compare(table, pairs, 0.01, lower_is_better, resolution).items()
    }


def test_null_data_gives_a_better_arm_in_at_most_one_table_of_twenty():
    generator = np.random.default_rng(1)
    verdicts = [{one.verdict for one in compared(made_table(generator)).values()} for _ in range(1000)]
    assert sum("better" in found for found in verdicts) <= 50
    # Better or worse: the rate that Holm's method promises over the whole table.
    assert 5 <= sum(bool(found & {"better", "worse"}) for found in verdicts) <= 65


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_a_planted_effect_of_two_standard_deviations_is_found(lower_is_better):
    generator = np.random.default_rng(2)
    found = []
    for _ in range(200):
        table = made_table(generator, seeds=8, effect=-2.0 if lower_is_better else 2.0)
        found.append(compared(table, lower_is_better)["arm 0"].verdict)
    assert found.count("better") >= 180
    assert "worse" not in found
    table = made_table(generator, seeds=8, effect=2.0 if lower_is_better else -2.0)
    assert compared(table, lower_is_better)["arm 0"].verdict == "worse"


def paired(differences):
    return {
        "baseline": dict.fromkeys(range(len(differences)), 3.0),
        "arm": {n: 3 + d for n, d in enumerate(differences)},
    }


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-0.05, -0.04, -0.06, -0.05, -0.055], "better"),
        ([0.05, 0.04, 0.06, 0.05, 0.055], "worse"),
        ([0.001, -0.001, 0.002, -0.002, 0.0005], "equivalent within ±δ"),
        ([-0.006, -0.0055, -0.0065, -0.006, -0.0058], "better"),
        ([0.05, -0.04, 0.03, -0.06, 0.02], "inconclusive"),
        ([-0.05, -0.05001], "too few seeds"),
        ([-5.0], "too few seeds"),
        ([0.0, 0.0, 0.0], "equivalent within ±δ"),
        ([-1.0, -1.0, -1.0], "better"),
    ],
)
def test_verdicts(differences, expected):
    assert compared(paired(differences))["arm"].verdict == expected


def test_rounded_differences_without_spread_prove_nothing():
    def verdict(differences, resolution):
        found = compared(paired(differences), True, resolution)["arm"]
        return found.verdict, found.interval.sd

    assert verdict([-0.001] * 3, 0.001) == ("equivalent within ±δ", pytest.approx(0.001 / math.sqrt(6)))
    assert verdict([-0.02] * 3, 0.001)[0] == "better"
    differences = [-0.05, -0.04, -0.06, -0.05, -0.055]
    assert verdict(differences, 0.001) == verdict(differences, 0.0)


def test_arms_with_one_pair_count_in_the_correction():
    arms = {"baseline": {1: 1.0, 2: 2.0, 3: 3.0}, "whole": {1: 0.9, 2: 1.88, 3: 2.91}}
    [alone] = compared(arms).values()
    found = compared({**arms, **{f"begun {n}": {1: 0.9} for n in range(19)}})["whole"]
    assert found.p_holm == pytest.approx(20 * alone.p_t)
    assert (alone.verdict, found.verdict) == ("better", "inconclusive")


def test_only_common_seeds_are_paired_and_an_arm_without_any_is_left_out():
    arms = {"baseline": {1: 1.0, 2: 2.0, 3: 3.0}, "some": {2: 2.5, 3: 3.5, 9: 0.0}, "none": {7: 1.0}}
    found = compared(arms)
    assert list(found) == ["some"]
    assert found["some"].seeds == (2, 3)
    assert found["some"].interval.mean == 0.5


def test_intervals_and_p_are_those_of_the_textbook():
    values = [2.1, 1.9, 2.6, 2.4]
    shown = statistics.interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (shown.low, shown.high) == pytest.approx((low, high))
    assert statistics.interval([1.0]) == statistics.Interval(1, 1.0, None, None, None)
    baseline = [1.0, 1.2, 1.1, 0.9]
    differences = np.subtract(values, baseline)
    assert statistics.paired_t(statistics.interval(differences)) == pytest.approx(
        stats.ttest_rel(values, baseline).pvalue
    )
    exact = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert statistics.sign_flip(differences) == pytest.approx(exact.pvalue)
    many = np.random.default_rng(1).normal(0.3, 1, 20)
    assert statistics.sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("missing", [0, 2])
def test_holm_is_that_of_statsmodels_where_arms_that_have_not_run_count_as_tests_with_larger_p(missing):
    """With p = 1 for missing arms no verdict is lost when the rest of a study runs."""
    from statsmodels.stats.multitest import multipletests

    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9, "e": 0.011}
    whole = multipletests([*p_values.values(), *[1.0] * missing], method="holm")[1]
    corrected = statistics.holm(p_values, 5 + missing)
    assert [corrected[name] for name in p_values] == pytest.approx(list(whole[:5]))
    assert statistics.holm(p_values, 2) == statistics.holm(p_values)
    tested = compared(made_table(np.random.default_rng(5), arms=3, effect=-3))
    assert {name: one.p_holm for name, one in tested.items()} == statistics.holm(
        {name: one.p_t for name, one in tested.items()}
    )


def test_the_seeds_that_are_needed_have_the_power_that_is_promised():
    needed = statistics.seeds_needed(0.01, 0.01, 1)
    generator = np.random.default_rng(3)
    for seeds, enough in ((needed, True), (needed - 3, False)):
        p = stats.ttest_1samp(generator.normal(0.01, 0.01, (4000, seeds)), 0, axis=1).pvalue
        assert bool(np.mean(p < 0.05) >= 0.78) is enough
    for no_spread in (0.0, None):
        assert statistics.seeds_needed(0.01, no_spread, 1) is None
    assert statistics.seeds_needed(100.0, 0.001, 1) == statistics.MIN_PAIRS
    assert statistics.seeds_needed(1e-9, 1.0, 1) is None
    assert statistics.seeds_needed(0.0, 1.0, 1) is None


def cells(arms, seeds):
    """The arm and the seed of every run of a whole table."""
    return [f"arm {arm}" for arm in range(arms) for _ in range(seeds)], list(range(seeds)) * arms


def test_spearman_and_its_interval():
    generator = np.random.default_rng(4)
    where = cells(10, 4)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    found = statistics.spearman(x, y, *where)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert 0 < found.low < found.rho < found.high
    unrelated = statistics.spearman(x, generator.normal(size=40), *where)
    assert unrelated.low < 0 < unrelated.high
    assert statistics.spearman([1, 1, 1, 1], [1, 2, 3, 4], *cells(2, 2)).rho is None
    assert statistics.spearman([1, 2, 3, 4], [1, 2, 3, 5], *cells(2, 2)).low is None


def test_what_is_common_to_an_arm_or_to_a_seed_is_no_correlation_within():
    """Arms and seeds shift both quantities alike; what is left over goes the other way."""
    generator = np.random.default_rng(5)
    arms, seeds = cells(12, 6)
    shift = np.repeat(generator.normal(0, 10, 12), 6) + np.tile(generator.normal(0, 10, 6), 12)
    own = generator.normal(size=72)
    found = statistics.spearman(shift + own, shift - own, arms, seeds)
    assert found.rho > 0.8 and found.between > 0.8
    assert found.within == pytest.approx(-1)
    only_shifts = statistics.spearman(shift, 2 * shift, arms, seeds)
    assert only_shifts.within is None


def test_the_order_of_runs_and_rounding_change_no_correlation_within():
    """Where cells are missing, some runs are determined by their arm and seed, and others leave equal rests."""
    generator = np.random.default_rng(6)
    for _ in range(60):
        places = [(arm, seed) for arm in range(5) for seed in range(4) if generator.random() < 0.55]
        values = generator.normal(size=(2, len(places)))
        within = []
        for _ in range(4):
            order = generator.permutation(len(places))
            x, y = values[:, order] * (1 + 1e-14 * generator.normal(size=len(places)))
            arms, seeds = zip(*(places[index] for index in order), strict=True)
            within.append(statistics.spearman(x, y, list(map(str, arms)), seeds, samples=1).within)
        assert within == pytest.approx([within[0]] * 4, nan_ok=True) if within[0] is not None else not any(within)


@pytest.mark.slow
def test_neither_copied_seeds_nor_copied_arms_make_the_interval_narrower():
    x, y = np.arange(6.0), np.array([1.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    names = [f"arm {number}" for number in range(6)]
    twice = statistics.spearman(np.tile(x, 2), np.tile(y, 2), names * 2, np.repeat([1, 2], 6))
    often = statistics.spearman(np.tile(x, 20), np.tile(y, 20), names * 20, np.repeat(range(20), 6))
    assert often.high - often.low == pytest.approx(twice.high - twice.low, abs=0.05)
    seeds = list(range(6)) * 20
    arms = np.repeat([f"arm {number}" for number in range(20)], 6)
    copied_arms = statistics.spearman(np.tile(x, 20), np.tile(y, 20), arms, seeds)
    assert copied_arms.high - copied_arms.low > twice.high - twice.low - 0.1
