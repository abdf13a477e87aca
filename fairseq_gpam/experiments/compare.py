"""Compare runs with a baseline, paired by seed: Markdown, CSV, JSON and one HTML page that works offline.

RUNS are run folders or JSON lines files such as examples/results/bible-de-en.jsonl. The rule of the verdicts is the
docstring of fairseq_gpam/experiments/statistics.py. With --json, the files are made from a comparison.json alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fairseq_gpam.experiments import finished, kept, statistics
from fairseq_gpam.experiments.grid import LR_SUFFIX, Grid
from fairseq_gpam.recipes import run_folder

DELTAS = {"nats": 0.01, "BLEU": 0.3, "chrF": 0.3}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A compared quantity, read from `path` in a run and multiplied by `factor`.

    `resolution` is the step to which fairseq's log rounds it, in the quantity's unit.
    """

    key: str
    label: str
    unit: str
    path: tuple[str, str]
    lower_is_better: bool
    factor: float = 1.0
    resolution: float = 0.0

    def measures(self, kind: str) -> bool:
        """Tells whether runs of a task with this `result_kind` have the quantity."""
        return self.path[0] == "train" or (self.path[0] == "score") == (kind == "translation")

    def of(self, run: dict[str, Any]) -> float | None:
        """Returns the run's value, None if it was not measured or is not finite."""
        value = self._logged(run)
        return None if value is None or not math.isfinite(value) else value * self.factor

    def diverged(self, run: dict[str, Any]) -> bool:
        """Tells whether the run's value is there but not finite."""
        value = self._logged(run)
        return value is not None and not math.isfinite(value)

    def _logged(self, run: dict[str, Any]) -> float | None:
        return run.get(self.path[0], {}).get(self.path[1])


NATS = math.log(2)
"""A bit in nats: fairseq logs base 2."""
QUANTITIES = (
    Quantity(
        *("valid-loss", "validation negative log-likelihood", "nats", ("train", "valid_nll_loss"), True),
        factor=NATS,
        resolution=0.001 * NATS,
    ),
    Quantity("bleu", "test BLEU", "BLEU", ("score", "bleu"), False),
    Quantity("chrf", "test chrF", "chrF", ("score", "chrf"), False),
    Quantity(
        *("test-loss", "test loss per subword", "nats", ("eval-lm", "bits_per_subword"), True),
        factor=NATS,
        resolution=0.0001 * NATS,
    ),
)
COSTS = (
    ("parameters", "parameters", ("train", "parameters")),
    ("training_seconds", "training (s)", ("benchmark", "seconds")),
    ("peak_memory_mib", "peak memory (MiB)", ("benchmark", "peak_memory_mib")),
    ("training_tokens_per_second", "training tokens/s", ("train", "tokens_per_second")),
    ("decoding_tokens_per_second", "decoding tokens/s", ("generate", "tokens_per_second")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, or a .jsonl file of runs")
    parser.add_argument("--baseline", metavar="ARM", help="the arm that the others are compared with")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="make the files from this comparison.json alone")
    for unit, delta in DELTAS.items():
        text = f"δ of a bounded null (default: {delta} {unit})"
        parser.add_argument(f"--delta-{unit.lower()}", type=float, default=delta, metavar="D", help=text)


def run(arguments: argparse.Namespace) -> int:
    from fairseq_gpam.experiments import comparison_report

    if bool(arguments.json) == bool(arguments.runs):
        sys.exit("compare needs either RUNS or --json FILE")
    if arguments.json:
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    else:
        if not arguments.baseline:
            sys.exit("--baseline is missing; allowed: the name of an arm of the runs")
        deltas = {unit: getattr(arguments, f"delta_{unit.lower()}") for unit in DELTAS}
        try:
            found = comparison(read_runs(arguments.runs), arguments.baseline, deltas, arguments.arms)
        except (ValueError, FileNotFoundError) as error:
            sys.exit(str(error))
    print(comparison_report.write(found, arguments.out))
    return 0


def write(runs: Sequence[Path], chosen: Grid, out: Path) -> None:
    """Compares run folders of a grid and writes all files into `out`."""
    from fairseq_gpam.experiments import comparison_report

    planned = {title(*group): len(arms) - 1 for group, arms in chosen.groups().items()}
    print(comparison_report.write(comparison(read_runs(runs), chosen.baseline, planned=planned), out))


def read_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the runs of folders, which they name, and of .jsonl files of kept runs.

    Raises `FileNotFoundError` for a folder without a finished training.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        found += kept.read_lines(path) if path.suffix == ".jsonl" else [{**finished.read(path), "folder": str(path)}]
    return found


def arm_and_rate(name: str) -> tuple[str, str]:
    """Returns the arm and the learning rate in a run's name, the rate empty where the grid has one."""
    arm, _, rate = name.partition(LR_SUFFIX)
    return arm, rate


def title(task: str, rate: str) -> str:
    """Returns the title of a group of runs that are compared with each other."""
    return task + (f", learning rate {rate}" if rate else "")


def comparison(
    runs: Sequence[dict[str, Any]],
    baseline: str,
    deltas: dict[str, float] = DELTAS,
    arms: Sequence[str] | None = None,
    planned: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns everything that the report shows, as plain JSON.

    `planned` is how many arms besides the baseline each group will have, by title, if those at hand are not all. Raises
    `ValueError` if no run is of the baseline.
    """
    runs = [one for one in runs if arms is None or arm_and_rate(one["name"])[0] in (*arms, baseline)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["task"], arm_and_rate(one["name"])[1]), []).append(one)
    if not any(arm_and_rate(one["name"])[0] == baseline for one in runs):
        known = ", ".join(dict.fromkeys(arm_and_rate(one["name"])[0] for one in runs))
        raise ValueError(f"--baseline is {baseline!r}; allowed: an arm of the runs: {known}")
    found: dict[str, Any] = {"baseline": baseline, "deltas": deltas, "tables": [], "costs": [], "curves": []}
    found |= {"lambdas": [], "layers": [], "bootstrap": [], "collapse": collapse(runs)}
    for (task, rate), members in groups.items():
        group = title(task, rate)
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for one in sorted(members, key=lambda one: (arm_and_rate(one["name"])[0] != baseline, int(one["seed"]))):
            by_arm.setdefault(arm_and_rate(one["name"])[0], []).append(one)
        tables = (table(group, by_arm, baseline, one, deltas[one.unit], planned.get(group, 0)) for one in QUANTITIES)
        found["tables"] += [one for one in tables if one]
        for arm, own in by_arm.items():
            found["costs"].append({"group": group, "arm": arm, **costs(own)})
            shown = {
                "points": curve(own),
                "differences": curve(own, by_arm.get(baseline, ())) if arm != baseline else [],
            }
            found["curves"].append({"group": group, "arm": arm, **shown})
            found["lambdas"] += [{"group": group, "arm": arm, **shown} for shown in mean_lambdas(own)]
            found["layers"] += [{"group": group, "arm": arm, **shown} for shown in by_layer(own)]
        found["bootstrap"] += bootstrap(group, by_arm, baseline)
    return found


def table(
    group: str,
    by_arm: dict[str, list[dict[str, Any]]],
    baseline: str,
    quantity: Quantity,
    delta: float,
    planned: int = 0,
) -> dict[str, Any] | None:
    """Returns one table, the baseline's row first, None where no run of the baseline has the quantity.

    `planned` is how many arms besides the baseline there will be, if those in `by_arm` are not all.
    """
    values: dict[str, dict[int, float]] = {}
    for arm in (baseline, *(arm for arm in by_arm if arm != baseline)):
        measured = {int(one["seed"]): value for one in by_arm.get(arm, ()) if (value := quantity.of(one)) is not None}
        if measured:
            values[arm] = measured
    if baseline not in values:
        return None
    rule = (delta, quantity.lower_is_better, quantity.resolution, planned)
    differences = statistics.compare(values, baseline, *rule)
    tests = max(planned, len(differences))
    rows = []
    for arm, measured in values.items():
        shown = statistics.interval(list(measured.values()))
        row: dict[str, Any] = {"arm": arm, "parameters": costs(by_arm[arm])["parameters"], **dataclasses.asdict(shown)}
        if arm in differences:
            one = differences[arm]
            row["difference"] = dataclasses.asdict(one)
            row["seeds_for_delta"] = statistics.seeds_needed(delta, one.interval.sd, tests)
        rows.append(row)
    spread = list(values[baseline].values())
    return {
        "group": group,
        "quantity": quantity.label,
        "unit": quantity.unit,
        "lower_is_better": quantity.lower_is_better,
        "delta": delta,
        "tests": tests,
        "diverged": [[arm, int(one["seed"])] for arm, own in by_arm.items() for one in own if quantity.diverged(one)],
        "noise": {"n": len(spread), "sd": rows[0]["sd"], "range": max(spread) - min(spread)},
        "rows": rows,
    }


def costs(own: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Returns the medians of an arm's costs, None for what was not measured."""
    found: dict[str, float | None] = {}
    for key, _, (stage, entry) in COSTS:
        values = [one[stage][entry] for one in own if one.get(stage, {}).get(entry) is not None]
        found[key] = float(np.median(values)) if values else None
    return found


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
    """Returns each λ of an arm over training, the mean over the seeds that logged it at an update."""
    return [
        {"name": name, "seeds": len(own), "points": [[update, float(np.mean(found))] for update, found in points]}
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
        for name, points in one.get(key, {}).items():
            for at, value in points:
                if math.isfinite(value):
                    values.setdefault(name, {}).setdefault(int(at), []).append(value)
    return {name: sorted(found.items()) for name, found in values.items()}


def bootstrap(group: str, by_arm: dict[str, list[dict[str, Any]]], baseline: str) -> list[dict[str, Any]]:
    """Returns sacreBLEU's paired bootstrap of each seed whose hypotheses are at hand, against the baseline's."""
    from fairseq_gpam.recipes import score

    def at_hand(one: dict[str, Any]) -> bool:
        return "folder" in one and (Path(one["folder"]) / run_folder.HYPOTHESES).exists()

    base = {one["seed"]: one["folder"] for one in by_arm.get(baseline, ()) if at_hand(one)}
    found = []
    for arm, own in by_arm.items():
        for one in own:
            if arm != baseline and at_hand(one) and one["seed"] in base:
                first, second = Path(base[one["seed"]]), Path(one["folder"])
                measured, signatures = score.paired_bootstrap(first, second, score.references(first))
                for metric, (_, value) in measured.items():
                    entry = {"group": group, "arm": arm, "seed": one["seed"], "metric": metric}
                    entry |= {"score": float(value.score), "p": float(value.p_value)}
                    found.append({**entry, "signature": signatures[metric]})
    return found


def collapse(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns Spearman's ρ of each collapse measure against each task's first quantity that the runs have.

    The measures are those of the last layer, with those that are kept by layer alone.
    """
    found = []
    for task in dict.fromkeys(one["task"] for one in runs):
        measured = [
            (one["name"], _last_layer(one), value)
            for one in runs
            if one["task"] == task and (value := QUANTITIES[0].of(one)) is not None
        ]
        for name in dict.fromkeys(name for _, measures, _ in measured for name in measures):
            own = [(arm, measures[name], value) for arm, measures, value in measured if name in measures]
            names, x, y = zip(*own, strict=True)
            if len(x) >= 3:
                entry = dataclasses.asdict(statistics.spearman(x, y, names))
                points = [list(point) for point in zip(x, y, names, strict=True)]
                found.append({"group": task, "measure": name, **entry, "points": points})
    return found


def _last_layer(one: dict[str, Any]) -> dict[str, float]:
    """Returns the collapse measures of a run, by measure and site, in the last layer of each stack."""
    measures: dict[str, float] = dict(one.get("collapse", {}))
    for name, points in one.get("by_layer", {}).items():
        measures.setdefault(name, points[-1][1])
    return measures
