"""The committed results: `examples/results/TASK.jsonl` holds one JSON object for each run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXPECTED = ("stock", "dagpam")
"""Rows that every table has, run or not."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the runs of one `.jsonl` file, none if there is no such file.

    Raises `ValueError` with file and line number if a line is not a run.
    """
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), start=1):
        try:
            run = json.loads(line)
            key(run)
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a run with task, name and seed ({error!r})") from error
        runs.append(run)
    return runs


def key(run: dict[str, Any]) -> tuple[int, str, str, str]:
    return (*order(run["name"]), str(run["seed"]).zfill(9), run["task"])


def read_task(task: str, repository: Path) -> list[dict[str, Any]]:
    """Returns the kept runs of a task in the order of their file."""
    return read_lines(repository / "examples/results" / f"{task}.jsonl")


def order(name: str) -> tuple[int, str]:
    """Returns the sort key of an arm: stock first, then daGPAM, then by name."""
    return (EXPECTED.index(name), name) if name in EXPECTED else (len(EXPECTED), name)
