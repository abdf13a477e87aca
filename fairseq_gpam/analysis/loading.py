"""Loads models, from checkpoints or newly initialised, and samples of a data set."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor

import fairseq_gpam  # noqa: F401  (registers the models and lets checkpoints be read)
from fairseq_gpam.errors import InputError, blamed_on
from fairseq_gpam.modules.stacks import is_translation


@dataclass
class LoadedModel:
    """A model in evaluation, with all that is needed to run data through it; `updates` is None for a fresh model."""

    name: str
    origin: str
    group: str
    arch: str
    updates: int | None
    model: Any
    task: Any
    criterion: Any

    def __post_init__(self) -> None:
        self.model.eval()
        self.criterion.eval()

    @property
    def is_translation(self) -> bool:
        return is_translation(self.model)


@dataclass
class Samples:
    """Examples of one data set, given by their numbers, in the order of the data set."""

    dataset: Any
    numbers: list[int]

    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        return self.dataset.collater([self.dataset[number] for number in numbers])

    def batches(self, size: int) -> list[dict[str, Any]]:
        """Returns all examples in batches of `size`, sorted by length."""
        ordered = sorted(self.numbers, key=lambda number: (self.length(number), number))
        return [self.batch(ordered[start : start + size]) for start in range(0, len(ordered), size)]

    def length(self, number: int) -> int:
        return int(np.max(self.dataset.size(number)))


def from_checkpoint(path: str, data: str, name: str) -> LoadedModel:
    """Loads a checkpoint of any fairseq transformer, safely, and points its task at the binarised `data`."""
    with blamed_on(f"{path} with --data {data}"):
        state = checkpoint_utils.load_checkpoint_to_cpu(path, {"data": data})
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], {"data": data}, state=state)
        criterion = task.build_criterion(cfg.criterion)
        updates = int(state["optimizer_history"][-1]["num_updates"])
    check_finite(path, models[0])
    return LoadedModel(
        name=name,
        origin=Path(path).name,
        group=str(Path(path).resolve().parent),
        arch=_arch(cfg.model),
        updates=updates,
        model=models[0],
        task=task,
        criterion=criterion,
    )


def from_architecture(flags: Sequence[str], data: str, name: str, seed: int) -> LoadedModel:
    """Builds a fresh model from flags of fairseq-train, `--arch NAME …`, with the random seed `seed`."""
    parser = fairseq_options.get_training_parser()
    cfg = convert_namespace_to_omegaconf(fairseq_options.parse_args_and_arch(parser, [data, *flags]))
    with blamed_on(f"{' '.join(flags)} with --data {data}"):
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(seed)
        model = task.build_model(cfg.model)
    return LoadedModel(
        name, " ".join(flags), name, _arch(cfg.model), None, model, task, task.build_criterion(cfg.criterion)
    )


def check_finite(path: str, model: torch.nn.Module) -> None:
    """Raises InputError that names a parameter if one is not finite: nothing can be measured in such a model."""
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {name} has NaN or infinite values; the training has diverged")


def _arch(model_config: Any) -> str:
    return str(getattr(model_config, "arch", None) or getattr(model_config, "_name", None) or "unknown")


def short_names(paths: Sequence[str]) -> list[str]:
    """Returns short, distinct names for checkpoints: the parts of their paths that differ."""
    parts = [Path(path).resolve().with_suffix("").parts for path in paths]
    rest = [part[_common(parts) :] for part in parts]
    end = _common([part[::-1] for part in rest])
    names = ["/".join(ends[: len(ends) - end]) or part[-1] for ends, part in zip(rest, parts, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return names


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Returns how many parts all have in common, from the first on."""
    return sum(1 for _ in itertools.takewhile(lambda at: len(set(at)) == 1, zip(*parts, strict=False)))


def choose_samples(loaded: LoadedModel, subset: str, count: int) -> Samples:
    """Returns `count` examples spread evenly over a subset, without those that are too long for the model.

    Raises ValueError if there is no example.
    """
    with blamed_on(f"--subset {subset}"):
        loaded.task.load_dataset(subset)
    dataset = loaded.task.dataset(subset)
    limits = utils.resolve_max_positions(loaded.task.max_positions(), loaded.model.max_positions())
    fitting = loaded.task.filter_indices_by_size(np.arange(len(dataset)), dataset, limits, ignore_invalid_inputs=True)
    if len(fitting) == 0:
        raise ValueError(f"--subset {subset} has no example that is short enough for the model {loaded.name}")
    chosen = np.unique(np.linspace(0, len(fitting) - 1, min(count, len(fitting))).round().astype(int))
    return Samples(dataset, [int(fitting[index]) for index in chosen])


def token_labels(dictionary: Any, tokens: Tensor) -> list[str]:
    return [str(dictionary.symbols[int(token)]) for token in tokens]
