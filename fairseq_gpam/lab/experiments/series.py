"""Series of an arm's runs over updates or layers: validation curves, λ, measures of collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq_gpam.lab.experiments import statistics

NATS = math.log(2)
"""A bit in nats: fairseq logs base 2."""


def curve(own: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]] | None = None) -> list[list[float | None]]:
    """Returns [update, mean, low, high] of the validation loss in nats, at the updates that all runs of the arm have.

    With runs of a baseline, of the difference to theirs, paired by seed. With fewer than three there is no interval.
    """
    curves = {one["seed"]: _valid_curve(one) for one in own}
    if baseline is not None:
        others = {one["seed"]: _valid_curve(one) for one in baseline}
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


def _valid_curve(one: dict[str, Any]) -> dict[int, float]:
    points = one["train"].get("curve", {}).get("valid", [])
    return {update: loss * NATS for update, loss in points if math.isfinite(loss)}


def mean_lambdas(own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns each λ of an arm over training, the mean over the seeds that logged it at an update.

    `last` is the mean over seeds of each one's last value: seeds may end at different updates.
    """
    return [
        {
            "name": name,
            "last": float(np.mean([ends[-1][1] for one in own if (ends := _finite(one, "lambdas", name))])),
            "points": [[update, float(np.mean(found))] for update, found in points],
        }
        for name, points in _values(own, "lambdas").items()
    ]


def by_layer(own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns each measure of an arm's analysed runs as [layer, mean, least, greatest] over their seeds."""
    return [
        {
            "name": name,
            "seeds": max(len(found) for _, found in points),
            "points": [[layer, float(np.mean(found)), min(found), max(found)] for layer, found in points],
        }
        for name, points in _values(own, "by_layer").items()
    ]


def _values(own: Sequence[dict[str, Any]], key: str) -> dict[str, list[tuple[int, list[float]]]]:
    """Returns, for each name that runs have under `key`, the finite values of all runs at each update or layer."""
    values: dict[str, dict[int, list[float]]] = {}
    for one in own:
        for name in one.get(key, {}):
            for at, value in _finite(one, key, name):
                values.setdefault(name, {}).setdefault(at, []).append(value)
    return {name: sorted(found.items()) for name, found in values.items()}


def _finite(one: dict[str, Any], key: str, name: str) -> list[tuple[int, float]]:
    return [(int(at), value) for at, value in one.get(key, {}).get(name, ()) if math.isfinite(value)]
