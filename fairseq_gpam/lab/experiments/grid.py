"""Grids of experiments: a TOML file of arms × tasks × seeds × learning rates, as the jobs of a workflow engine.

baseline = "stock"
seeds = [1, 2, 3]
learning_rates = [0.003, 0.005]        # optional; without it the recipe's
train_flags = "--max-update 1200"      # optional; to every training
plugin_flags = "--gpam-log-attention 100"   # optional; to every training but those of stock
full = false                           # the recipes' full budget
analyze = false                        # measure collapse in the best checkpoint

[tasks.bible-de-en]                    # a task; all keys are optional
archive = "FILE"                       # in place of a download, from the grid file's folder
prepare = "COMMAND"                    # in place of `prepare TASK`; gets --out OUT; ${GRID} is the grid file's folder
train_flags = ""
average = 10                           # decode with the mean of the last 10 checkpoints, which the training must keep

[arms]
stock = {mechanism = "stock"}
dagpam-shared = "--gpam-negative-projection shared"      # flags alone: the mechanism is dagpam
wider-ffn = {mechanism = "stock", flags = "--decoder-ffn-embed-dim 280", tasks = ["bible-de-en"]}

[environment]                          # of every job; numbers of threads, allocators
[slurm]
flags = "--partition cpu --time 8:00:00"    # for sbatch
"""

from __future__ import annotations

import itertools
import platform
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.recipes import averaging, stages, tasks

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
TASK_KEYS: dict[str, type] = {"archive": str, "prepare": str, "train_flags": str, "average": int}
ARM_KEYS: dict[str, type] = {"mechanism": str, "flags": str, "tasks": list}
SLURM_KEYS: dict[str, type] = {"flags": str}
KINDS = {str: "text", int: "a whole number", list: "a list", bool: "true or false", dict: "a table"}


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
class Run:
    """A training and what follows it; `rate` is empty for the recipe's learning rate. Settings are as the jobs run."""

    arm: str
    rate: str
    settings: stages.RunSettings


@dataclass(frozen=True)
class Job:
    """One step of the graph; its files begin with `place`, and paths are relative to the output folder."""

    stage: str
    label: str
    command: tuple[str, ...]
    place: str
    inputs: tuple[str, ...] = ()
    priority: int = 0

    @property
    def rule(self) -> str:
        """Returns the engine's name of the job."""
        return re.sub(r"\W", "_", f"{self.stage}_{self.label}")

    @property
    def marker(self) -> str:
        """Returns the file that exists once the job has ended well."""
        return f"{self.place}.done"

    @property
    def log(self) -> str:
        return f"{self.place}.job.log"

    @property
    def benchmark(self) -> str:
        return f"{self.place}.benchmark.tsv"


@dataclass(frozen=True)
class Grid:
    """A checked grid file."""

    path: Path
    baseline: str
    seeds: tuple[int, ...]
    learning_rates: tuple[str, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    arms: tuple[Arm, ...]
    train_flags: str = ""
    plugin_flags: str = ""
    full: bool = False
    analyze: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    slurm_flags: str = ""

    def jobs(self) -> Iterator[Job]:
        """Yields all jobs, the data first, then the runs, all arms of a seed before the next seed."""
        prepared: set[str] = set()
        for name, settings in self.tasks.items():
            data = tasks.load(name).data.name
            if data in prepared:
                continue
            prepared.add(data)
            own = shlex.split(settings.get("prepare", "").replace("${GRID}", str(self.path.resolve().parent)))
            archive = settings.get("archive")
            extra = ("--archive", str((self.path.parent / archive).resolve())) if archive else ()
            command = tuple(own) or ("python", "-m", "fairseq_gpam", "prepare", name, *extra)
            yield Job("prepare", data, (*command, "--out", "."), f"prepared/{data}")
        for run in self.runs():
            yield from self._jobs_of(run)

    def runs(self) -> Iterator[Run]:
        """Yields all runs, all arms of a seed before the next seed."""
        rates = self.learning_rates or ("",)
        for seed, task, arm, rate in itertools.product(self.seeds, self.tasks, self.arms, rates):
            if arm.tasks and task not in arm.tasks:
                continue
            written = [
                *(self.train_flags, self.tasks[task].get("train_flags", "")),
                *(self.plugin_flags if arm.mechanism != STOCK else "", arm.flags, f"--lr {rate}" if rate else ""),
            ]
            settings = stages.RunSettings(
                task=tasks.load(task),
                mechanism=arm.mechanism,
                seed=seed,
                out=Path(),
                name=arm.name + (f"{LR_SUFFIX}{rate}" if rate else ""),
                full=self.full,
                extra=tuple(word for text in written for word in shlex.split(text)),
            )
            yield Run(arm.name, rate, settings)

    def groups(self) -> dict[tuple[str, str], dict[str, list[Run]]]:
        """Returns the runs that are compared with each other, by the task of the runs and the learning rate, by arm."""
        found: dict[tuple[str, str], dict[str, list[Run]]] = {}
        for run in self.runs():
            found.setdefault((run.settings.run_group, run.rate), {}).setdefault(run.arm, []).append(run)
        return found

    def _jobs_of(self, run: Run) -> Iterator[Job]:
        this, folder = run.settings, str(run.settings.folder)
        common = [this.task.name, this.mechanism, str(this.seed), "--name", this.name, "--out", "."]
        common += ["--full"] * this.full
        steps = [("train", [*common, "--", *this.extra] if this.extra else common)]
        decode, average = common, self.tasks[this.task.name].get("average")
        if average:
            steps.append(("average", [folder, "--last", str(average)]))
            decode = [*common, "--checkpoint", averaging.AVERAGED]
        steps += [("generate", decode), ("score", [folder])] if this.task.is_translation else [("eval-lm", decode)]
        if self.analyze:
            best, data_bin = str(this.checkpoints / this.checkpoint), str(this.task.data_bin(this.out))
            steps += [("analyze", [best, "--data", data_bin, "--out", f"{folder}/analysis", "--names", this.name])]
        priority = len(self.seeds) - self.seeds.index(this.seed)
        previous = f"prepared/{this.task.data.name}.done"
        for stage, words in steps:
            command = ("python", "-m", "fairseq_gpam", stage, *words)
            label = f"{this.task.name} {this.name} {this.seed}"
            yield (job := Job(stage, label, command, f"{folder}/{stage}", (previous,), priority))
            previous = job.marker


def load(path: Path) -> Grid:
    """Reads and checks a grid file.

    Raises `GridError` with the file, the key and what is allowed.
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
        if settings.get("average", 1) < 1:
            raise GridError(f"{path}: tasks.{name}.average is {settings['average']}; allowed: a number above 0")
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
