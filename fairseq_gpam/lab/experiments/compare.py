"""Compares runs with a baseline, paired by seed: Markdown, CSV, JSON and one HTML page that works offline.

Each RUN is a run's folder or a file of runs such as examples/results/bible-de-en.jsonl. The rule of the verdicts is the
docstring of fairseq_gpam/lab/experiments/statistics.py. With --json, the files are made from a comparison.json alone.
"""

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fairseq_gpam import errors
from fairseq_gpam.arguments import positive_number
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import resampling, run_results, series, statistics, tables
from fairseq_gpam.lab.experiments.records import COSTS, Run
from fairseq_gpam.lab.experiments.series import NATS
from fairseq_gpam.lab.recipes import run_folder, synthetic
from fairseq_gpam.lab.recipes.stages import rate_text
from fairseq_gpam.lab.recipes.tasks import Task

DELTAS = {"nats": 0.01, "BLEU": 0.3, "chrF": 0.3, "points": 1.0}
LISTS = ("tables", "remarks", "costs", "curves", "lambdas", "layers", "bootstrap", "collapse")
"""What a comparison has besides its baseline and its δ's; the entries name their group."""
NOT_OURS = "--json is {}; allowed: a comparison.json that this version of compare wrote"


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A compared quantity, read from a run with `read` and multiplied by `factor`.

    `resolution` is the step to which fairseq's log rounds it, in the quantity's unit; `belongs_to` tells whether a
    task's runs have it.
    """

    key: str
    label: str
    unit: str
    read: Callable[[Run], float | None]
    lower_is_better: bool
    belongs_to: Callable[[Task], bool]
    factor: float = 1.0
    resolution: float = 0.0

    def of(self, run: Run) -> float | None:
        """Returns the run's value, None if it was not measured or is not finite."""
        value = self.read(run)
        return None if value is None or not math.isfinite(value) else value * self.factor

    def by_seed(self, runs: Sequence[Run]) -> dict[int, float]:
        """Returns the values of an arm's runs that have one."""
        return {run.seed: value for run in runs if (value := self.of(run)) is not None}

    def diverged(self, run: Run) -> bool:
        """Tells whether the run's training diverged, or its value is there but not finite."""
        value = self.read(run)
        return run.training.diverged is not None or (value is not None and not math.isfinite(value))


def _accuracy(test_set: str) -> Quantity:
    return Quantity(
        *(f"accuracy-{test_set}", f"right answers in {test_set}", "points"),
        lambda run: run.score("accuracy", test_set),
        lower_is_better=False,
        belongs_to=lambda task: task.has_questions and test_set in synthetic.test_sets(task.data.corpus),
        factor=100.0,
        resolution=0.01,
    )


QUANTITIES = (
    Quantity(
        *("valid-loss", "validation negative log-likelihood", "nats", lambda run: run.loss("valid"), True),
        lambda task: True,
        factor=NATS,
        resolution=0.001 * NATS,
    ),
    Quantity("bleu", "test BLEU", "BLEU", lambda run: run.score("bleu"), False, lambda task: task.is_translation),
    Quantity("chrf", "test chrF", "chrF", lambda run: run.score("chrf"), False, lambda task: task.is_translation),
    Quantity(
        *("test-loss", "test loss per subword", "nats", lambda run: run.loss("test"), True),
        lambda task: task.result_kind in ("words", "characters"),
        factor=NATS,
        resolution=0.0001 * NATS,
    ),
    *map(_accuracy, tables.ACCURACIES),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, or a .jsonl file of runs")
    parser.add_argument("--baseline", metavar="ARM", help="the arm that the others are compared with")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
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
        if beside := [flag for flag, value in flags.items() if value is not None]:
            raise ValueError(f"{beside[0]} is not allowed beside --json, whose file holds a finished comparison")
        saved = read_comparison(arguments.json)
        # An older version's file may have the same keys, with other entries.
        with errors.blamed_on(NOT_OURS.format(arguments.json)):
            print(comparison_report.write(saved, arguments.out))
        return 0
    if not arguments.baseline:
        raise ValueError("--baseline is missing; allowed: the name of an arm of the runs")
    deltas = {unit: given[unit] or delta for unit, delta in DELTAS.items()}
    compared = comparison(read_runs(arguments.runs), arguments.baseline, deltas, arguments.arms)
    print(comparison_report.write(compared, arguments.out))
    return 0


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Returns the runs of folders, which they name, and of .jsonl files of kept runs.

    Raises `FileNotFoundError` for a folder without a finished training, `ValueError` for a missing file or if a run of
    a task, learning rate, arm, seed and replicate is there twice.
    """
    runs: list[Run] = []
    places: dict[tuple[str, str, int, int], Path] = {}
    for path in paths:
        kept = schema.read_json_lines(path, Run) if path.suffix == ".jsonl" else [run_results.read(path)]
        for run in kept:
            key = (run.group, run.name, run.seed, run.replicate)
            if key in places:
                what = f"the run of {run.group}, {run.name}, seed {run.seed}"
                raise ValueError(f"{what} is in {places[key]} and in {path}; allowed: one of them")
            places[key] = path
            runs.append(run)
    return runs


def read_comparison(path: Path) -> dict[str, Any]:
    """Returns the comparison in a comparison.json; raises `ValueError` with the file if it holds none."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--json is {path}; allowed: a comparison.json ({error})") from error
    if not isinstance(saved, dict) or not {"baseline", "deltas", *LISTS} <= saved.keys():
        raise ValueError(NOT_OURS.format(path))
    return saved


def title(task: str, rate: float | None) -> str:
    """Returns the title of a group of runs that are compared with each other."""
    return task if rate is None else f"{task}, learning rate {rate_text(rate)}"


def comparison(
    runs: Sequence[Run],
    baseline: str,
    deltas: dict[str, float] = DELTAS,
    arms: Sequence[str] | None = None,
    planned: Mapping[tuple[str, float | None], Mapping[str, Sequence[int]]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Returns everything that the report shows, as plain JSON.

    `planned` has the seeds of all arms that each group, of a task and a learning rate, will have, if those at hand are
    not all. Replicates are named, not counted. Raises `ValueError` if no run is of the baseline, or none is of one of
    the `arms`.
    """
    known = dict.fromkeys(run.arm for run in runs)
    for given, chosen in (("--baseline is", [baseline]), ("--arms has", arms or ())):
        if unknown := [arm for arm in chosen if arm not in known]:
            raise ValueError(f"{given} {unknown[0]!r}; allowed: an arm of the runs: {', '.join(known)}")
    chosen_runs = [run for run in runs if arms is None or run.arm in (*arms, baseline)]
    runs = [run for run in chosen_runs if run.replicate == 1]
    groups: dict[tuple[str, float | None], list[Run]] = {at: [] for at in planned}
    for run in runs:
        groups.setdefault((run.group, run.learning_rate), []).append(run)
    result: dict[str, Any] = {"baseline": baseline, "deltas": deltas, **{key: [] for key in LISTS}}
    result["collapse"] = collapse(runs)
    for at, members in groups.items():
        group, plan = title(*at), planned.get(at, {})
        by_arm: dict[str, list[Run]] = {}
        for run in sorted(members, key=lambda run: (run.arm != baseline, run.seed)):
            by_arm.setdefault(run.arm, []).append(run)
        missing = {
            arm: [seed for seed in seeds if seed not in {run.seed for run in by_arm.get(arm, ())}]
            for arm, seeds in plan.items()
        }
        remarks = not_run(missing, next(iter(plan.values()), ()))
        if members and baseline not in by_arm:
            remarks.insert(0, f"Not compared, because no run is of the baseline {baseline}: {', '.join(by_arm)}.")
        remarks += not_counted([run for run in chosen_runs if (run.group, run.learning_rate) == at])
        made = [table(group, by_arm, baseline, each, deltas[each.unit], len(plan) - 1) for each in QUANTITIES]
        result["tables"] += filter(None, made)
        diverged = [run.label for runs in by_arm.values() for run in runs if QUANTITIES[0].diverged(run)]
        if diverged and not any(made):
            remarks.append(f"Diverged: {'; '.join(diverged)}.")
        result["remarks"] += [{"group": group, "text": text} for text in remarks]
        for arm, of_arm in by_arm.items():
            place = {"group": group, "arm": arm}
            differences = series.curve(of_arm, by_arm.get(baseline, ())) if arm != baseline else []
            result["costs"].append({**place, **costs(of_arm)})
            result["curves"].append({**place, "points": series.curve(of_arm), "differences": differences})
            result["lambdas"] += [{**place, **entry} for entry in series.mean_lambdas(of_arm)]
            result["layers"] += [{**place, **entry} for entry in series.by_layer(of_arm)]
        result["bootstrap"] += resampling.of_arms(group, by_arm, baseline)
    return result


def not_run(missing: Mapping[str, Sequence[int]], seeds: Sequence[int]) -> list[str]:
    """Returns sentences that name the missing seeds of each arm, of all planned `seeds`."""
    wholly = [arm for arm, absent in missing.items() if len(absent) == len(seeds)]
    partly = [f"{arm} seeds {_list(absent)}" for arm, absent in missing.items() if 0 < len(absent) < len(seeds)]
    said = [f"Not run with any seed of {_list(seeds)}: {', '.join(wholly)}."] if wholly else []
    return [*said, *([f"Not run yet: {'; '.join(partly)}."] if partly else [])]


def not_counted(runs: Sequence[Run]) -> list[str]:
    """Returns a sentence that names the replicates among runs, if there are any."""
    replicates = [run.label for run in runs if run.replicate > 1]
    return [f"Not counted, because the first run of their seed is: {', '.join(replicates)}."] if replicates else []


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def table(
    group: str, by_arm: Mapping[str, Sequence[Run]], baseline: str, quantity: Quantity, delta: float, planned: int = 0
) -> dict[str, Any] | None:
    """Returns one table, the baseline's row first, None where no run of the baseline has the quantity.

    `planned` is how many arms besides the baseline there will be, if those in `by_arm` are not all.
    """
    arms = dict.fromkeys((baseline, *by_arm))
    values = {arm: measured for arm in arms if (measured := quantity.by_seed(by_arm.get(arm, ())))}
    if baseline not in values:
        return None
    rule = (delta, quantity.lower_is_better, quantity.resolution, planned)
    contrasts = [(arm, baseline) for arm in values if arm != baseline]
    differences = {arm: tested for (arm, _), tested in statistics.compare(values, contrasts, *rule).items()}
    tests = max(planned, len(differences))
    rows = []
    for arm, measured in values.items():
        shown = statistics.interval(list(measured.values()))
        row: dict[str, Any] = {"arm": arm, "parameters": costs(by_arm[arm])["parameters"], **dataclasses.asdict(shown)}
        if arm in differences:
            row["difference"] = dataclasses.asdict(differences[arm])
            row["seeds_for_delta"] = statistics.seeds_needed(delta, differences[arm].interval.sd, tests)
        rows.append(row)
    spread = list(values[baseline].values())
    return {
        "group": group,
        "quantity": quantity.label,
        "unit": quantity.unit,
        "lower_is_better": quantity.lower_is_better,
        "delta": delta,
        "tests": tests,
        "diverged": [[arm, run.seed] for arm, runs in by_arm.items() for run in runs if quantity.diverged(run)],
        "decoded_otherwise": decoded_otherwise(by_arm) if quantity != QUANTITIES[0] else [],
        "noise": {"n": len(spread), "sd": rows[0]["sd"], "range": max(spread) - min(spread)},
        "rows": rows,
    }


def decoded_otherwise(by_arm: Mapping[str, Sequence[Run]]) -> list[str]:
    """Returns a phrase for each way in which runs were decoded unlike the first run, with the names of these runs.

    Of paths, such as those of the checkpoints, only the last part counts.
    """
    first: list[str] = []
    unlike: dict[str, list[str]] = {}
    for run in (run for runs in by_arm.values() for run in runs):
        words = shlex.split(run.evaluation.command) if run.evaluation else []
        command = [":".join(Path(part).name for part in word.split(":")) if "/" in word else word for word in words]
        first = first or command
        if command and (phrases := run_folder.differing_flags(first, command)):
            unlike.setdefault("; ".join(phrases), []).append(run.label)
    return [f"{', '.join(runs)}: {phrases}" for phrases, runs in unlike.items()]


def costs(runs: Sequence[Run]) -> dict[str, float | None]:
    """Returns the medians of an arm's costs, None for what was not measured."""
    medians: dict[str, float | None] = {}
    for key, _, read in COSTS:
        values = [value for run in runs if (value := read(run)) is not None]
        medians[key] = float(np.median(values)) if values else None
    return medians


def collapse(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns Spearman's ρ of each collapse measure of the last layer against the validation loss, for each task."""
    entries = []
    for group in dict.fromkeys(run.group for run in runs):
        measured = [
            (run, run_results.in_last_layer(run), value)
            for run in runs
            if run.group == group and (value := QUANTITIES[0].of(run)) is not None
        ]
        for place in dict.fromkeys(place for _, measures, _ in measured for place in measures):
            points = [(measures[place], value, run) for run, measures, value in measured if place in measures]
            if len(points) >= 3:
                x, y, places = zip(*points, strict=True)
                names, seeds = [run.name for run in places], [run.seed for run in places]
                entry = {"group": group, "metric": place[0], "site": place[1]}
                entry |= dataclasses.asdict(statistics.spearman(x, y, names, seeds))
                entries.append({**entry, "points": [list(point) for point in zip(x, y, names, strict=True)]})
    return entries
