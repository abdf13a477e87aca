"""A run's `results.json`, to which each stage adds an entry when it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` always has either its old or its complete new content."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def read(folder: Path) -> dict[str, Any]:
    """Returns the run's recorded results, empty if no stage has ended yet."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def update(folder: Path, entries: dict[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """Adds `entries` to the run's `results.json`, removes those named in `without`, and returns all of it."""
    recorded = {name: entry for name, entry in {**read(folder), **entries}.items() if name not in without}
    write_atomically(folder / "results.json", json.dumps(recorded, indent=2) + "\n")
    return recorded
