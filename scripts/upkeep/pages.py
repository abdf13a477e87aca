"""Rebuilds the tables in Markdown pages from examples/results: `python scripts/upkeep/pages.py`.

A table is between two marker lines of README.md or of a page under examples/; docs/testing.md lists the markers.
"""

import argparse
import logging
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import card_pages
import keep
import study
from fairseq_gpam.analysis import drawing, embed
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import grid, synthetic_studies, tables
from fairseq_gpam.lab.recipes import stage_results
from fairseq_gpam.lab.recipes import tasks as recipes
from fairseq_gpam.lab.schema import SchemaError

MARKER = re.compile(r"<!-- (\w+): (\S+)((?: \S+)*) -->")


class MarkerError(ValueError):
    """A marker in a page is wrong; the message names the page, the marker and what is allowed."""


def names(text: str) -> tuple[str, ...]:
    """Returns the names in a list such as `stock,dagpam`; raises `ValueError` with what is allowed."""
    chosen = tuple(text.split(","))
    if len(set(chosen)) != len(chosen) or not all(map(grid.NAME.fullmatch, chosen)):
        raise ValueError("different names of arms, separated by commas without spaces")
    return chosen


def words(text: str) -> tuple[str, ...]:
    """Returns the words in a list such as `valid-loss,bleu`; the caller checks which are allowed."""
    return tuple(text.split(","))


def seeds(text: str) -> tuple[int, ...]:
    """Returns the seeds in a list such as `1,2`; raises `ValueError` with what is allowed."""
    chosen = text.split(",")
    if len(set(chosen)) != len(chosen) or not all(re.fullmatch("[0-9]+", seed) for seed in chosen):
        raise ValueError("different whole numbers, separated by commas without spaces")
    return tuple(map(int, chosen))


class Published(schema.Strict, frozen=True, kw_only=True):
    """A published result: its values, as text, by the keys of the tables' columns."""

    task: str
    name: str
    source: str
    values: dict[str, str]


@dataclass(frozen=True)
class Kind:
    """A kind of marker: its options, each with its parser, and the function that makes the text between the markers.

    `make` takes the marker's NAME, the page and the repository, and returns the text and its pictures by file.
    """

    options: dict[str, Callable[[str], Any]]
    make: Callable[..., tuple[str, dict[Path, str]]]


def published(task: str, repository: Path) -> list[tables.Row]:
    """Returns the published numbers of a task, with their source in the name."""
    entries = schema.read_json(repository / keep.FOLDER / "published.json", list[Published])
    return [
        tables.Row(f"{entry.name}, published: {entry.source}", "–", published=entry.values)
        for entry in entries
        if entry.task == task
    ]


def rows(task: str, repository: Path, names: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> list[tables.Row]:
    """Returns a table's rows: published numbers, then our runs, with a placeholder for each run that was not made."""
    runs = sorted(keep.read_task(task, repository), key=keep.key)
    shown = published(task, repository)
    known = {*keep.EXPECTED, *(run.name for run in runs)}
    for name in names or sorted(known, key=keep.order):
        of_name = [run for run in runs if run.name == name and (not seeds or run.seed in seeds)]
        lines = [(run.seed, tables.row_of(run)) for run in of_name]
        if names or name in keep.EXPECTED:
            missing = {*seeds} - {run.seed for run in of_name}
            lines += [(seed, tables.Row(name, str(seed))) for seed in missing]
            lines = lines or [(0, tables.Row(name, "–"))]
        shown += [row for _, row in sorted(lines, key=lambda line: line[0])]
    return shown


def results_table(task: str, page: Path, repository: Path, **chosen: Any) -> tuple[str, dict[Path, str]]:
    """Returns the table of a marker `results`, which has no pictures."""
    return tables.table(rows(task, repository, **chosen), recipes.of_runs(task).result_kind), {}


def synthetic_table(
    name: str, page: Path, repository: Path, rows: str, columns: str, value: str, show: tuple[str, ...] = ("table",)
) -> tuple[str, dict[Path, str]]:
    """Returns the table of a marker `study`: the mean of `value` over the seeds, and its range, in each cell.

    A picture has the same cells, one below the other.
    """
    from tabulate import tabulate

    results = synthetic_studies.read_results(repository / study.FOLDER / name)
    names, heads = (list(dict.fromkeys(result[key] for result in results)) for key in (rows, columns))
    cells: dict[tuple[Any, Any], list[Any]] = {}
    for result in results:
        cells.setdefault((result[rows], result[columns]), []).append(result[value])

    def cell(row: Any, column: Any) -> str:
        values = cells.get((row, column))
        if not values:
            return "not run"
        mean = f"{statistics.mean(values):.3g}"
        return f"{values[0]:,}" if len(set(values)) == 1 else f"{mean} ({min(values):.3g}–{max(values):.3g})"

    if not {*show} <= {"table", "picture"}:
        raise study.ChoiceError(f"show has {','.join(show)!r}; allowed: table, picture")
    parts, pictures = [], {}
    if "picture" in show:
        effects = []
        for (row, column), values in cells.items():
            named = ((rows, row), (columns, column))
            label = ", ".join(at if isinstance(at, str) else f"{axis} {at}" for axis, at in named)
            ends = min(values), max(values)
            effects.append(drawing.Effect(label, statistics.mean(values), ends, cell(row, column)))
        what = f"{value.replace('_', ' ')}, mean and range over the seeds"
        path = repository / study.FOLDER / name / f"{value}.cells.svg"
        pictures[path] = embed.svg(drawing.forest(effects, what, "", sides=("lower", "higher")), path.name)
        said = "; ".join(f"{effect.label}: {effect.text}" for effect in effects)
        parts.append(study.image(f"{what}. {said}.", path, repository / page))
    if "table" in show:
        parts.append(
            tabulate(
                [[name, *(cell(name, head) for head in heads)] for name in names],
                headers=[f"{rows} \\ {columns}", *map(str, heads)],
                tablefmt="github",
                colalign=["left"] + ["right"] * len(heads),
                disable_numparse=True,
            )
        )
    return "\n\n".join(parts), pictures


KINDS = {
    "results": Kind({"names": names, "seeds": seeds}, results_table),
    "comparison": Kind({"tasks": words, "measures": words, "show": words}, study.section),
    "cards": Kind({}, card_pages.table),
    "study": Kind({"rows": str, "columns": str, "value": str, "show": words}, synthetic_table),
}
ALLOWED = "; ".join(
    f"<!-- {name}: NAME {' '.join(f'{option}=…' for option in kind.options)} --> … <!-- /{name} -->"
    for name, kind in KINDS.items()
)
_KINDS = "|".join(KINDS)
LIKE_A_MARKER = re.compile(rf"^<!--\s*/?(?:{_KINDS})\b.*$", re.MULTILINE)
BLOCK = re.compile(
    rf"^(?P<marker><!-- (?P<kind>{_KINDS}): [^\n]*-->)\n(?P<inside>.*?)^(?P<end><!-- /(?P=kind) -->)$",
    re.MULTILINE | re.DOTALL,
)


def made(marker: str, page: Path, repository: Path) -> tuple[str, dict[Path, str]]:
    """Returns the text that belongs below a marker, and the pictures that it shows, by file.

    Raises `MarkerError` if it is not a marker, or if an option or the task is not known.
    """
    parts = MARKER.fullmatch(marker)
    if not parts:
        raise MarkerError(f"{page}: {marker}: not a marker; allowed: {ALLOWED}")
    kind = KINDS[parts[1]]
    chosen: dict[str, Any] = {}
    for word in parts[3].split():
        key, _, value = word.partition("=")
        if key not in kind.options or key in chosen:
            allowed = ", ".join(f"{name}=…" for name in kind.options)
            raise MarkerError(f"{page}: {marker}: {word!r} is unknown or given twice; allowed: {allowed}")
        try:
            chosen[key] = kind.options[key](value)
        except ValueError as error:
            raise MarkerError(f"{page}: {marker}: {key} is {value!r}; allowed: {error}") from error
    try:
        return kind.make(parts[2], page, repository, **chosen)
    except (recipes.TaskError, SchemaError, study.ChoiceError) as error:
        raise MarkerError(f"{page}: {marker}: {error}") from error


def rebuilt(text: str, page: Path, repository: Path) -> tuple[str, dict[Path, str]]:
    """Returns a page's text with everything between markers rebuilt, and the pictures that it shows, by file.

    Raises `MarkerError` as `made` does, and for a marker without its end.
    """
    pictures: dict[Path, str] = {}

    def fresh(block: re.Match[str]) -> str:
        inner = LIKE_A_MARKER.search(block["inside"])
        if inner:
            raise MarkerError(f"{page}: {block['marker']}: allowed: <!-- /{block['kind']} --> before {inner[0]}")
        inside, shown = made(block["marker"], page, repository)
        pictures.update(shown)
        return f"{block['marker']}\n\n{inside}\n\n{block['end']}"

    alone = LIKE_A_MARKER.search(BLOCK.sub("", text))
    if alone:
        raise MarkerError(f"{page}: {alone[0]}: not a marker with its end; allowed: {ALLOWED}")
    return BLOCK.sub(fresh, text), pictures


def rebuild(repository: Path, write: bool = True) -> list[Path]:
    """Rebuilds the tables of README.md and of all pages under examples/, and the pictures of studies.

    A study's picture that no page shows is removed. Returns the files that changed; unless they are written, a picture
    counts only if it is missing, because its bytes depend on the version of matplotlib.
    """
    files: dict[Path, str] = {}
    for path in (repository / "README.md", *sorted((repository / "examples").rglob("*.md"))):
        files[path], pictures = rebuilt(path.read_text(encoding="utf-8"), path.relative_to(repository), repository)
        files |= pictures
    changed = [
        path
        for path, text in files.items()
        if not path.exists() or ((write or path.suffix != ".svg") and path.read_text(encoding="utf-8") != text)
    ]
    pictures_there = {path for suffix in study.PICTURES for path in (repository / study.FOLDER).glob(f"*/*{suffix}")}
    unused = sorted(pictures_there - files.keys())
    if write:
        for path in changed:
            stage_results.write_atomically(path, files[path])
        for path in unused:
            path.unlink()
    return [*changed, *unused]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rebuilds the tables of README.md and of the pages under examples/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    parser.add_argument("--repository", type=Path, default=Path())
    arguments = parser.parse_args(words)
    # Some of fairseq's modules set the root logger to DEBUG when imported.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        changed = rebuild(arguments.repository, write=not arguments.check)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    for path in changed:
        print(f"out of date: {path}" if arguments.check else path)
    if arguments.check and changed:
        sys.exit("run: python scripts/upkeep/pages.py")


if __name__ == "__main__":
    main()
