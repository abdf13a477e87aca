"""The dictionaries with which a run was trained: the numbers of words that its model knows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.recipes import stage_results

SUMS = "dictionaries.json"


def record(folder: Path, command: Sequence[str]) -> None:
    """Writes the sums of the dictionaries of a training's data into the run's folder."""
    stage_results.write_atomically(folder / SUMS, json.dumps(_sums(_data(command)), indent=1) + "\n")


def changed(folder: Path, command: Sequence[str]) -> Path | None:
    """Returns a dictionary of the command's data that is not the one of the run's training, if there is one.

    Runs of former versions have no sums, and a dictionary that is not there is the engine's to name. Raises
    SchemaError if the sums cannot be read.
    """
    if not (folder / SUMS).exists():
        return None
    data = _data(command)
    there = _sums(data)
    known = schema.read_json(folder / SUMS, dict[str, str])
    return next((data / name for name, value in known.items() if there.get(name, value) != value), None)


def _data(command: Sequence[str]) -> Path:
    return Path(command[1].partition(":")[0]) if len(command) > 1 else Path()


def _sums(data: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(data.glob("dict.*txt"))}
