"""Series of an arm's runs over updates or layers: validation curves, λ, measures of collapse."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq_gpam.lab.experiments import statistics
from fairseq_gpam.lab.experiments.records import Run

NATS = math.log(2)
"""A bit in nats: fairseq logs base 2."""


def curve(runs: Sequence[Run], baseline: Sequence[Run] | None = None) -> list[list[float | None]]:
    """Returns [update, mean, low, high] of the validation loss in nats, at the updates that all runs of the arm have.

    With runs of a baseline, of the difference from theirs, paired by seed. With fewer than three there is no interval.
    Runs that diverged are left out.
    """
    curves = _valid_curves(runs)
    if baseline is not None:
        others = _valid_curves(baseline)
        curves = {
            seed: {update: loss - others[seed][update] for update, loss in losses.items() if update in others[seed]}
            for seed, losses in curves.items()
            if seed in others
        }
    common = set.intersection(*(set(losses) for losses in curves.values())) if curves else set()
    points = []
    for update in sorted(common):
        shown = statistics.interval([losses[update] for losses in curves.values()])
        edges = [shown.low, shown.high] if shown.n >= statistics.MIN_PAIRS else [None, None]
        points.append([update, shown.mean, *edges])
    return points


def _valid_curves(runs: Sequence[Run]) -> dict[int, dict[int, float]]:
    return {
        run.seed: {update: loss * NATS for update, loss in run.training.valid if math.isfinite(loss)}
        for run in runs
        if run.training.diverged is None
    }


def mean_lambdas(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns each λ of an arm over training, the mean over the seeds that logged it at an update.

    `last` is the mean over seeds of each one's last value: seeds may end at different updates.
    """
    logged: dict[tuple[str, int, str], list[list[tuple[int, float]]]] = {}
    for run in runs:
        for entry in run.lambdas:
            if finite := [(update, value) for update, value in entry.points if math.isfinite(value)]:
                logged.setdefault((entry.site, entry.layer, entry.sign), []).append(finite)
    shown = []
    for (site, layer, sign), histories in logged.items():
        at_update: dict[int, list[float]] = {}
        for update, value in (point for history in histories for point in history):
            at_update.setdefault(update, []).append(value)
        points = [[update, float(np.mean(values))] for update, values in sorted(at_update.items())]
        last = float(np.mean([history[-1][1] for history in histories]))
        shown.append({"site": site, "layer": layer, "sign": sign, "last": last, "points": points})
    return shown


def by_layer(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns what was measured in several layers as [layer, mean, least, greatest] over an arm's analysed runs."""
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in runs:
        for measure in run.measures:
            values.setdefault((measure.metric, measure.site), {}).setdefault(measure.layer, []).append(measure.value)
    return [
        {
            "metric": metric,
            "site": site,
            "seeds": max(map(len, layers.values())),
            "points": [
                [layer, float(np.mean(values)), min(values), max(values)] for layer, values in sorted(layers.items())
            ],
        }
        for (metric, site), layers in values.items()
        if len(layers) > 1
    ]
