"""The results that are committed, one line a run, and the tables that are made from them.

``examples/results/TASK.jsonl`` holds one JSON object a run. A table stands in README.md or a page of examples/ between
the lines ``<!-- results: TASK -->`` and ``<!-- /results -->``; its rows are the published numbers of
``examples/results/published.json`` and the runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_gpam.experiments import results

EXPECTED = ("stock", "dagpam")
"""Rows that every table has, run or not."""
PUBLISHED = "published.json"

_MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
_USER_DIR = re.compile(r"(--user-dir )[^\s\"]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*")


def kind_of(task: str) -> str:
    """Return the kind of a task's table; a language model's folder ends in ``-lm``."""
    name = task.removesuffix("-full").split(".")[0]
    if not name.endswith("-lm"):
        return "translation"
    return "characters" if name.startswith("enwik8") else "words"


def kept_line(run: Path) -> dict[str, Any]:
    """Returns what is kept of a run that lies in ``OUT/runs/TASK/NAME/SEED``.

    Paths of the machine are made relative to the output folder ``out``; of the curves, the validation curve stays.
    Raises ``FileNotFoundError`` if the training has not ended, ``ValueError`` if a path of the machine remains.
    """
    run = run.resolve()
    recorded = results.read(run)
    if "train" not in recorded:
        raise FileNotFoundError(f"{run} holds no results of a finished training")
    recorded["task"] = run.parents[1].name
    recorded["train"].get("curve", {}).pop("train", None)
    text = json.dumps(recorded, ensure_ascii=False).replace(str(run.parents[3]), "out")
    text = _USER_DIR.sub(r"\1fairseq_gpam", text)
    remaining = _ABSOLUTE.search(text)
    if remaining:
        raise ValueError(f"{run}/results.json holds a path of this machine: {remaining[0]}")
    return json.loads(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the runs of one ``.jsonl`` file, none if there is no such file.

    Raises ``ValueError`` that names file and line where a line is not a run.
    """
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), start=1):
        try:
            run = json.loads(line)
            _key(run)
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a run with task, name and seed ({error!r})") from error
        runs.append(run)
    return runs


def _key(run: dict[str, Any]) -> tuple[int, str, str, str]:
    return (*_order(run["name"]), str(run["seed"]).zfill(9), run["task"])


def keep(runs: Sequence[Path], repository: Path) -> list[Path]:
    """Adds runs to ``examples/results``, in the place of earlier lines of the same task, name and seed.

    The lines stand in a fixed order, so that keeping a run again changes nothing. Returns the files written.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        line = kept_line(run)
        by_task.setdefault(line["task"], []).append(line)
    paths = []
    for task, lines in by_task.items():
        path = repository / "examples/results" / f"{task}.jsonl"
        kept = {_key(run): run for run in (*read_lines(path), *lines)}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(kept[key], ensure_ascii=False) + "\n" for key in sorted(kept))
        results.write_atomically(path, text)
        paths.append(path)
    return paths


def rows(task: str, repository: Path) -> list[dict[str, Any]]:
    """Return a table's rows: published numbers, then our runs, then what was not run."""
    folder = repository / "examples/results"
    published = json.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    shown = [
        {**row, "name": f"{row['name']}, published: {row['source']}", "seed": "–", "published": True}
        for row in published
        if row["task"] == task
    ]
    runs = read_lines(folder / f"{task}.jsonl")
    names = {run["name"] for run in runs}
    runs += [{"name": name, "seed": "–"} for name in EXPECTED if name not in names]
    return shown + sorted(runs, key=lambda run: (*_order(run["name"]), str(run["seed"]).zfill(9)))


def _order(name: str) -> tuple[int, str]:
    return (EXPECTED.index(name), name) if name in EXPECTED else (len(EXPECTED), name)


def rebuilt(text: str, repository: Path) -> str:
    """Return a page's text with every marked table made anew."""

    def fresh(match: re.Match[str]) -> str:
        table = results.table(rows(match[2], repository), kind_of(match[2]))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    return _MARKED.sub(fresh, text)


def rebuild(repository: Path, write: bool = True) -> list[Path]:
    """Rebuild the tables of README.md and of all pages under examples/; return the pages that changed."""
    changed = []
    for path in (repository / "README.md", *sorted((repository / "examples").rglob("*.md"))):
        old = path.read_text(encoding="utf-8")
        new = rebuilt(old, repository)
        if new != old:
            changed.append(path)
            if write:
                results.write_atomically(path, new)
    return changed
