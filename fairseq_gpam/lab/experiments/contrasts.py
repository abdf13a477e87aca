"""The rule of studies that name their primary contrasts in advance, and effects in units that mean something.

Two to four contrasts are primary, each with at least eight seeds. Holm's correction is over the primary ones alone, and
only they have a verdict; every other difference is exploratory and has an interval. Differences are tested as in
`statistics`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from fairseq_gpam.lab.experiments import compare, comparison_report, statistics
from fairseq_gpam.lab.experiments.compare import Quantity
from fairseq_gpam.lab.experiments.grid import MIN_SEEDS, Grid
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.sections import Section, number
from fairseq_gpam.lab.experiments.series import NATS
from fairseq_gpam.lab.experiments.statistics import ALPHA, POWER, Contrast, Difference

Curve = Sequence[Sequence[float]]
"""[update, loss] of one run, in the order of updates."""


def least_effect(pairs: int, tests: int) -> float | None:
    """Returns the true mean, in standard deviations of the paired differences, that is found in 80 % of studies.

    By a two-sided paired t test at level 0.05 / `tests`; None for fewer than two pairs.
    """
    if pairs < 2:
        return None
    freedom = pairs - 1
    critical = float(special.stdtrit(freedom, 1 - ALPHA / tests / 2))

    def missing_power(effect: float) -> float:
        # The other tail adds less than 1e-6 where the power is 0.8.
        return float(stats.nct.sf(critical, freedom, effect * math.sqrt(pairs))) - POWER

    return float(optimize.brentq(missing_power, 1e-3, 2 * (critical + 10) / math.sqrt(pairs)))


def in_seed_deviations(arm: Sequence[float], other: Sequence[float]) -> float | None:
    """Returns the difference of the means in standard deviations of a single run: Cohen's d with the pooled spread.

    None with fewer than two values in either, or if neither has a spread.
    """
    if min(len(arm), len(other)) < 2:
        return None
    freedom = len(arm) + len(other) - 2
    squares = sum((len(values) - 1) * float(np.var(values, ddof=1)) for values in (arm, other))
    return None if squares == 0 else float(np.mean(arm) - np.mean(other)) / math.sqrt(squares / freedom)


def loss_at(curve: Curve, update: float) -> float | None:
    """Returns the loss at an update, linearly between the validations; None outside them."""
    updates, losses = _finite(curve)
    if not len(updates) or not updates[0] <= update <= updates[-1]:
        return None
    return float(np.interp(update, updates, losses))


def updates_saved(arm: Curve, other: Curve) -> float | None:
    """Returns by how many updates the arm reaches earlier what the other one has at its end; below 0 if later.

    Where it never does, it is counted how many updates before the end the other has what the arm ends with. The lowest
    loss so far is what has been reached. None if one of the curves never reaches the other's level.
    """
    (updates, losses), (other_updates, other_losses) = _finite(arm), _finite(other)
    if not len(updates) or not len(other_updates):
        return None
    losses, other_losses = np.minimum.accumulate(losses), np.minimum.accumulate(other_losses)
    if losses[-1] <= other_losses[-1]:
        reached = _first_below(updates, losses, other_losses[-1])
        return None if reached is None else float(other_updates[-1] - reached)
    reached = _first_below(other_updates, other_losses, losses[-1])
    return None if reached is None else float(reached - updates[-1])


def at_equal_time(arm: Curve, other: Curve, time_of_update: float) -> float | None:
    """Returns arm − other in loss at the time in which the slower one of them ends, or None outside the curves.

    `time_of_update` is the arm's time for an update divided by the other's, measured apart from the runs, or NaN. The
    learning rate's schedule is that of the whole training, so this favours neither only where the schedule is flat.
    """
    ends = [curve[-1][0] for curve in (arm, other) if curve]
    if len(ends) < 2 or not time_of_update > 0:
        return None
    time = min(ends[0] * time_of_update, ends[1])
    losses = loss_at(arm, min(time / time_of_update, ends[0])), loss_at(other, time)
    return None if None in losses else losses[0] - losses[1]  # type: ignore[operator]


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    kept = np.array([point[:2] for point in curve if math.isfinite(point[1])], dtype=float).reshape(-1, 2)
    return kept[:, 0], kept[:, 1]


def _first_below(updates: np.ndarray, losses: np.ndarray, level: float) -> float | None:
    """Returns where falling losses first reach a level, linearly between points; None if they start below it."""
    at = int(np.argmax(losses <= level))
    if at == 0:
        return float(updates[0]) if losses[0] == level else None
    share = (losses[at - 1] - level) / (losses[at - 1] - losses[at])
    return float(updates[at - 1] + share * (updates[at] - updates[at - 1]))


@dataclasses.dataclass(frozen=True)
class Effect:
    """A primary contrast in one quantity with its verdict, and in other units; None where it was not measured.

    `least` is the true difference that is found in 80 % of studies with this spread, in the quantity's unit.
    """

    contrast: Contrast
    difference: Difference
    deviations: float | None
    updates: float | None
    equal_time: float | None
    least: float | None


def effects(
    values: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[int, Curve]],
    contrasts: Sequence[Contrast],
    delta: float,
    lower_is_better: bool,
    times: Mapping[str, float],
    resolution: float = 0.0,
) -> list[Effect]:
    """Returns the primary contrasts of a quantity, the largest effect first.

    `values` and the `curves` of losses are by arm and seed; `times` are the arms' times for an update, measured apart
    from the runs. Updates saved and the difference at equal time are means over the seeds.
    """
    rule = (delta, lower_is_better, resolution, len(contrasts), MIN_SEEDS)
    measured = []
    for pair, tested in statistics.compare(values, contrasts, *rule).items():
        first, second = ([curves.get(arm, {}).get(seed, ()) for seed in tested.seeds] for arm in pair)
        ratio = times.get(pair[0], math.nan) / times.get(pair[1], math.nan)
        power, spread = least_effect(tested.interval.n, len(contrasts)), tested.interval.sd
        measured.append(
            Effect(
                pair,
                tested,
                in_seed_deviations(*([values[arm][seed] for seed in tested.seeds] for arm in pair)),
                _mean(list(map(updates_saved, first, second))),
                _mean([at_equal_time(*curve, ratio) for curve in zip(first, second, strict=True)]),
                None if power is None or not spread else power * spread,
            )
        )
    return sorted(measured, key=lambda effect: -abs(effect.difference.interval.mean))


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean, None where a value is missing: a mean over other seeds would not be paired."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


HEAD = (
    *("contrast", "seeds", "difference ± 95 %", "verdict", "p (Holm)", "p (t)", "p (sign flips)"),
    *("in deviations of a run", "updates saved", "at equal time", "least effect found"),
)
NOTE = (
    "Holm's correction is over the primary contrasts alone. *In deviations of a run*: the difference divided by the "
    "pooled standard deviation of single runs. *Updates saved*: how much earlier the first arm has the loss with which "
    "the second one ends. *At equal time*: only with times of an update that were measured apart. *Least effect "
    "found*: the true difference that is found in 80 % of studies with this spread."
)
BATCHES_ONLY = "† The arms share batches, but not the initial weights."


def rows(effects: Sequence[Effect], unlike: Collection[Contrast] = ()) -> list[list[str]]:
    """Returns the cells of a table below `HEAD`; contrasts in `unlike` share batches only, and are marked."""
    cells = []
    for effect in effects:
        interval, tested = effect.difference.interval, effect.difference
        half = "" if interval.high is None else f" ± {interval.high - interval.mean:.4f}"
        # A p value is left out where there is no verdict.
        tests = (tested.p_holm, tested.p_t, tested.p_sign_flip) if tested.verdict != statistics.TOO_FEW else [None] * 3
        cells.append(
            [
                " − ".join(effect.contrast) + " †" * (effect.contrast in unlike),
                *(str(interval.n), f"{interval.mean:+.4f}{half}", tested.verdict),
                *map(number, tests),
                *(number(effect.deviations, "+.1f"), number(effect.updates, "+,.0f")),
                *(number(effect.equal_time, "+.4f"), number(effect.least, ".4f")),
            ]
        )
    return cells


def section(
    group: str, by_arm: Mapping[str, Sequence[Run]], chosen: Grid, quantity: Quantity, delta: float
) -> Section | None:
    """Returns the primary contrasts of a grid's group of runs in one quantity, None if none of them has been run.

    There is no verdict before all planned seeds of both arms have been trained.
    """
    values = {arm: quantity.by_seed(runs) for arm, runs in by_arm.items()}
    curves = {
        arm: {run.seed: [(update, loss * NATS) for update, loss in run.training.valid] for run in runs}
        for arm, runs in by_arm.items()
    }
    rule, planned = (delta, quantity.lower_is_better, chosen.times, quantity.resolution), len(chosen.seeds)
    measured = effects(values, curves, chosen.primary, *rule)
    if not measured:
        return None
    for at, effect in enumerate(measured):
        if any(len(by_arm[arm]) < planned for arm in effect.contrast):
            waiting = dataclasses.replace(effect.difference, verdict=statistics.TOO_FEW)
            measured[at] = dataclasses.replace(effect, difference=waiting)
    starts = {(arm, run.seed): run.initial_weights for arm, runs in by_arm.items() for run in runs}
    unlike = {
        effect.contrast
        for effect in measured
        for seed in effect.difference.seeds
        if len({start for arm in effect.contrast if (start := starts[arm, seed])}) == 2
    }
    note = (
        f"δ = {delta:g} {quantity.unit}. No verdict before all {planned} planned seeds are in. {NOTE}"
        + f" {BATCHES_ONLY}" * bool(unlike)
    )
    title = f"{group}: primary contrasts, {quantity.label} ({quantity.unit})"
    return Section(title, HEAD, rows(measured, unlike), note)


def exploratory(table: dict[str, Any]) -> dict[str, Any]:
    """Returns a comparison's table without verdicts and corrected p values, the best arm first below the baseline."""
    sign = 1 if table["lower_is_better"] else -1

    def without(row: dict[str, Any]) -> dict[str, Any]:
        tested = row.get("difference")
        if not tested or tested["verdict"] == statistics.TOO_FEW:
            return row
        return {**row, "difference": {**tested, "p_holm": None, "verdict": "exploratory"}}

    first, *others = map(without, table["rows"])
    others.sort(key=lambda row: sign * row["difference"]["interval"]["mean"] if row.get("difference") else math.inf)
    return {**table, "rows": [first, *others], "tests": 0}


def comparison(runs: Sequence[Run], chosen: Grid) -> dict[str, Any]:
    """Returns the comparison of a grid's runs, as plain JSON; with primary contrasts, all else has no verdict."""
    groups = chosen.groups()
    planned = {at: {arm: [run.seed for run in of_arm] for arm, of_arm in arms.items()} for at, arms in groups.items()}
    result = compare.comparison(runs, chosen.baseline, planned=planned)
    if not chosen.primary:
        return result
    shown = []
    for at, arms in groups.items():
        there = [run for run in runs if (run.group, run.learning_rate) == at and run.replicate == 1]
        by_arm = {arm: [run for run in there if run.arm == arm] for arm in arms}
        for quantity in compare.QUANTITIES:
            shown.append(section(compare.title(*at), by_arm, chosen, quantity, compare.DELTAS[quantity.unit]))
    result["primary"] = [
        {"title": each.title, "head": each.head, "rows": each.rows, "note": each.note} for each in shown if each
    ]
    return {**result, "tables": [exploratory(table) for table in result["tables"]]}


def write(runs: Sequence[Path], chosen: Grid, out: Path) -> None:
    """Compares run folders of a grid and writes all files into `out`."""
    print(comparison_report.write(comparison(compare.read_runs(runs), chosen), out))
