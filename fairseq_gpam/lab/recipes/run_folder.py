"""Run folders: the stages of one experiment, which can be killed at any moment and started again.

A run folder contains, for each stage, the exact command line (`STAGE.command`), the log (`STAGE.log`) and, once the
stage has succeeded, an entry in `results.json` with versions, machine and commit; after training also fairseq's full
configuration (`config.json`). A training's command line is there from its start, because only the same one may resume
it; an evaluation's once it has succeeded. This module is independent of recipes.
"""

import contextlib
import fcntl
import hashlib
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_gpam.checkpoints import load
from fairseq_gpam.lab.recipes import checkpoints as checkpoint_files
from fairseq_gpam.lab.recipes import dictionaries, logs, stage_results
from fairseq_gpam.lab.recipes.engine_process import (
    EngineFailure,
    GenerationProgress,
    Progress,
    execute,
    name_holder,
    training_line,
)
from fairseq_gpam.lab.recipes.environment import environment

DONE, STARTED = "| INFO | fairseq_cli.train | done training in", "| INFO | train_inner |"
CHECKPOINTS, TRAIN_LOG, HYPOTHESES = "checkpoints", "train.log", "hypotheses.txt"
"""Names in a run's folder."""
TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
"""The environment variables by which fairseq recognises torchrun."""
FLAGS_THAT_CHANGE_NO_LOSS = ("--user-dir", "--gpam-log-attention", "--num-workers")
"""Flags that change no loss: where the package lies, how often attention is logged, and which process loads batches."""
REPORT_EVERY = 30.0
"""Seconds between two messages about the process that holds a lock."""


class RunError(RuntimeError):
    """A run cannot start or has failed; the message says why and what to do."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Creates the folder if necessary; raises RunError if it, or later a file in it, cannot be written or read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunError(
            f"{folder} cannot be used: {error}; fix that or choose another folder with --out, and run this again"
        ) from error


@contextlib.contextmanager
def exclusive(folder: Path, name: str = "lock") -> Iterator[int]:
    """Acquires the folder's lock of this name, waiting if necessary, and yields the lock's file descriptor.

    fairseq's process inherits the descriptor, so after its script is killed a run keeps the folder locked until fairseq
    itself has ended. While waiting, that process's id and progress are printed. Raises RunError if the folder cannot be
    used.
    """
    with writing(folder), (folder / name).open("a+b") as file:
        descriptor, said = file.fileno(), -REPORT_EVERY
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - said >= REPORT_EVERY:
                    print(f"{folder}: waiting for {_holder(descriptor)}", flush=True)
                    said = time.monotonic()
                time.sleep(0.2)
        name_holder(descriptor, os.getpid())
        yield descriptor


def _holder(descriptor: int) -> str:
    """Returns which process holds the folder's lock, and its progress."""
    process, _, log = os.fsdecode(os.pread(descriptor, 1 << 16, 0)).strip().partition(" ")
    if not process:
        return "another process that uses this folder"
    path = Path(log)
    lines = reversed(logs.read(path).splitlines() if path.is_file() else [])
    progress = next((f" ({text})" for line in lines if (text := training_line(line))), "")
    return f"process {process}, which still uses this folder{progress}; to stop it: kill {process}"


def differing_flags(there: Sequence[str], now: Sequence[str]) -> list[str]:
    """Describes each flag whose value differs between two command lines; of a repeated flag the last one counts.

    Flags without effect on a loss may differ.
    """
    values = [flags_of(command) for command in (there, now)]
    phrases = []
    for flag in dict.fromkeys((*values[0], *values[1])):
        given = [value.get(flag) for value in values]
        if given[0] != given[1] and flag not in FLAGS_THAT_CHANGE_NO_LOSS:
            shown = ["not given" if words is None else shlex.join(words) or "given" for words in given]
            phrases.append(f"{flag or 'arguments'} (there: {shown[0]}; now: {shown[1]})")
    return phrases


def flags_of(command: Sequence[str]) -> dict[str, list[str]]:
    """Returns the words after each flag, the last occurrence if repeated; words before the first flag are under ""."""
    flags: dict[str, list[str]] = {"": []}
    flag = ""
    for word in command:
        if word.startswith("--"):
            flag, separator, value = word.partition("=")
            flags[flag] = [value] if separator else []
        else:
            flags[flag].append(word)
    return flags


def claim(folder: Path, command: Sequence[str]) -> bool:
    """Writes the training's command line into the folder, or checks it against the one already there.

    Returns whether it was written. Raises RunError with the flags that differ, if any.
    """
    path = folder / "train.command"
    if not path.exists():
        _write_command(path, command)
        return True
    if differences := differing_flags(stage_results.read_command(path), command):
        raise RunError(
            f"{folder} was made by another train command line, which differs in {'; '.join(differences)}.\n"
            f"Repeat that one ({path}), choose another folder with --name or --out, "
            f"or start afresh: rm -r {shlex.quote(str(folder))}"
        )
    return False


def _whole_number(command: Sequence[str], flag: str, lowest: int = 0) -> int | None:
    given = last_flag(command, flag)
    if given is not None and (not given.removeprefix("-").isdecimal() or int(given) < lowest):
        raise RunError(f"{flag} {given} is not allowed; allowed: a whole number from {lowest}")
    return int(given) if given else None


def _write_command(path: Path, command: Sequence[str]) -> None:
    stage_results.write_atomically(path, shlex.join(command) + "\n")


def last_flag(command: Sequence[str], flag: str) -> str | None:
    """Returns the value that argparse would take for `flag`: the last one given."""
    words = flags_of(command).get(flag)
    return words[0] if words else None


def has_ended(checkpoints: Path, log: Path, max_update: int | None) -> bool:
    """Returns whether training is complete, in which case running fairseq again would train further.

    It is if the last checkpoint has reached the number of updates, of which 0 is no limit, or if the log's last
    training run reports its end (early stopping, `--max-epoch`).
    """
    last = checkpoints / checkpoint_files.LAST
    updates = checkpoint_files.saved_updates(last) if last.exists() else 0
    if max_update and updates >= max_update:
        return True
    text = logs.read(log)
    return updates > 0 and text.rfind(DONE) > text.rfind(STARTED)


@dataclass(frozen=True)
class Run:
    """One run: its folder, its name in tables, and in a grid of learning rates its arm and rate."""

    folder: Path
    task: str
    name: str
    seed: int
    arm: str = ""
    learning_rate: float | None = None

    @property
    def label(self) -> str:
        """Returns the prefix of the run's progress lines."""
        return f"{self.task} {self.name} {self.seed}"

    def say(self, text: str) -> None:
        """Prints one progress line."""
        print(f"[{self.label}] {text}", flush=True)

    def record(self, stage: str, command: Sequence[str], measured: dict[str, Any]) -> None:
        """Records the end of a stage, with its command line, measurements and environment."""
        entry = {"command": shlex.join(command), **measured, "environment": environment()}
        place = {"arm": self.arm} if self.arm else {}
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        run = {"task": self.task, "name": self.name, "seed": self.seed, **place, **rate}
        stage_results.update(self.folder, {**run, stage: entry})


def launcher_rank(command: Sequence[str]) -> int:
    """Returns this process's rank in a distributed training, 0 in any other.

    As in fairseq (`infer_init_method`), `--distributed-rank` decides if given, else torchrun's variables, else SLURM's
    if `--distributed-port` is given. Without it, SLURM's tasks are trainings of their own.
    """
    rank, port = _whole_number(command, "--distributed-rank"), _whole_number(command, "--distributed-port", -1)
    if rank is not None:
        return rank
    if all(name in os.environ for name in TORCHRUN):
        return int(os.environ["RANK"])
    return int(os.environ.get("SLURM_PROCID", 0)) if (port or 0) > 0 else 0


def train(run: Run, command: Sequence[str]) -> None:
    """Trains, or resumes training, and records the measurements.

    Of a distributed training only process 0 writes to the folder; the others just run the command. If a command fails
    or is stopped before its first checkpoint, the folder is free for another command. Raises RunError or EngineFailure.
    """
    rank = launcher_rank(command)
    if (given := last_flag(command, "--log-format") or "json") != "json":
        raise RunError(f"--log-format {given} is not allowed; allowed: json, from which results are read")
    max_update = _whole_number(command, "--max-update")
    checkpoints, log = run.folder / CHECKPOINTS, run.folder / TRAIN_LOG
    if rank > 0:
        with writing(run.folder):
            if "train" not in stage_results.read(run.folder) and not has_ended(checkpoints, log, max_update):
                execute(command, run.folder / f"train.rank-{rank}.log")
        return
    with exclusive(run.folder) as lock:
        claimed = claim(run.folder, command)
        if claimed:
            dictionaries.record(run.folder, command)
        refuse_other_dictionaries(run.folder, command)
        if trained := stage_results.read(run.folder).get("train"):
            refuse_diverged(run.folder, trained)
            run.say(f"trained already: {run.folder}")
            return
        if repaired := checkpoint_files.repair_last(checkpoints):
            run.say(repaired)
        ended_badly, took = False, {}
        if has_ended(checkpoints, log, max_update):
            run.say("training had ended before its results were recorded; recording them")
        else:
            run.say(f"training; all messages go to {log}")
            begun, used = time.monotonic(), _processor_seconds()
            try:
                execute(command, log, lock, report=Progress(run.label, max_update))
                took = {"seconds": time.monotonic() - begun}
                # What other threads ran meanwhile would count too.
                if threading.current_thread() is threading.main_thread():
                    took["processor_seconds"] = _processor_seconds() - used
            except BaseException as error:
                ended_badly = isinstance(error, EngineFailure)
                if not (ended_badly and logs.divergence(logs.read(log), ended_badly)):
                    if claimed and not (checkpoints / checkpoint_files.LAST).exists():
                        (run.folder / "train.command").unlink()
                        (run.folder / dictionaries.SUMS).unlink()
                        log.replace(run.folder / "train.failed.log")
                    raise
        text = logs.read(log)
        measured = logs.parse_training_log(text, logs.divergence(text, ended_badly))
        if not logs.resumed(text):
            measured |= {name: round(value, 1) for name, value in took.items()}
        if (checkpoints / checkpoint_files.LAST).exists():
            checkpoint_files.write_config(checkpoints / checkpoint_files.LAST, run.folder / "config.json")
        run.record("train", command, measured)
        refuse_diverged(run.folder, measured)


def _processor_seconds() -> float:
    """Returns the processor time of all commands of this process that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def refuse_diverged(folder: Path, trained: Mapping[str, Any]) -> None:
    """Raises RunError if the results of a training say that it has diverged."""
    if diverged := trained.get("diverged"):
        raise RunError(
            f"{folder}: the training diverged at update {diverged['update']}: {diverged['reason']}; see {TRAIN_LOG} "
            "there; train with other flags and another --name, or remove the folder"
        )


def refuse_other_dictionaries(folder: Path, command: Sequence[str]) -> None:
    """Raises RunError if a dictionary of the command's data has changed since the run's training started."""
    if changed := dictionaries.changed(folder, command):
        raise RunError(
            f"{folder} was trained with other data: {changed} has changed since then, and the model would take its "
            "words for others; prepare the data as it was, or train again with another --name"
        )


def _checkpoint_sums(run: Run, command: Sequence[str]) -> str:
    """Returns the sha256 of each checkpoint that the command evaluates, separated as in `--path`.

    Raises RunError if the run's training has not ended well or its dictionaries have changed, CheckpointError if a
    checkpoint is broken.
    """
    trained = stage_results.read(run.folder).get("train")
    if not trained:
        raise RunError(f"{run.folder}: training has not ended; first run: fairseq-gpam train, with the same arguments")
    refuse_diverged(run.folder, trained)
    refuse_other_dictionaries(run.folder, command)
    sums = []
    for path in filter(None, (last_flag(command, "--path") or "").split(":")):
        load(Path(path))
        with open(path, "rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return ":".join(sums)


def record_evaluation(
    run: Run, stage: str, command: Sequence[str], overwrite: bool, measure: Callable[[int], dict[str, Any]]
) -> None:
    """Records what `measure`, called with the folder's lock, returns, unless its result is there, which is then said.

    A result counts if it is of the same checkpoint. Until `measure` has returned, nothing is recorded. Raises RunError
    if the run's training has not ended, or the result there is of another command line and not to be overwritten.
    """
    with exclusive(run.folder) as lock:
        sums = _checkpoint_sums(run, command)
        there = stage_results.read(run.folder).get(stage)
        if there and not overwrite:
            if differences := differing_flags(shlex.split(there["command"]), command):
                raise RunError(
                    f"{run.folder} has the result of another {stage} command line, which differs in "
                    f"{'; '.join(differences)}.\nTo replace that result, add --overwrite before any --; "
                    "the trained model stays as it is."
                )
            if there.get("checkpoint_sha256") == sums:
                run.say(f"{'translated' if stage == 'generate' else 'evaluated'} already: {run.folder}")
                return
            run.say("the result there is not known to be of this checkpoint")
        (run.folder / f"{stage}.log").unlink(missing_ok=True)
        measured = measure(lock)
        _write_command(run.folder / f"{stage}.command", command)
        run.record(stage, command, {"checkpoint_sha256": sums, **measured})


def generate(run: Run, command: Sequence[str], overwrite: bool = False) -> None:
    """Translates a test set into `hypotheses.txt`, one line per sentence, in the test set's order.

    Raises as `record_evaluation` does; CountMismatchError if hypotheses are missing, EngineFailure if fairseq fails.
    """

    def translate(lock: int) -> dict[str, Any]:
        run.say("translating")
        output, log = run.folder / "generate.out", run.folder / "generate.log"
        execute(command, log, lock, output=output, report=GenerationProgress(run.label))
        hypotheses = logs.parse_hypotheses(text := logs.read(output))
        measured = logs.parse_generation_log(logs.read(log) + text)
        if len(hypotheses) != measured["sentences"]:
            raise logs.CountMismatchError(
                f"{output} has {len(hypotheses)} hypotheses, but {measured['sentences']} sentences were translated; "
                "leave out flags that change what is printed, such as --quiet"
            )
        # The score of the old hypotheses must not be taken for that of the new ones.
        stage_results.update(run.folder, {}, without=("generate", "score"))
        stage_results.write_atomically(run.folder / HYPOTHESES, "".join(f"{line}\n" for line in hypotheses))
        run.say(f"{measured['sentences']:,} sentences translated")
        return measured

    record_evaluation(run, "generate", command, overwrite, translate)


def evaluate(
    run: Run, command: Sequence[str], measure: Callable[[str], dict[str, Any]], overwrite: bool = False
) -> dict[str, Any]:
    """Evaluates a language model and records what `measure` reads from the log; returns what is recorded.

    Raises as `record_evaluation` does; EngineFailure if the command fails; what `measure` raises.
    """

    def evaluate_once(lock: int) -> dict[str, Any]:
        run.say("evaluating")
        log = run.folder / "eval-lm.log"
        execute(command, log, lock)
        return measure(logs.read(log))

    record_evaluation(run, "eval-lm", command, overwrite, evaluate_once)
    return stage_results.read(run.folder)["eval-lm"]
