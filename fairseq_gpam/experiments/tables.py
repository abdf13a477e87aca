"""The results tables of README.md and examples/, kept by the results that are committed.

A table stands between the lines ``<!-- results: TASK -->`` and ``<!-- /results -->``; its rows are
the published numbers of ``examples/results/published.json`` and the runs in ``examples/results``.
"""

from __future__ import annotations

import json
import re
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


def keep(run: Path, repository: Path) -> Path:
    """Copy a run's results to ``examples/results`` and return the file.

    Paths of the machine are made relative to the output folder ``out``, curves are left out. The run
    lies in ``OUT/runs/TASK/NAME/SEED``. Raises ``ValueError`` if another path remains.
    """
    run = run.resolve()
    recorded = results.read(run)
    if "train" not in recorded:
        raise FileNotFoundError(f"{run} holds no results of a finished training")
    recorded["task"] = run.parents[1].name
    recorded["train"].pop("curve", None)
    text = _USER_DIR.sub(r"\1fairseq_gpam", json.dumps(recorded, indent=2).replace(str(run.parents[3]), "out"))
    remaining = _ABSOLUTE.search(text)
    if remaining:
        raise ValueError(f"{run}/results.json holds a path of this machine: {remaining[0]}")
    path = repository / "examples/results" / f"{recorded['task']}.{recorded['name']}.{recorded['seed']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_atomically(path, text + "\n")
    return path


def rows(task: str, repository: Path) -> list[dict[str, Any]]:
    """Return a table's rows: published numbers, then our runs, then what was not run."""
    folder = repository / "examples/results"
    published = json.loads((folder / PUBLISHED).read_text(encoding="utf-8"))
    shown = [
        {**row, "name": f"{row['name']}, published: {row['source']}", "seed": "–", "published": True}
        for row in published
        if row["task"] == task
    ]
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json") if path.name != PUBLISHED]
    runs = [run for run in runs if run["task"] == task]
    names = {run["name"] for run in runs}
    runs += [{"name": name, "seed": "–"} for name in EXPECTED if name not in names]
    return shown + sorted(runs, key=lambda run: (*_order(run["name"]), str(run["seed"])))


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
