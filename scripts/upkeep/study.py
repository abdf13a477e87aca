"""A study's comparison inside a page, made from its grid file and the kept results alone.

The grid file, examples/studies/STUDY/grid.toml, says which arms, tasks and seeds belong to the study and which arm is
the baseline. A kept run counts if its command line is the one that the grid would run today; what is not there, or does
not count, is named.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keep
from fairseq_gpam.analysis import embed
from fairseq_gpam.lab.experiments import compare, contrasts, grid, sections, series, tables
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.sections import Section
from fairseq_gpam.lab.recipes import run_folder, stages
from fairseq_gpam.lab.recipes import tasks as recipes


class ChoiceError(ValueError):
    """A marker chooses what a study does not have; the message says what is allowed."""


FOLDER = "examples/studies"
PICTURES = (".forest.svg", ".layers.svg", ".collapse.svg", ".cells.svg")
PARTS = ("table", "picture", "costs", "lambdas", "collapse", "notes")
"""What a section shows unless it chooses, in this order; the measures of collapse by layer must be chosen."""
ALL_PARTS = (*PARTS[:4], "layers", *PARTS[4:])


def command(run: stages.RunSettings) -> list[str]:
    """Returns the command line of a run's training, with paths as kept runs have them."""
    return stages.train_command(replace(run, out=Path("out")))


def differences(kept: Run, run: stages.RunSettings) -> list[str]:
    """Returns a phrase for each flag in which a kept run's training differs from that of the grid's run."""
    return run_folder.differing_flags(shlex.split(kept.training.command), command(run))


def image(words: str, path: Path, page: Path) -> str:
    """Returns the Markdown that shows a picture in a page."""
    return f"![{words}]({os.path.relpath(path, page.parent).replace(os.sep, '/')})"


@dataclass(frozen=True)
class Group:
    """The runs of one task (and learning rate) of a study that count, by arm, and what is said about the others."""

    title: str
    file: str
    recipe: recipes.Task
    by_arm: dict[str, list[Run]]
    remarks: tuple[str, ...]

    @property
    def counted(self) -> list[Run]:
        return [run for runs in self.by_arm.values() for run in runs]


def groups(chosen: grid.Grid, repository: Path) -> Iterator[Group]:
    """Yields the groups of a study, the baseline first among their arms."""
    for (task, rate), arms in chosen.groups().items():
        kept = keep.read_task(task, repository)
        there = {(run.name, run.seed): run for run in kept if run.replicate == 1}
        by_arm: dict[str, list[Run]] = {}
        missing: dict[str, list[int]] = {}
        others = []
        for arm in sorted(arms, key=lambda arm: arm != chosen.baseline):
            counted, absent = by_arm.setdefault(arm, []), missing.setdefault(arm, [])
            for run in arms[arm]:
                run_there = there.get((run.name, run.seed))
                if run_there is None:
                    absent.append(run.seed)
                elif phrases := differences(run_there, run):
                    others.append(f"{run_there.label}: {'; '.join(phrases)}")
                else:
                    counted.append(run_there)
        remarks = compare.not_run(missing, chosen.seeds)
        if others:
            remarks.append(f"Not counted, because their command line is not the grid's: {'. '.join(others)}.")
        names = {run.name for runs in arms.values() for run in runs}
        remarks += compare.not_counted([run for run in kept if run.name in names])
        file = task if rate is None else f"{task}_lr{stages.rate_text(rate)}"
        yield Group(compare.title(task, rate), file, recipes.of_runs(task), by_arm, tuple(remarks))


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
    choices = (("tasks", tasks, chosen.tasks), ("measures", measures, known), ("show", show, ALL_PARTS))
    for option, given, allowed in choices:
        unknown = [word for word in given if word not in allowed]
        if unknown:
            raise ChoiceError(f"{option} has {unknown[0]!r}; allowed: {', '.join(allowed)}")
    parts: list[str] = []
    pictures: dict[Path, str] = {}
    for group in groups(chosen, repository):
        if tasks and group.recipe.name not in tasks:
            continue
        for file, shown in sections_of(group, chosen, measures or known, show):
            parts += [f"**{shown.title}**"] if shown.title else []
            if shown.picture:
                path = folder / f"{file}{shown.picture.suffix}"
                pictures[path] = embed.svg(shown.picture.draw(), path.name)
                parts.append(image(shown.picture.words, path, repository / page))
            parts += [sections.markdown_table(shown.head, shown.rows)] if shown.head else []
            parts += [shown.note] if shown.note else []
        if "notes" in show:
            parts += group.remarks
            parts += ["\n".join(f"- {note}" for note in notes)] if (notes := tables.footnotes(group.counted)) else []
    return "\n\n".join(parts), pictures


def sections_of(
    group: Group, chosen: grid.Grid, measures: Sequence[str], show: Sequence[str]
) -> Iterator[tuple[str, Section]]:
    """Yields the chosen sections of a group, with the beginning of the names of their pictures; computes no others."""
    arms, baseline = [arm for arm, runs in group.by_arm.items() if runs], chosen.baseline
    for quantity in compare.QUANTITIES if {"table", "picture"} & set(show) else ():
        if quantity.key in measures and quantity.belongs_to(group.recipe):
            delta, planned = compare.DELTAS[quantity.unit], len(group.by_arm) - 1
            table = compare.table(group.title, group.by_arm, baseline, quantity, delta, planned)
            if table is None:
                title = f"{group.title}: {quantity.label} ({quantity.unit})"
                yield "", Section(title, note=f"There is no run of the baseline `{baseline}`, too few seeds.")
                continue
            if chosen.primary:
                primary = contrasts.section(group.title, group.by_arm, chosen, quantity, delta)
                if primary is not None and "table" in show:
                    yield "", primary
                table = contrasts.exploratory(table)
            order = [row["arm"] for row in table["rows"]] if chosen.primary else []
            section = sections.of_table(table, baseline, [*order, *(arm for arm in arms if arm not in order)])
            picture = section.picture if "picture" in show else None
            shown = replace(section, picture=picture) if "table" in show else Section("", picture=picture)
            yield f"{group.file}.{quantity.key}", shown

    def by_arm(of: Callable[[list[Run]], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [{"arm": arm, **entry} for arm in arms for entry in of(group.by_arm[arm])]

    shown_parts: dict[str, Callable[[], list[Section]]] = {
        "costs": lambda: sections.of_costs(group.title, by_arm(lambda runs: [compare.costs(runs)])),
        "lambdas": lambda: sections.of_lambdas(group.title, by_arm(series.mean_lambdas)),
        "layers": lambda: sections.of_layers(group.title, by_arm(series.by_layer)),
        "collapse": lambda: sections.of_collapse(group.title, compare.collapse(group.counted)),
    }
    for part, build in shown_parts.items():
        yield from ((group.file, section) for section in (build() if part in show else ()))
