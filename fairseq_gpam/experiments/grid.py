"""Grids of experiments: a TOML file of arms × tasks × seeds × learning rates, as the jobs of a workflow engine.

baseline = "stock"
seeds = [1, 2, 3]
learning_rates = [0.003, 0.005]        # optional; without it the recipe's
train_flags = "--max-update 1200"      # optional; to every training
plugin_flags = "--gpam-log-attention 100"   # optional; to every training but those of stock
full = false                           # the recipes' full budget
analyze = false                        # measure collapse in the best checkpoint

[tasks.bible-de-en]                    # a task of examples/; all keys are optional
archive = "FILE"                       # in place of a download, from the grid file's folder
prepare = "COMMAND"                    # in place of `python -m fairseq_gpam prepare TASK`; gets --out OUT
train_flags = ""

[arms]
stock = {mechanism = "stock"}
dagpam-shared = "--gpam-negative-projection shared"      # flags alone: the mechanism is dagpam
wider-ffn = {mechanism = "stock", flags = "--decoder-ffn-embed-dim 280", tasks = ["bible-de-en"]}

[environment]                          # of every job; numbers of threads, allocators
[slurm]
flags = "--partition cpu --time 8:00:00"    # for sbatch
"""

from __future__ import annotations

import platform
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_gpam.recipes import tasks

STOCK = "stock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LR_SUFFIX = "_lr"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
KEEP_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps freed blocks in place of returning them: fewer page faults, the same digits. Empty: left as it was."""

KEYS: dict[str, type] = {
    "baseline": str,
    "seeds": list,
    "learning_rates": list,
    "train_flags": str,
    "plugin_flags": str,
    "full": bool,
    "analyze": bool,
    "tasks": dict,
    "arms": dict,
    "environment": dict,
    "slurm": dict,
}
TASK_KEYS: dict[str, type] = {"archive": str, "prepare": str, "train_flags": str}
ARM_KEYS: dict[str, type] = {"mechanism": str, "flags": str, "tasks": list}
SLURM_KEYS: dict[str, type] = {"flags": str}
KINDS = {str: "text", list: "a list", bool: "true or false", dict: "a table"}


class GridError(ValueError):
    """A grid file is wrong; the message names the file, the key, the value and what is allowed."""


@dataclass(frozen=True)
class Arm:
    """What is trained under one name; `tasks` empty means all."""

    name: str
    mechanism: str
    flags: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One step of the graph; `marker` exists once it has ended well, paths are relative to the output folder."""

    stage: str
    label: str
    command: tuple[str, ...]
    marker: str
    log: str
    benchmark: str
    inputs: tuple[str, ...]
    priority: int = 0

    @property
    def rule(self) -> str:
        """Returns the engine's name of the job."""
        return re.sub(r"\W", "_", f"{self.stage}_{self.label}")


@dataclass(frozen=True)
class Grid:
    """A checked grid file."""

    path: Path
    baseline: str
    seeds: tuple[int, ...]
    learning_rates: tuple[str, ...]
    tasks: Mapping[str, Mapping[str, str]]
    arms: tuple[Arm, ...]
    train_flags: str = ""
    plugin_flags: str = ""
    full: bool = False
    analyze: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    slurm_flags: str = ""

    def jobs(self) -> Iterator[Job]:
        """Yields all jobs, the data first, then the runs, all arms of a seed before the next seed."""
        prepared: dict[str, str] = {}
        for name, settings in self.tasks.items():
            data = tasks.load(name).data.name
            if data not in prepared:
                prepared[data] = f"prepared/{data}"
                own = shlex.split(settings.get("prepare", "").replace("${REPOSITORY}", str(tasks.REPOSITORY)))
                archive = settings.get("archive")
                extra = ("--archive", str((self.path.parent / archive).resolve())) if archive else ()
                command = tuple(own) or ("python", "-m", "fairseq_gpam", "prepare", name, *extra)
                place = prepared[data]
                yield _job("prepare", data, (*command, "--out", "."), place, ())
        for number, seed in enumerate(self.seeds):
            for name in self.tasks:
                marker = f"{prepared[tasks.load(name).data.name]}.done"
                for arm in self.arms:
                    if not arm.tasks or name in arm.tasks:
                        for rate in self.learning_rates or ("",):
                            yield from self._run(name, arm, seed, rate, marker, len(self.seeds) - number)

    def _run(self, task: str, arm: Arm, seed: int, rate: str, data: str, priority: int) -> Iterator[Job]:
        name = arm.name + (f"{LR_SUFFIX}{rate}" if rate else "")
        folder = f"runs/{task}{'-full' if self.full else ''}/{name}/{seed}"
        ours = arm.mechanism != STOCK
        written = [
            *(self.train_flags, self.tasks[task].get("train_flags", ""), self.plugin_flags if ours else ""),
            *(arm.flags, f"--lr {rate}" if rate else ""),
        ]
        flags = [word for text in written for word in shlex.split(text)]
        common = (task, arm.mechanism, str(seed), "--name", name, "--out", ".", *(("--full",) if self.full else ()))
        stages: list[tuple[str, tuple[str, ...]]] = [("train", (*common, "--", *flags) if flags else common)]
        if tasks.load(task).is_translation:
            stages += [("generate", common), ("score", (folder,))]
        else:
            stages += [("eval-lm", common)]
        if self.analyze:
            best = f"{folder}/checkpoints/checkpoint_best.pt"
            data_bin = f"data-bin/{tasks.load(task).data.name}"
            stages += [("analyze", (best, "--data", data_bin, "--out", f"{folder}/analysis", "--names", name))]
        previous = data
        for stage, words in stages:
            place = f"{folder}/{stage}"
            command = ("python", "-m", "fairseq_gpam", stage, *words)
            yield _job(stage, f"{task} {name} {seed}", command, place, (previous,), priority)
            previous = f"{place}.done"


def _job(
    stage: str, label: str, command: tuple[str, ...], place: str, inputs: tuple[str, ...], priority: int = 0
) -> Job:
    return Job(
        stage=stage,
        label=label,
        command=command,
        marker=f"{place}.done",
        log=f"{place}.job.log",
        benchmark=f"{place}.benchmark.tsv",
        inputs=inputs,
        priority=priority,
    )


def load(path: Path) -> Grid:
    """Reads and checks a grid file.

    Raises ``GridError`` with the file, the key and what is allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GridError(f"{path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GridError(f"{path}: not TOML: {error}") from error
    _check(path, values, KEYS, ("baseline", "seeds", "tasks", "arms"))
    seeds, rates = values["seeds"], values.get("learning_rates", [])
    if not seeds or len(set(seeds)) != len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise GridError(f"{path}: seeds is {seeds}; allowed: different whole numbers, at least one")
    if len(set(rates)) != len(rates) or not all(type(rate) in (int, float) and rate > 0 for rate in rates):
        raise GridError(f"{path}: learning_rates is {rates}; allowed: different numbers above 0")
    for name, settings in values["tasks"].items():
        _table(path, f"tasks.{name}", settings)
        _check(path, settings, TASK_KEYS, prefix=f"tasks.{name}.")
        try:
            tasks.load(name)
        except tasks.TaskError as error:
            raise GridError(f"{path}: tasks.{name}: {error}") from error
    arms = tuple(_arm(path, name, entry, values["tasks"]) for name, entry in values["arms"].items())
    if values["baseline"] not in values["arms"]:
        known = ", ".join(values["arms"])
        raise GridError(f"{path}: baseline is {values['baseline']!r}; allowed: an arm of {known}")
    for name, value in values.get("environment", {}).items():
        if not isinstance(value, str):
            raise GridError(f"{path}: environment.{name} is {value!r}; allowed: text")
    _check(path, values.get("slurm", {}), SLURM_KEYS, prefix="slurm.")
    for key, text in _flag_texts(values, arms):
        try:
            shlex.split(text)
        except ValueError as error:
            raise GridError(f"{path}: {key} is {text!r}: {error}") from error
    allocator = KEEP_BLOCKS if platform.libc_ver()[0] == "glibc" else {}
    return Grid(
        path=path,
        baseline=values["baseline"],
        seeds=tuple(seeds),
        learning_rates=tuple(f"{rate:g}" for rate in rates),
        tasks=values["tasks"],
        arms=arms,
        train_flags=values.get("train_flags", ""),
        plugin_flags=values.get("plugin_flags", ""),
        full=values.get("full", False),
        analyze=values.get("analyze", False),
        environment={**ONE_THREAD, **allocator, **values.get("environment", {})},
        slurm_flags=values.get("slurm", {}).get("flags", ""),
    )


def _flag_texts(values: dict[str, Any], arms: tuple[Arm, ...]) -> Iterator[tuple[str, str]]:
    for key in ("train_flags", "plugin_flags"):
        yield key, values.get(key, "")
    for name, settings in values["tasks"].items():
        for key in ("train_flags", "prepare"):
            yield f"tasks.{name}.{key}", settings.get(key, "")
    for arm in arms:
        yield f"arms.{arm.name}", arm.flags


def _arm(path: Path, name: str, entry: Any, known: Mapping[str, Any]) -> Arm:
    if not NAME.fullmatch(name) or LR_SUFFIX in name:
        raise GridError(f"{path}: arms.{name}: a name has letters, digits, '-', '.', '_' and no '{LR_SUFFIX}'")
    if isinstance(entry, str):
        return Arm(name, "dagpam", entry)
    _table(path, f"arms.{name}", entry, " or a text of flags")
    _check(path, entry, ARM_KEYS, prefix=f"arms.{name}.")
    unknown = [task for task in entry.get("tasks", []) if task not in known]
    if unknown:
        raise GridError(f"{path}: arms.{name}.tasks has {unknown[0]!r}; allowed: {', '.join(known)}")
    return Arm(name, entry.get("mechanism", "dagpam"), entry.get("flags", ""), tuple(entry.get("tasks", ())))


def _table(path: Path, key: str, value: Any, also: str = "") -> None:
    if not isinstance(value, dict):
        raise GridError(f"{path}: {key} is {value!r}; allowed: a table{also}")


def _check(
    path: Path, values: Mapping[str, Any], keys: Mapping[str, type], required: tuple[str, ...] = (), prefix: str = ""
) -> None:
    for key in required:
        if key not in values or values[key] in ({}, []):
            raise GridError(f"{path}: {prefix}{key} is missing or empty")
    for key, value in values.items():
        if key not in keys:
            raise GridError(f"{path}: unknown key {prefix}{key}; allowed: {', '.join(keys)}")
        if type(value) is not keys[key]:
            raise GridError(f"{path}: {prefix}{key} is {value!r}; allowed: {KINDS[keys[key]]}")
