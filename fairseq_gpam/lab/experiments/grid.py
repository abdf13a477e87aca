"""Grids of experiments: a TOML file of arms × tasks × seeds × learning rates, as the jobs of a workflow engine.

baseline = "stock"
seeds = [1, 2, 3]
primary = [["dagpam-shared", "stock"]] # optional; contrasts that have a verdict, all others being exploratory
times = {stock = 1.0, dagpam-shared = 1.06}   # optional; of an update, measured apart: differences at equal time
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

import itertools
import math
import os
import platform
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fairseq_gpam import plugins
from fairseq_gpam.lab import schema
from fairseq_gpam.lab.recipes import averaging, stages, tasks

STOCK = "stock"
MIN_SEEDS = 8
"""For primary contrasts; with eight the smallest p of the sign-flip test is 2/2⁸."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
KEEP_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps freed blocks in place of returning them: fewer page faults, the same digits. Empty: left as it was."""

ArmName = Annotated[
    str,
    Meta(pattern=rf"\A{NAME.pattern}\Z", description="letters, digits, '-', '.', '_', a letter or a digit first"),
]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Rate = Annotated[float, Meta(gt=0, description="a number above 0")]
VariableName = Annotated[str, Meta(pattern=r"\A[A-Za-z_]\w*\Z", description="letters, digits and '_', no digit first")]
VariableValue = Annotated[str, Meta(pattern=r"\A[^\0]*\Z", description="text without a null character")]


class GridTask(schema.Strict, frozen=True):
    """What a grid says about a task."""

    archive: str = ""
    prepare: str = ""
    train_flags: str = ""
    average: Annotated[int, Meta(ge=1)] | None = None


class GridArm(schema.Strict, frozen=True):
    """What is trained under one name; `tasks` empty means all."""

    mechanism: str = "dagpam"
    flags: str = ""
    tasks: tuple[str, ...] = ()


class GridSlurm(schema.Strict, frozen=True):
    """What a grid says about a cluster."""

    flags: str = ""


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
        """Returns the job's name for the engine, which another job may have too."""
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


class Grid(schema.Strict, frozen=True):
    """A grid file; after `load`, without paths that depend on where it lies."""

    baseline: str
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)]
    tasks: Annotated[dict[str, GridTask], Meta(min_length=1)]
    arms: Annotated[dict[ArmName, str | GridArm], Meta(min_length=1)]
    primary: tuple[tuple[str, str], ...] = ()
    times: dict[ArmName, Rate] = msgspec.field(default_factory=dict)
    learning_rates: tuple[Rate, ...] = ()
    train_flags: str = ""
    plugin_flags: str = ""
    full: bool = False
    analyze: bool = False
    environment: dict[VariableName, VariableValue] = msgspec.field(default_factory=dict)
    slurm: GridSlurm = GridSlurm()

    def __post_init__(self) -> None:
        for key, values in (("seeds", self.seeds), ("learning_rates", self.learning_rates)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key} is {schema.show(values)}; allowed: each number once")
        if math.inf in self.learning_rates:
            raise ValueError(f"learning_rates is {schema.show(self.learning_rates)}; allowed: finite numbers above 0")
        if self.primary and len(self.seeds) < MIN_SEEDS:
            raise ValueError(f"seeds is {schema.show(self.seeds)}; allowed with primary: at least {MIN_SEEDS} of them")
        named = [("baseline is", self.baseline), *(("primary has", name) for pair in self.primary for name in pair)]
        for said, name in (*named, *(("times has", name) for name in self.times)):
            if name not in self.arms:
                raise ValueError(f"{said} {schema.show(name)}; {schema.allowed(name, self.arms)}")
        for first, second in self.primary:
            if first == second:
                raise ValueError(f"primary has {schema.show(first)} twice in a contrast; allowed: two different arms")
        for key, text in self._texts_of_words():
            try:
                file = plugins.imported(shlex.split(text))
            except ValueError as error:
                raise ValueError(f"{key} is {schema.show(text)}; allowed: words as in a shell ({error})") from error
            if file and not Path(file).is_absolute():
                said = f"{key} has {plugins.IMPORT_FLAG} {file}"
                raise ValueError(f"{said}; allowed: an absolute path, because jobs run in the output folder")

    def _texts_of_words(self) -> Iterator[tuple[str, str]]:
        yield from (("train_flags", self.train_flags), ("plugin_flags", self.plugin_flags))
        yield "slurm.flags", self.slurm.flags
        for name, task in self.tasks.items():
            yield from ((f"tasks.{schema.key(name)}.{key}", getattr(task, key)) for key in ("train_flags", "prepare"))
        yield from ((f"arms.{schema.key(name)}", self.arm(name).flags) for name in self.arms)

    def arm(self, name: str) -> GridArm:
        """Returns an arm; one that is written as a text has these flags."""
        written = self.arms[name]
        return GridArm(flags=written) if isinstance(written, str) else written

    @property
    def job_environment(self) -> dict[str, str]:
        """Returns the variables of every job; empty ones are to be unset.

        A file that an arm imports runs in the evaluation only if these name it too.
        """
        files = sorted({file for _, text in self._texts_of_words() for file in plugins.named_files(shlex.split(text))})
        imports = {plugins.IMPORT_VARIABLE: os.pathsep.join(files)} if files else {}
        kept = KEEP_BLOCKS if platform.libc_ver()[0] == "glibc" else {}
        return {**ONE_THREAD, **kept, **imports, **self.environment}

    def jobs(self) -> Iterator[Job]:
        """Yields all jobs, the data first, then the runs, all arms of a seed before the next seed."""
        prepared = self._preparations()
        yield from dict.fromkeys(prepared.values())
        for run in self.runs():
            yield from self._jobs_of(run, prepared[run.task.reference].marker)

    def _preparations(self) -> dict[str, Job]:
        """Returns the job after which a task's data is there, by the task.

        Tasks that share data share the job, but that of a recipe of one's own also keeps a copy of the recipe.
        """
        jobs: dict[str, Job] = {}
        of_data: dict[str, Job] = {}
        for name, task in self.tasks.items():
            recipe = tasks.load(name)
            earlier = of_data.get(recipe.data.name)
            if earlier is None or name.endswith(tasks.OWN):
                label = recipe.data.name if earlier is None else f"{recipe.data.name}-{recipe.name}"
                extra = ("--archive", task.archive) if task.archive else ()
                command = tuple(shlex.split(task.prepare)) or ("python", "-m", "fairseq_gpam", "prepare", name, *extra)
                inputs = () if earlier is None else (earlier.marker,)
                of_data[recipe.data.name] = Job("prepare", label, (*command, "--out", "."), f"prepared/{label}", inputs)
            jobs[name] = of_data[recipe.data.name]
        return jobs

    def runs(self) -> Iterator[stages.RunSettings]:
        """Yields all runs, all arms of a seed before the next seed."""
        rates: tuple[float | None, ...] = self.learning_rates or (None,)
        for seed, task, name, rate in itertools.product(self.seeds, self.tasks, self.arms, rates):
            arm = self.arm(name)
            if arm.tasks and task not in arm.tasks:
                continue
            plugin_flags = "" if arm.mechanism == STOCK else self.plugin_flags
            flags = (self.train_flags, self.tasks[task].train_flags, plugin_flags, arm.flags)
            yield stages.RunSettings(
                task=tasks.load(task),
                mechanism=arm.mechanism,
                seed=seed,
                out=Path(),
                name=name if rate is None else f"{name}_lr{stages.rate_text(rate)}",
                full=self.full,
                extra=tuple(shlex.split(" ".join(flags))),
                arm=name,
                learning_rate=rate,
            )

    def groups(self) -> dict[tuple[str, float | None], dict[str, list[stages.RunSettings]]]:
        """Returns the runs that are compared with each other, by the task of the runs and the learning rate, by arm."""
        groups: dict[tuple[str, float | None], dict[str, list[stages.RunSettings]]] = {}
        for run in self.runs():
            groups.setdefault((run.run_group, run.learning_rate), {}).setdefault(run.arm, []).append(run)
        return groups

    def _jobs_of(self, run: stages.RunSettings, previous: str) -> Iterator[Job]:
        """Yields the jobs of a run, the first of which waits for the marker `previous`."""
        folder = str(run.folder)
        common = [run.task.reference, run.mechanism, str(run.seed), "--name", run.name, "--out", "."]
        common += ["--full"] * run.full
        training = list(common)
        if run.learning_rate is not None:
            training += ["--arm", run.arm, "--learning-rate", stages.rate_text(run.learning_rate)]
        steps = [("train", [*training, "--", *run.extra] if run.extra else training)]
        decode, average = common, self.tasks[run.task.reference].average
        if average:
            steps.append(("average", [folder, "--last", str(average)]))
            decode = [*common, "--checkpoint", averaging.AVERAGED]
        steps += [("generate", decode), ("score", [folder])] if run.task.is_translation else [("eval-lm", decode)]
        if self.analyze:
            best, data_bin = str(run.checkpoints / run.checkpoint), str(run.task.data_bin(run.out))
            steps += [("analyze", [best, "--data", data_bin, "--out", f"{folder}/analysis", "--names", run.name])]
        priority = len(self.seeds) - self.seeds.index(run.seed)
        for stage, words in steps:
            command = ("python", "-m", "fairseq_gpam", stage, *words)
            label = f"{run.task.name} {run.name} {run.seed}"
            yield (job := Job(stage, label, command, f"{folder}/{stage}", (previous,), priority))
            previous = job.marker


def load(path: Path) -> Grid:
    """Reads and checks a grid file; raises `SchemaError` with the file, the key and what is allowed."""
    chosen = schema.read_toml(path, Grid)
    folder = path.resolve().parent
    references, resolved = {}, {}
    for name, task in chosen.tasks.items():
        key = f"{path}: tasks.{schema.key(name)}"
        # The jobs run in the output folder, where a path that is seen from the grid's folder means nothing.
        references[name] = reference = str((folder / name).resolve()) if name.endswith(tasks.OWN) else name
        try:
            full_budget = tasks.load(reference).full_budget
        except tasks.TaskError as error:
            raise schema.SchemaError(f"{key}: {error}") from error
        if chosen.full and not full_budget:
            said = f"full is true; allowed: false, because the task {name} has no other budget"
            raise schema.SchemaError(f"{path}: {said}")
        archive = folder / task.archive
        if task.archive and not archive.exists():
            raise schema.SchemaError(f"{key}.archive is {schema.show(task.archive)}; allowed: a file that exists")
        prepare = shlex.join(word.replace("${GRID}", str(folder)) for word in shlex.split(task.prepare))
        changes = {"archive": str(archive) if task.archive else "", "prepare": prepare}
        resolved[reference] = msgspec.structs.replace(task, **changes)
    arms: dict[str, str | GridArm] = {}
    for name in chosen.arms:
        arm = chosen.arm(name)
        if unknown := [task for task in arm.tasks if task not in references]:
            said = f"{schema.show(unknown[0])}; {schema.allowed(unknown[0], references)}"
            raise schema.SchemaError(f"{path}: arms.{schema.key(name)}.tasks has {said}")
        arms[name] = msgspec.structs.replace(arm, tasks=tuple(references[task] for task in arm.tasks))
    return msgspec.structs.replace(chosen, tasks=resolved, arms=arms)
