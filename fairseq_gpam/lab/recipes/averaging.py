"""Averages the parameters of a run's checkpoints into one checkpoint for generate and eval-lm (--checkpoint)."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq_gpam.arguments import positive
from fairseq_gpam.checkpoints import load, save
from fairseq_gpam.lab.recipes.run_folder import CHECKPOINTS

AVERAGED = "checkpoint_average.pt"
BY_UPDATE = re.compile(r"checkpoint_\d+_(\d+)\.pt")
BY_EPOCH = re.compile(r"checkpoint(\d+)\.pt")


class AveragingError(ValueError):
    """The requested checkpoints are missing or belong to different models."""


def last_checkpoints(folder: Path, count: int) -> list[Path]:
    """Returns the last `count` checkpoints saved by update, or by epoch if there are none, oldest first.

    Raises `AveragingError` if there are fewer.
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
    """Returns the last checkpoint with each floating-point entry replaced by the mean over all.

    Sums are taken in float64. Raises `AveragingError` if names or shapes differ.
    """
    sums: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {}
    for path in paths:
        state = load(path)
        model = state["model"]
        if sums and {n: t.shape for n, t in sums.items()} != {n: t.shape for n, t in model.items()}:
            raise AveragingError(f"{path} is not of the same model as {paths[0]}")
        for name, tensor in model.items():
            sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    for name, tensor in state["model"].items():
        if tensor.is_floating_point():
            state["model"][name] = (sums[name] / len(paths)).to(tensor.dtype)
    return state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as out/runs/wmt14-en-de/dagpam/1")
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="files in the run's checkpoints/")
    parser.add_argument(
        "--last", type=positive, default=5, metavar="N", help="without CHECKPOINT, how many (default: 5)"
    )
    parser.add_argument(
        "--output",
        default=AVERAGED,
        metavar="NAME",
        help="file to write in the run's checkpoints/ (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    folder = arguments.run / CHECKPOINTS
    output = folder / arguments.output
    if not folder.is_dir():
        raise AveragingError(f"no {folder}; first run: fairseq-gpam train")
    named = [folder / name for name in arguments.checkpoints]
    paths = named or last_checkpoints(folder, arguments.last)
    save(average(paths), output)
    print(f"{output}: mean of {', '.join(path.name for path in paths)}")
    return 0
