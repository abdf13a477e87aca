"""Checkpoints of a run folder: whether they are intact, how many updates they have, and which one can be resumed."""

from __future__ import annotations

import pickle
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

import fairseq_gpam  # noqa: F401  (allows what fairseq's checkpoints hold to be loaded)

LAST = "checkpoint_last.pt"
TRAINING_STATE = re.compile(r"checkpoint(?:_best|\d+|_\d+_\d+)\.pt")
"""Names of the checkpoints that fairseq writes; an averaged one holds no training state."""


class CheckpointError(RuntimeError):
    """A checkpoint is broken; the message says which and how."""


def load(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's content after verifying the checksum of each part of the file (the zip's CRCs).

    Raises CheckpointError if it is missing, broken, or not a checkpoint of fairseq.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"model", "optimizer_history"} <= state.keys():
            raise CheckpointError(f"{path} is not a checkpoint of fairseq")
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (RuntimeError, ValueError, AttributeError, KeyError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be loaded as a checkpoint: {error}".splitlines()[0]) from error
    return state


def saved_updates(state: dict[str, Any]) -> int:
    """Returns the number of updates after which a checkpoint was saved."""
    return int(state["optimizer_history"][-1]["num_updates"])


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
            load(last)
            return None
        except CheckpointError as error:
            reason = f"is broken ({error})"
    elif not candidates:
        return None
    newest: tuple[int, float, Path] | None = None
    for path in candidates:
        try:
            found = (saved_updates(load(path)), path.stat().st_mtime, path)
        except CheckpointError:
            continue
        newest = max(newest, found) if newest else found
    if newest is None:
        raise CheckpointError(
            f"{last} {reason} and there is no intact checkpoint beside it; to start afresh, remove {folder.parent}"
        )
    if last.exists():
        number = 1
        while (kept := folder / f"{LAST}.broken-{number}").exists():
            number += 1
        last.rename(kept)
    copy = folder / f"{LAST}.copy"
    shutil.copyfile(newest[2], copy)
    copy.replace(last)
    return f"{LAST} {reason}; continuing from {newest[2].name}, update {newest[0]}"
