"""A run's `results.json`, to which each stage adds an entry when it ends."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fairseq_gpam.errors import read_text, writing_to
from fairseq_gpam.lab import schema

RESULTS = "results.json"


class Curve(msgspec.Struct, frozen=True):
    """[update, loss] of the validations and of the training; here and below, what has a default may be missing."""

    valid: list[tuple[int, float]]
    train: list[tuple[int, float]] = []


class Training(msgspec.Struct, frozen=True):
    """What a training records, as far as it is not checked as part of a `records.Run`.

    `seconds` are those of a training that one process ran from its first update to its last.
    """

    command: str
    curve: Curve
    valid_loss: float
    seconds: float | None = None


class Answered(msgspec.Struct, frozen=True):
    """How well the answers of one test set were predicted."""

    loss: float
    accuracy: float


class Scores(msgspec.Struct, frozen=True):
    """What scoring records, likewise."""

    answers: dict[str, Answered] = {}


class Evaluation(Scores, frozen=True, kw_only=True):
    """What a translation or the evaluation of a language model records, likewise."""

    command: str


class Results(msgspec.Struct, frozen=True, kw_only=True, rename={"eval_lm": "eval-lm"}):
    """The stages that have ended; a stage that has not is absent, never null."""

    train: Training | msgspec.UnsetType = msgspec.UNSET
    generate: Evaluation | msgspec.UnsetType = msgspec.UNSET
    eval_lm: Evaluation | msgspec.UnsetType = msgspec.UNSET
    score: Scores | msgspec.UnsetType = msgspec.UNSET


class Trained(Results, frozen=True, kw_only=True):
    """The stages of a run whose training has ended."""

    task: str
    name: str
    seed: int
    train: Training


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` always has either its old or its complete new content."""
    part = path.with_name(path.name + ".part")
    with writing_to(path), part.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def read(folder: Path) -> dict[str, Any]:
    """Returns the run's recorded results, empty if no stage has ended yet.

    Raises SchemaError with the file, what is wrong in it, and how to get it again.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        recorded = schema.read_json(path, dict[str, Any])
        schema.check(recorded, Results, str(path))
        return recorded
    except schema.SchemaError as error:
        raise schema.SchemaError(
            f"{error}. Remove the file and repeat the commands of the run: a finished training is not repeated"
        ) from error


def update(folder: Path, entries: dict[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """Adds `entries` to the run's `results.json`, removes those named in `without`, and returns all of it."""
    recorded = {name: entry for name, entry in {**read(folder), **entries}.items() if name not in without}
    write_atomically(folder / RESULTS, json.dumps(recorded, indent=2) + "\n")
    return recorded


def read_command(path: Path) -> list[str]:
    """Returns the words of a stage's command line; raises SchemaError if the file is damaged."""
    try:
        return shlex.split(read_text(path))
    except ValueError as error:
        afresh = f"to start afresh: rm -r {shlex.quote(str(path.parent))}"
        raise schema.SchemaError(f"{path} is damaged ({error}); {afresh}") from error
