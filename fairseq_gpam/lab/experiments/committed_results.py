"""The committed results: `examples/results/TASK.jsonl` holds one JSON object for each run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.experiments import run_results
from fairseq_gpam.lab.recipes import stage_results

EXPECTED = ("stock", "dagpam")
"""Rows that every table has, run or not."""
PUBLISHED = "published.json"
SPEEDS = {"seconds", "tokens_per_second"}

_USER_DIR = re.compile(r"(--user-dir )[^\s\"]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*")


def kept_line(run: Path, without_speeds: str = "") -> dict[str, Any]:
    """Returns the results to keep of a run in `OUT/runs/TASK/NAME/SEED`.

    Paths are made relative to the output folder `out`; of the curves only the validation curve is kept, of λ over
    training its last value. `without_speeds` is a reason to leave out speeds and times, and is kept as a note; the peak
    memory, which does not depend on other work on the machine, is kept. Raises `FileNotFoundError` if the training has
    not ended, `ValueError` if an absolute path remains.
    """
    run = run.resolve()
    found = run_results.read(run)
    if "lambdas" in found:
        found["lambdas"] = {name: points[-1:] for name, points in found["lambdas"].items()}
    for measure, value in found.get("collapse", {}).items():
        found["collapse"][measure] = float(f"{value:.6g}")
    for points in found.get("by_layer", {}).values():
        points[:] = [[layer, float(f"{value:.4g}")] for layer, value in points]
    found["train"].get("curve", {}).pop("train", None)
    if without_speeds:
        found["note"] = f"speeds are left out: {without_speeds}"
        for stage in found.values():
            if isinstance(stage, dict):
                stage |= dict.fromkeys(SPEEDS & stage.keys())
    text = json.dumps(found, ensure_ascii=False).replace(str(run.parents[3]), "out")
    text = _USER_DIR.sub(r"\1fairseq_gpam", text)
    remaining = _ABSOLUTE.search(text)
    if remaining:
        raise ValueError(f"{run}/results.json holds a path of this machine: {remaining[0]}")
    return json.loads(text)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the runs of one `.jsonl` file, none if there is no such file.

    Raises `ValueError` with file and line number if a line is not a run.
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
    return (*order(run["name"]), str(run["seed"]).zfill(9), run["task"])


def keep(runs: Sequence[Path], repository: Path, without_speeds: str = "") -> list[Path]:
    """Adds runs to `examples/results`, replacing earlier lines of the same task, name and seed.

    The lines have a fixed order, so that keeping a run again changes nothing. Returns the files written.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        line = kept_line(run, without_speeds)
        by_task.setdefault(line["task"], []).append(line)
    return [write(task, lines, repository) for task, lines in by_task.items()]


def write(task: str, lines: Sequence[dict[str, Any]], repository: Path) -> Path:
    """Adds kept runs of one task to the task's file; returns the file."""
    path = repository / "examples/results" / f"{task}.jsonl"
    kept = {_key(run): run for run in (*read_lines(path), *lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(kept[key], ensure_ascii=False) + "\n" for key in sorted(kept))
    stage_results.write_atomically(path, text)
    return path


def published(task: str, repository: Path) -> list[dict[str, Any]]:
    """Returns the published numbers of a task, with their source in the name."""
    rows = json.loads((repository / "examples/results" / PUBLISHED).read_text(encoding="utf-8"))
    return [
        {**row, "name": f"{row['name']}, published: {row['source']}", "seed": "–", "published": True}
        for row in rows
        if row["task"] == task
    ]


def read_task(task: str, repository: Path) -> list[dict[str, Any]]:
    """Returns the kept runs of a task in the order of their file."""
    return read_lines(repository / "examples/results" / f"{task}.jsonl")


def order(name: str) -> tuple[int, str]:
    """Returns the sort key of an arm: stock first, then daGPAM, then by name."""
    return (EXPECTED.index(name), name) if name in EXPECTED else (len(EXPECTED), name)
