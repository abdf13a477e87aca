"""Compare runs with a baseline, paired by seed: Markdown, CSV, JSON and one HTML page that works offline.

RUNS are run folders or JSON lines files such as examples/results/bible-de-en.jsonl. The rule of the verdicts is the
docstring of fairseq_gpam/lab/experiments/statistics.py. With --json, the files are made from a comparison.json alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fairseq_gpam import errors
from fairseq_gpam.arguments import positive_number
from fairseq_gpam.lab.experiments import committed_results, run_results, series, statistics
from fairseq_gpam.lab.experiments.grid import Grid
from fairseq_gpam.lab.experiments.series import NATS
from fairseq_gpam.lab.recipes import run_folder
from fairseq_gpam.lab.recipes.stages import rate_text

DELTAS = {"nats": 0.01, "BLEU": 0.3, "chrF": 0.3}
LISTS = ("tables", "remarks", "costs", "curves", "lambdas", "layers", "bootstrap", "collapse")
"""What a comparison has besides its baseline and its δ's; the entries name their group."""


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
        """Tells whether the run's training diverged, or its value is there but not finite."""
        value = self._logged(run)
        return bool(run.get("train", {}).get("diverged")) or (value is not None and not math.isfinite(value))

    def _logged(self, run: dict[str, Any]) -> float | None:
        return run.get(self.path[0], {}).get(self.path[1])


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, or a .jsonl file of runs")
    parser.add_argument("--baseline", metavar="ARM", help="the arm that the others are compared with")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="make the files from this comparison.json alone")
    for unit, delta in DELTAS.items():
        text = f"δ of an equivalence (default: {delta} {unit})"
        parser.add_argument(f"--delta-{unit.lower()}", type=positive_number, metavar="D", help=text)


def run(arguments: argparse.Namespace) -> int:
    from fairseq_gpam.lab.experiments import comparison_report

    if bool(arguments.json) == bool(arguments.runs):
        sys.exit("compare needs either RUNS or --json FILE")
    given = {unit: getattr(arguments, f"delta_{unit.lower()}") for unit in DELTAS}
    errors.check_folder(arguments.out)
    if arguments.json:
        flags = {"--baseline": arguments.baseline, "--arms": arguments.arms}
        flags |= {f"--delta-{unit.lower()}": delta for unit, delta in given.items()}
        beside = [flag for flag, value in flags.items() if value is not None]
        if beside:
            raise ValueError(f"{beside[0]} is not allowed beside --json, whose file holds a finished comparison")
        found = read_comparison(arguments.json)
    elif not arguments.baseline:
        raise ValueError("--baseline is missing; allowed: the name of an arm of the runs")
    else:
        deltas = {unit: given[unit] or delta for unit, delta in DELTAS.items()}
        found = comparison(read_runs(arguments.runs), arguments.baseline, deltas, arguments.arms)
    print(comparison_report.write(found, arguments.out))
    return 0


def write(runs: Sequence[Path], chosen: Grid, out: Path) -> None:
    """Compares run folders of a grid and writes all files into `out`."""
    from fairseq_gpam.lab.experiments import comparison_report

    planned = {
        group: {arm: [run.settings.seed for run in own] for arm, own in arms.items()}
        for group, arms in chosen.groups().items()
    }
    print(comparison_report.write(comparison(read_runs(runs), chosen.baseline, planned=planned), out))


def read_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the runs of folders, which they name, and of .jsonl files of kept runs.

    Raises `FileNotFoundError` for a missing file or a folder without a finished training, `ValueError` if a task, name
    and seed are there twice.
    """
    found: list[dict[str, Any]] = []
    places: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        if path.suffix == ".jsonl" and not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        own = (
            committed_results.read_lines(path)
            if path.suffix == ".jsonl"
            else [{**run_results.read(path), "folder": str(path)}]
        )
        for one in own:
            key = (one["task"], one["name"], int(one["seed"]))
            if key in places:
                what = f"the run of {one['task']}, {one['name']}, seed {one['seed']}"
                raise ValueError(f"{what} is in {places[key]} and in {path}; allowed: one of them")
            places[key] = path
        found += own
    return found


def read_comparison(path: Path) -> dict[str, Any]:
    """Returns the comparison in a comparison.json; raises `ValueError` with the file if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--json is {path}; allowed: a comparison.json ({error})") from error
    if not isinstance(found, dict) or not {"baseline", "deltas", *LISTS} <= found.keys():
        raise ValueError(f"--json is {path}; allowed: a comparison.json that this version of compare wrote")
    return found


def arm_and_rate(run: Mapping[str, Any]) -> tuple[str, float | None]:
    """Returns a run's arm and, if its grid has several, its learning rate."""
    return run.get("arm", run["name"]), run.get("learning_rate")


def title(task: str, rate: float | None) -> str:
    """Returns the title of a group of runs that are compared with each other."""
    return task if rate is None else f"{task}, learning rate {rate_text(rate)}"


def comparison(
    runs: Sequence[dict[str, Any]],
    baseline: str,
    deltas: dict[str, float] = DELTAS,
    arms: Sequence[str] | None = None,
    planned: Mapping[tuple[str, float | None], Mapping[str, Sequence[int]]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns everything that the report shows, as plain JSON.

    `planned` has the seeds of all arms that each group, of a task and a learning rate, will have, if those at hand are
    not all. Raises `ValueError` if no run is of the baseline, or none is of one of the `arms`.
    """
    known = dict.fromkeys(arm_and_rate(one)[0] for one in runs)
    for given, chosen in (("--baseline is", [baseline]), ("--arms has", arms or ())):
        unknown = [arm for arm in chosen if arm not in known]
        if unknown:
            raise ValueError(f"{given} {unknown[0]!r}; allowed: an arm of the runs: {', '.join(known)}")
    runs = [one for one in runs if arms is None or arm_and_rate(one)[0] in (*arms, baseline)]
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {at: [] for at in planned}
    for one in runs:
        groups.setdefault((one["task"], arm_and_rate(one)[1]), []).append(one)
    found: dict[str, Any] = {"baseline": baseline, "deltas": deltas, **{key: [] for key in LISTS}}
    found["collapse"] = collapse(runs)
    for at, members in groups.items():
        group, plan = title(*at), planned.get(at, {})
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for one in sorted(members, key=lambda one: (arm_and_rate(one)[0] != baseline, int(one["seed"]))):
            by_arm.setdefault(arm_and_rate(one)[0], []).append(one)
        missing = {
            arm: [seed for seed in seeds if seed not in {int(one["seed"]) for one in by_arm.get(arm, ())}]
            for arm, seeds in plan.items()
        }
        remarks = not_run(missing, next(iter(plan.values()), ()))
        if members and baseline not in by_arm:
            remarks.insert(0, f"Not compared, because no run is of the baseline {baseline}: {', '.join(by_arm)}.")
        tables = [table(group, by_arm, baseline, one, deltas[one.unit], len(plan) - 1) for one in QUANTITIES]
        found["tables"] += [one for one in tables if one]
        diverged = [f"{arm} seed {one['seed']}" for arm in by_arm for one in by_arm[arm] if QUANTITIES[0].diverged(one)]
        if diverged and not any(tables):
            remarks.append(f"Diverged: {'; '.join(diverged)}.")
        found["remarks"] += [{"group": group, "text": text} for text in remarks]
        for arm, own in by_arm.items():
            found["costs"].append({"group": group, "arm": arm, **costs(own)})
            shown = {
                "points": series.curve(own),
                "differences": series.curve(own, by_arm.get(baseline, ())) if arm != baseline else [],
            }
            found["curves"].append({"group": group, "arm": arm, **shown})
            found["lambdas"] += [{"group": group, "arm": arm, **shown} for shown in series.mean_lambdas(own)]
            found["layers"] += [{"group": group, "arm": arm, **shown} for shown in series.by_layer(own)]
        found["bootstrap"] += bootstrap(group, by_arm, baseline)
    return found


def not_run(missing: Mapping[str, Sequence[int]], seeds: Sequence[int]) -> list[str]:
    """Returns sentences that name the missing seeds of each arm, of all planned `seeds`."""
    wholly = [arm for arm, own in missing.items() if len(own) == len(seeds)]
    partly = [f"{arm} seeds {_list(own)}" for arm, own in missing.items() if 0 < len(own) < len(seeds)]
    said = [f"Not run with any seed of {_list(seeds)}: {', '.join(wholly)}."] if wholly else []
    return [*said, *([f"Not run yet: {'; '.join(partly)}."] if partly else [])]


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


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
        "decoded_otherwise": decoded_otherwise(by_arm, {"score": "generate"}.get(quantity.path[0], quantity.path[0])),
        "noise": {"n": len(spread), "sd": rows[0]["sd"], "range": max(spread) - min(spread)},
        "rows": rows,
    }


def decoded_otherwise(by_arm: dict[str, list[dict[str, Any]]], stage: str) -> list[str]:
    """Returns a phrase for each way in which runs were decoded unlike the first run, with the names of these runs.

    Empty for the stage `train`. Of paths, such as those of the checkpoints, only the last part counts.
    """
    if stage == "train":
        return []
    first: list[str] = []
    unlike: dict[str, list[str]] = {}
    for arm, own in by_arm.items():
        for one in own:
            words = shlex.split(one.get(stage, {}).get("command", ""))
            command = [":".join(Path(part).name for part in word.split(":")) if "/" in word else word for word in words]
            first = first or command
            if command and (phrases := run_folder.differing_flags(first, command)):
                unlike.setdefault("; ".join(phrases), []).append(f"{arm} seed {one['seed']}")
    return [f"{', '.join(runs)}: {phrases}" for phrases, runs in unlike.items()]


def costs(own: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Returns the medians of an arm's costs, None for what was not measured."""
    found: dict[str, float | None] = {}
    for key, _, (stage, entry) in run_results.COSTS:
        values = [one[stage][entry] for one in own if one.get(stage, {}).get(entry) is not None]
        found[key] = float(np.median(values)) if values else None
    return found


def bootstrap(group: str, by_arm: dict[str, list[dict[str, Any]]], baseline: str) -> list[dict[str, Any]]:
    """Returns sacreBLEU's paired bootstrap of each seed whose hypotheses are at hand, against the baseline's."""
    from fairseq_gpam.lab.recipes import score

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
            (one["name"], int(one["seed"]), _last_layer(one), value)
            for one in runs
            if one["task"] == task and (value := QUANTITIES[0].of(one)) is not None
        ]
        for name in dict.fromkeys(name for *_, measures, _ in measured for name in measures):
            own = [(arm, seed, measures[name], value) for arm, seed, measures, value in measured if name in measures]
            names, seeds, x, y = zip(*own, strict=True)
            if len(x) >= 3:
                entry = dataclasses.asdict(statistics.spearman(x, y, names, seeds))
                points = [list(point) for point in zip(x, y, names, strict=True)]
                found.append({"group": task, "measure": name, **entry, "points": points})
    return found


def _last_layer(one: dict[str, Any]) -> dict[str, float]:
    """Returns the collapse measures of a run, by measure and site, in the last layer of each stack."""
    measures: dict[str, float] = dict(one.get("collapse", {}))
    for name, points in one.get("by_layer", {}).items():
        measures.setdefault(name, points[-1][1])
    return measures
