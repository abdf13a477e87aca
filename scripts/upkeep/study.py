"""A study's comparison inside a page, made from its grid file and the kept results alone.

The grid file, examples/studies/STUDY/grid.toml, says which arms, tasks and seeds belong to the study and which arm is
the baseline. A kept run counts if its command line is the one that the grid would run today; what is not there, or does
not count, is named.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fairseq_gpam.analysis import embed
from fairseq_gpam.lab.experiments import (
    collapse_report,
    committed_results,
    compare,
    comparison_report,
    grid,
    plots,
    run_results,
    series,
    tables,
)
from fairseq_gpam.lab.recipes import run_folder, stages
from fairseq_gpam.lab.recipes import tasks as recipes


class ChoiceError(ValueError):
    """A marker chooses what a study does not have; the message says what is allowed."""


FOLDER = "examples/studies"
PICTURES = FOREST, LAYERS, SCATTER = (".forest.svg", ".layers.svg", ".collapse.svg")
PARTS = ("table", "picture", "costs", "lambdas", "collapse", "notes")
"""What a section shows unless it chooses, in this order; the measures of collapse by layer must be chosen."""
ALL_PARTS = (*PARTS[:4], "layers", *PARTS[4:])


def command(run: grid.GridRun) -> list[str]:
    """Returns the command line of a run's training, with paths as kept runs have them."""
    return stages.train_command(replace(run.settings, out=Path("out")))


def differences(there: dict[str, Any], run: grid.GridRun) -> list[str]:
    """Returns a phrase for each flag in which a kept run's training differs from that of the grid's run."""
    return run_folder.differing_flags(shlex.split(there["train"]["command"]), command(run))


@dataclass(frozen=True)
class Group:
    """The runs of one task (and learning rate) of a study that count, by arm, and what is said about the others."""

    title: str
    task: str
    file: str
    kind: str
    by_arm: dict[str, list[dict[str, Any]]]
    remarks: tuple[str, ...]

    @property
    def counted(self) -> list[dict[str, Any]]:
        return [run for own in self.by_arm.values() for run in own]


def groups(chosen: grid.Grid, repository: Path) -> Iterator[Group]:
    """Yields the groups of a study, the baseline first among their arms."""
    for (task, rate), arms in chosen.groups().items():
        there = {(one["name"], one["seed"]): one for one in committed_results.read_task(task, repository)}
        by_arm: dict[str, list[dict[str, Any]]] = {}
        missing: dict[str, list[int]] = {}
        others = []
        for arm in sorted(arms, key=lambda arm: arm != chosen.baseline):
            counted, absent = by_arm.setdefault(arm, []), missing.setdefault(arm, [])
            for run in arms[arm]:
                seed = run.settings.seed
                found = there.get((run.settings.name, seed))
                if found is None:
                    absent.append(seed)
                elif phrases := differences(found, run):
                    others.append(f"{arm} seed {seed}: {'; '.join(phrases)}")
                else:
                    counted.append(found)
        remarks = compare.not_run(missing, chosen.seeds)
        if others:
            remarks.append(f"Not counted, because their command line is not the grid's: {'. '.join(others)}.")
        title = compare.title(task, rate)
        recipe = recipes.of_runs(task)
        file = task if rate is None else f"{task}_lr{stages.rate_text(rate)}"
        yield Group(title, recipe.name, file, recipe.result_kind, by_arm, tuple(remarks))


def section(
    name: str,
    page: Path,
    repository: Path,
    tasks: tuple[str, ...] = (),
    measures: tuple[str, ...] = (),
    show: tuple[str, ...] = PARTS,
) -> tuple[str, dict[Path, str]]:
    """Returns what stands below a marker of the study in `page`, and the pictures that it shows, by file.

    Raises `ChoiceError` if the grid does not have a task, or there is no such measure or part.
    """
    folder = repository / FOLDER / name
    chosen = grid.load(folder / "grid.toml")
    known = [quantity.key for quantity in compare.QUANTITIES]
    for option, given, allowed in (
        ("tasks", tasks, chosen.tasks),
        ("measures", measures, known),
        ("show", show, ALL_PARTS),
    ):
        unknown = [one for one in given if one not in allowed]
        if unknown:
            raise ChoiceError(f"{option} has {unknown[0]!r}; allowed: {', '.join(allowed)}")
    parts: list[str] = []
    pictures: dict[Path, str] = {}

    def add_picture(file: str, figure: Figure, words: str) -> None:
        pictures[folder / file] = embed.svg(figure, file)
        address = os.path.relpath(folder / file, (repository / page).parent).replace(os.sep, "/")
        parts.append(f"![{words}]({address})")

    for group in groups(chosen, repository):
        if tasks and group.task not in tasks:
            continue
        for quantity in compare.QUANTITIES if {"table", "picture"} & set(show) else ():
            if (measures and quantity.key not in measures) or not quantity.measures(group.kind):
                continue
            delta = compare.DELTAS[quantity.unit]
            planned = len(group.by_arm) - 1
            table = compare.table(group.title, group.by_arm, chosen.baseline, quantity, delta, planned)
            if table is None:
                what = f"**{group.title}: {quantity.label} ({quantity.unit})**"
                parts.append(f"{what}: no run of the baseline `{chosen.baseline}`, too few seeds.")
                continue
            if "table" in show:
                parts += _table(table, group)
            if "picture" in show and any(row.get("difference") for row in table["rows"]):
                figure = comparison_report.forest_plot(table, chosen.baseline)
                words = comparison_report.forest_words(table, chosen.baseline)
                add_picture(f"{group.file}.{quantity.key}{FOREST}", figure, words)
        if "costs" in show:
            parts += _costs(group)
        if "lambdas" in show:
            parts += _lambdas(group)
        entries = _by_arm(group, series.by_layer)
        if "layers" in show and entries:
            title = f"{group.title}: {comparison_report.LAYERS}"
            note = collapse_report.layers_note(entries)
            parts += _titled(title, collapse_report.layers(entries), note)
            words = collapse_report.layers_words(title, entries)
            add_picture(group.file + LAYERS, plots.layers(title, entries), words)
        found = compare.collapse(group.counted)
        if "collapse" in show and found:
            title = f"{group.title}: {comparison_report.COLLAPSE}"
            parts += _titled(title, collapse_report.correlations(found), collapse_report.NOTE)
            words = collapse_report.correlation_words(title, found)
            add_picture(group.file + SCATTER, plots.correlation(title, found), words)
        if "notes" in show:
            parts += _notes(group)
    return "\n\n".join(parts), pictures


def _titled(title: str, table: collapse_report.Table, note: str) -> list[str]:
    return [f"**{title}**", comparison_report.markdown_table(*table).rstrip(), note]


def _by_arm(group: Group, of: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [{"arm": arm, **shown} for arm, own in group.by_arm.items() for shown in of(own)]


def _table(table: dict[str, Any], group: Group) -> list[str]:
    head, rows = comparison_report.head(table), {row[0]: row for row in comparison_report.cells(table)}
    empty = ["0", "not run", *["–"] * (len(head) - 3)]
    lines = [rows.get(arm, [arm, *empty]) for arm, own in group.by_arm.items() if own]
    text = comparison_report.markdown_table(head, lines).rstrip()
    return [f"**{comparison_report.caption(table)}**", text, comparison_report.table_note(table)]


def _costs(group: Group) -> list[str]:
    found = {arm: compare.costs(own) for arm, own in group.by_arm.items() if own}
    # The number of parameters stands in every table already.
    measured = [cost for cost in run_results.COSTS[1:] if any(own[cost[0]] is not None for own in found.values())]
    if not measured:
        return []
    rows = [[arm, *(comparison_report.cost(own[key]) for key, *_ in measured)] for arm, own in found.items()]
    head = ("arm", *(label for _, label, _ in measured))
    return _titled(f"{group.title}: costs", (head, rows), "Medians over the runs that were measured.")


def _lambdas(group: Group) -> list[str]:
    entries = _by_arm(group, series.mean_lambdas)
    if not entries:
        return []
    table = comparison_report.lambda_table(entries)
    return _titled(f"{group.title}: λ at the end of training", table, comparison_report.LAMBDA_NOTE)


def _notes(group: Group) -> list[str]:
    notes = "\n".join(f"- {note}" for note in tables.footnotes(group.counted))
    return [*group.remarks, *([notes] if notes else [])]
