"""Checkpoints of a run folder: whether they are intact, how many updates they have, and which one can be resumed."""

import argparse
import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from fairseq_gpam.checkpoints import CheckpointError, load
from fairseq_gpam.lab.recipes import stage_results

LAST = "checkpoint_last.pt"
TRAINING_STATE = re.compile(r"checkpoint(?:_best|\d+|_\d+_\d+)\.pt")
"""Names of the checkpoints that fairseq writes; an averaged one holds no training state."""


def saved_updates(path: Path) -> int:
    """Returns the number of updates after which a checkpoint was saved.

    Raises CheckpointError if it cannot be loaded or holds no training state.
    """
    try:
        return int(load(path)["optimizer_history"][-1]["num_updates"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no training state: its optimizer_history has no num_updates") from error


def repair_last(folder: Path) -> str | None:
    """Replaces a `checkpoint_last.pt` that is broken or missing by the newest intact checkpoint.

    fairseq writes one checkpoint atomically and copies it to the other names, last of all to `checkpoint_last.pt`; a
    kill during that copy leaves an incomplete file. The broken file is kept under another name. Returns a sentence that
    says what was done, or None if there was nothing to do.

    Raises CheckpointError if there is no intact one.
    """
    last = folder / LAST
    candidates = [path for path in folder.glob("checkpoint*.pt") if TRAINING_STATE.fullmatch(path.name)]
    reason = "is missing"
    if last.exists():
        try:
            saved_updates(last)
            return None
        except CheckpointError as error:
            reason = f"is broken ({error})"
    elif not candidates:
        return None
    intact = []
    for path in candidates:
        with contextlib.suppress(CheckpointError):
            intact.append((saved_updates(path), path.stat().st_mtime, path))
    if not intact:
        raise CheckpointError(
            f"{last} {reason} and there is no intact checkpoint beside it; to start afresh, remove {folder.parent}"
        )
    if last.exists():
        number = 1
        while (broken := folder / f"{LAST}.broken-{number}").exists():
            number += 1
        last.rename(broken)
    copy = folder / f"{LAST}.copy"
    updates, _, newest = max(intact)
    shutil.copyfile(newest, copy)
    copy.replace(last)
    return f"{LAST} {reason}; continuing from {newest.name}, update {updates}"


def write_config(checkpoint: Path, path: Path) -> None:
    """Writes fairseq's full configuration from the checkpoint, as JSON."""
    config = load(checkpoint)["cfg"]
    stage_results.write_atomically(path, json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else str(value)
