"""The rule of primary contrasts, and effects in other units, on made data and at the edges."""

import math

import numpy as np
import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace
from scipy import stats
from statsmodels.stats.power import TTestPower

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import compare, comparison_report, contrasts, grid, sections, statistics

NAMED = [("b", "a"), ("c", "b"), ("d", "a")]


def primary(arms, step=0.0, named=NAMED):
    return statistics.compare(arms, named, 0.01, True, step, len(named), grid.MIN_SEEDS)


def test_only_primary_contrasts_count_in_the_correction_and_seven_seeds_are_too_few():
    values = {seed: 3 + 0.01 * seed for seed in range(10)}
    lower = {seed: value - 0.05 - 0.001 * (seed % 3) for seed, value in values.items()}
    found = primary({"a": values, "b": lower})
    assert list(found) == [("b", "a")]
    one = found["b", "a"]
    assert one.verdict == "better"
    assert one.p_holm == pytest.approx(3 * one.p_t)
    seven = {seed: lower[seed] for seed in range(7)}
    assert primary({"a": values, "b": seven})["b", "a"].verdict == "too few seeds"


@pytest.mark.parametrize(("pairs", "tests"), [(2, 1), (8, 2), (10, 3), (30, 4)])
def test_the_least_effect_is_that_of_statsmodels(pairs, tests):
    expected = TTestPower().solve_power(nobs=pairs, alpha=statistics.ALPHA / tests, power=statistics.POWER)
    assert contrasts.least_effect(pairs, tests) == pytest.approx(expected, rel=1e-3)


falling = st.lists(st.floats(0.1, 5), min_size=2, max_size=8, unique=True).map(lambda losses: sorted(losses)[::-1])


@given(falling, st.floats(0.01, 0.09))
def test_a_run_that_reaches_every_loss_earlier_saves_exactly_that_many_updates(losses, share):
    other = [[100.0 * n, loss] for n, loss in enumerate(losses, start=1)]
    shift = share * 100
    arm = [[update - shift, loss] for update, loss in other]
    saved = contrasts.updates_saved(arm, other)
    assert saved == pytest.approx(shift, abs=1e-6)
    assert contrasts.updates_saved(other, arm) == pytest.approx(-shift, abs=1e-6)
    assert contrasts.updates_saved(other, other) == pytest.approx(0)


odd = st.sampled_from([math.nan, math.inf, 0.0, 1.0, 1.001])


@given(st.lists(odd, max_size=4), st.lists(odd, max_size=4))
def test_curves_with_holes_give_a_number_or_nothing(first, second):
    curves = [[[100 * n, loss] for n, loss in enumerate(losses, start=1)] for losses in (first, second)]
    for value in (contrasts.updates_saved(*curves), contrasts.at_equal_time(*curves, 1.1)):
        assert value is None or math.isfinite(value)


@given(st.lists(st.sampled_from([1.0, 1.001, 2.0]), max_size=9), st.lists(st.sampled_from([1.0, 2.0]), max_size=9))
def test_values_without_spread_prove_nothing(first, second):
    arms = {"a": dict(enumerate(first)), "b": dict(enumerate(second))}
    step = 0.001
    for one in primary(arms, step, NAMED[:1]).values():
        assert one.p_t is None or 0 < one.p_t <= 1
        if all(arms["a"][seed] == arms["b"][seed] for seed in one.seeds):
            assert one.p_t in (None, 1.0) and one.verdict not in ("better", "worse")
    size = contrasts.in_seed_deviations(second, first)
    assert size is None or math.isfinite(size)


def test_effects_are_ordered_by_size_and_said_in_other_units():
    generator = np.random.default_rng(3)
    seeds = range(1, 11)
    shift = generator.normal(0, 0.02, 10)

    def arm(effect):
        return {seed: 3 + effect + shift[seed - 1] + generator.normal(0, 0.004) for seed in seeds}

    values = {"a": arm(0), "b": arm(-0.02), "c": arm(-0.1)}
    curves = {
        name: {seed: [[100, own[seed] + 0.2], [200, own[seed]]] for seed in seeds} for name, own in values.items()
    }
    found = contrasts.effects(
        values, curves, [("b", "a"), ("c", "a")], 0.01, True, times={"a": 1.0, "b": 1.0, "c": 1.5}
    )
    assert [one.contrast for one in found] == [("c", "a"), ("b", "a")]
    large, small = found
    assert large.difference.verdict == small.difference.verdict == "better"
    assert large.updates == pytest.approx(50, abs=5)
    # An update of c takes half as long again: it has two thirds of the updates.
    assert large.equal_time == pytest.approx(-0.1 + 0.2 * 2 / 3, abs=0.02)
    assert small.equal_time == pytest.approx(small.difference.interval.mean)
    assert large.deviations < small.deviations < 0
    assert all(len(row) == len(contrasts.HEAD) for row in contrasts.rows(found))


def made_run(arm, seed, loss, start=None):
    bits = round(loss / math.log(2), 3)
    run = runs.made_run(arm, seed, bits, initial_weights=start)
    return replace(run, training=replace(run.training, valid=((100, bits + 0.1), (200, bits))))


def section(by_arm, seeds=8, **values):
    arms = {arm: "" for arm in by_arm}
    tables = {"baseline": "a", "seeds": list(range(seeds)), "tasks": {"bible-de-en": {}}, "arms": arms, **values}
    tables["primary"] = [pair for pair in NAMED if set(pair) <= arms.keys()]
    return contrasts.section("made", by_arm, schema.check(tables, grid.Grid, "made"), compare.QUANTITIES[0], 0.01)


def test_contrasts_that_share_batches_only_are_marked():
    starts = {"a": "0" * 16, "b": "0" * 16, "c": "1" * 16, "d": None}
    by_arm = {arm: [made_run(arm, seed, 3, start) for seed in range(8)] for arm, start in starts.items()}
    shown = section(by_arm)
    assert sorted(row[0] for row in shown.rows) == ["b − a", "c − b †", "d − a"]
    assert contrasts.BATCHES_ONLY in shown.note


def test_a_study_has_no_verdict_and_no_p_before_all_planned_seeds_are_in():
    by_arm = {arm: [made_run(arm, seed, 3 + shift) for seed in range(9)] for arm, shift in (("a", 0), ("b", -0.5))}
    for planned, verdict in ((9, "better"), (10, statistics.TOO_FEW)):
        (row,) = section(by_arm, planned, times={"a": 1.0, "b": 1.5}).rows
        # An update of b takes half as long again: it has two thirds of the updates.
        assert float(row[9]) == pytest.approx(-0.5 + 0.1 * math.log(2) * 2 / 3, abs=1e-3)
        assert row[3] == verdict
        assert (row[4] == "–") == (verdict == statistics.TOO_FEW)


def test_the_page_of_a_grid_has_its_primary_contrasts_first_and_no_other_verdict(tmp_path):
    arms = {"stock": 3.0, "dagpam": 2.9, "tied": 3.01}
    made = [made_run(arm, seed, loss + 0.001 * (seed % 3)) for arm, loss in arms.items() for seed in range(8)]
    made = [replace(run, task="bible-de-en") for run in made]
    table = {"baseline": "stock", "seeds": list(range(8)), "tasks": {"bible-de-en": {}}}
    table |= {"arms": {"stock": {"mechanism": "stock"}, "dagpam": "", "tied": "--gpam-lambda-tied"}}
    table |= {"primary": [["dagpam", "stock"]], "times": {"stock": 1.0, "dagpam": 1.06}}
    chosen = schema.check(table, grid.Grid, "made")
    shown = sections.of_comparison(contrasts.comparison(made, chosen))
    first, second = shown[:2]
    assert "primary contrasts" in first.title
    assert [(row[0], row[3]) for row in first.rows] == [("dagpam − stock", "better")]
    assert first.rows[0][contrasts.HEAD.index("at equal time")] != "–"
    assert {row[second.head.index("verdict")] for row in second.rows} == {"baseline", "exploratory"}
    comparison_report.write(contrasts.comparison(made, chosen), tmp_path)
    assert "primary contrasts" in (tmp_path / "comparison.md").read_text()
    without = sections.of_comparison(contrasts.comparison(made, structs.replace(chosen, primary=())))
    assert "better" in {row[without[0].head.index("verdict")] for row in without[0].rows}


@pytest.mark.slow
@given(falling, st.floats(0.5, 2))
def test_equal_time_is_equal_updates_only_at_equal_speed(losses, ratio):
    curve = [[100 * n, loss] for n, loss in enumerate(losses, start=1)]
    assert contrasts.at_equal_time(curve, curve, 1.0) == 0
    found = contrasts.at_equal_time(curve, curve, ratio)
    # The slower one has had fewer updates, so that its loss is higher.
    assert found is None or (found >= 0 if ratio >= 1 else found <= 0)


@given(st.integers(1, 30_000), st.floats(0.5, 2))
def test_whole_curves_have_a_difference_at_equal_time_at_every_speed(updates, ratio):
    curve = [[0, 3.0], [updates, 1.0]]
    found = contrasts.at_equal_time(curve, curve, ratio)
    assert found == pytest.approx(2 * (max(ratio, 1 / ratio) - 1) / max(ratio, 1 / ratio) * (1 if ratio > 1 else -1))


@pytest.mark.slow
def test_null_runs_through_the_whole_path_seldom_have_a_verdict():
    """The rate is 4.6 % for these contrasts; 250 tables show more than 5 % only as far as chance explains."""
    generator = np.random.default_rng(2)
    wrong = 0
    for _ in range(250):
        by_arm = {arm: [] for arm in "abcd"}
        for seed in range(1, 9):
            shift = generator.normal(3, 0.02)
            for arm, of_arm in by_arm.items():
                of_arm.append(made_run(arm, seed, shift + generator.normal(0, 0.007)))
        cells = section(by_arm).rows
        assert len(cells) == len(NAMED)
        wrong += any(row[3] in ("better", "worse") for row in cells)
    assert 0 < wrong <= stats.binom.ppf(0.99, 250, 0.05)
