"""Average the parameters of checkpoints of one run into a checkpoint that fairseq loads.

``python -m fairseq_gpam.experiments.averaging CHECKPOINT... --output FILE``, or ``... FOLDER --last
N --output FILE`` for the last N that a run kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fairseq_gpam  # noqa: F401  (allows what fairseq's checkpoints hold to be loaded)

BY_UPDATE = re.compile(r"checkpoint_\d+_(\d+)\.pt")
BY_EPOCH = re.compile(r"checkpoint(\d+)\.pt")


class AveragingError(ValueError):
    """The checkpoints asked for are not there, or are not of one model."""


def last_checkpoints(folder: Path, count: int) -> list[Path]:
    """Return the last ``count`` checkpoints saved by update, or by epoch if there are none, oldest first.

    Raises ``AveragingError`` if there are fewer.
    """
    numbered: list[tuple[int, Path]] = []
    for pattern in (BY_UPDATE, BY_EPOCH):
        matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
        numbered = sorted((int(match[1]), path) for match, path in matches if match)
        if numbered:
            break
    if len(numbered) < count:
        raise AveragingError(
            f"{folder} has {len(numbered)} numbered checkpoints, not {count}; "
            f"train with -- --keep-interval-updates {count}"
        )
    return [path for _, path in numbered[-count:]]


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the last checkpoint with each floating-point entry replaced by the mean over all.

    Sums are taken in float64. Raises ``AveragingError`` if names or shapes differ.
    """
    sums: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {}
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = state["model"]
        if sums and {n: t.shape for n, t in sums.items()} != {n: t.shape for n, t in model.items()}:
            raise AveragingError(f"{path} is not of the same model as {paths[0]}")
        for name, tensor in model.items():
            value = tensor.double() if tensor.is_floating_point() else tensor
            sums[name] = sums[name] + value if name in sums and tensor.is_floating_point() else value
    for name, tensor in state["model"].items():
        if tensor.is_floating_point():
            state["model"][name] = (sums[name] / len(paths)).to(tensor.dtype)
    return state


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_gpam.experiments.averaging", description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="checkpoints, or a folder of them with --last")
    parser.add_argument("--last", type=int, help="average the last that many of the folder")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        paths = args.checkpoints if args.last is None else last_checkpoints(args.checkpoints[0], args.last)
        state = average(paths)
    except (AveragingError, FileNotFoundError) as error:
        sys.exit(str(error))
    part = args.output.with_name(args.output.name + ".part")
    torch.save(state, part)
    part.replace(args.output)
    print(f"{args.output}: mean of {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    main()
