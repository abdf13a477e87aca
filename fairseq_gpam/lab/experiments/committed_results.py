"""The committed results: `examples/results/TASK.jsonl` holds one run in each line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments.records import Run

FOLDER = "examples/results"
EXPECTED = ("stock", "dagpam")
"""Rows that every table has, run or not."""


def read_task(task: str, repository: Path) -> list[Run]:
    """Returns the kept runs of a task in the order of their file, none if there is no such file."""
    path = repository / FOLDER / f"{task}.jsonl"
    return schema.read_json_lines(path, Run) if path.exists() else []


def order(name: str) -> tuple[int, str]:
    """Returns the sort key of an arm: stock first, then daGPAM, then by name."""
    return (EXPECTED.index(name), name) if name in EXPECTED else (len(EXPECTED), name)


def key(run: Run) -> tuple[Any, ...]:
    """Returns what identifies a run, in the order of the file."""
    return (*order(run.name), run.seed, run.group, run.replicate)
