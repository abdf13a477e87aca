"""Run the stages of one experiment so that they can be killed at any moment and started again.

A run folder holds, per stage, the exact command line (``STAGE.command``), the log (``STAGE.log``)
and, once the stage has ended well, its entry in ``results.json`` with versions, machine and commit;
after training also fairseq's whole configuration (``config.json``). The scripts under ``scripts/``
build the command lines; nothing here knows a recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.experiments import results

LOG_LINE = re.compile(r"^(?P<time>\S+ \S+) \| INFO \| (?P<name>\S+) \| (?P<message>.*)$")
DONE, STARTED = "| INFO | fairseq_cli.train | done training in", "| INFO | train_inner |"


class RunError(RuntimeError):
    """A run cannot start or did not end well; the message says why and what to do."""


def environment(repository: Path) -> dict[str, Any]:
    """Return versions, machine, thread count and the commit of ``repository``."""
    return {
        "versions": {"fairseq_gpam": fairseq_gpam.__version__, **engine.versions()},
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "accelerators": _accelerators(),
            "system": platform.platform(),
        },
        "commit": _commit(repository),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit(repository: Path) -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("describe", "--always", "--abbrev=40", "--dirty")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold the folder's lock and yield its descriptor, waiting for whoever holds it now.

    The descriptor is inherited by the engine's process, so a run whose script was killed keeps
    its folder until the engine itself has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: waiting for another process that still works here", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def claim(folder: Path, stage: str, command: Sequence[str]) -> None:
    """Write the stage's command line into the folder, or check that it is the one already there.

    Raises ``RunError`` with both command lines if they differ.
    """
    path = folder / f"{stage}.command"
    line = shlex.join(command)
    if not path.exists():
        results.write_atomically(path, line + "\n")
    elif path.read_text(encoding="utf-8").strip() != line:
        raise RunError(
            f"{folder} was made by another {stage} command line.\n"
            f"  there: {path.read_text(encoding='utf-8').strip()}\n"
            f"  now:   {line}\n"
            "Repeat the first, or choose another folder with --name or --out."
        )


def repair_last_checkpoint(checkpoints: Path) -> Path | None:
    """Replace a ``checkpoint_last.pt`` that was cut off by the newest complete checkpoint.

    fairseq writes one checkpoint atomically and then copies it to the other names, last of all to
    ``checkpoint_last.pt``; a kill during that copy leaves a torn file. Returns the checkpoint that
    took its place, or ``None`` if nothing was to be done.

    Raises ``RunError`` if there is no complete one.
    """
    last = checkpoints / "checkpoint_last.pt"
    if not last.exists() or zipfile.is_zipfile(last):
        return None
    others = (path for path in checkpoints.glob("checkpoint*.pt") if path != last)
    complete = [path for path in others if zipfile.is_zipfile(path)]
    if not complete:
        raise RunError(f"{last} is torn and there is no complete checkpoint beside it")
    newest = max(complete, key=lambda path: path.stat().st_mtime)
    copy = last.with_suffix(".copy")
    shutil.copyfile(newest, copy)
    copy.replace(last)
    return newest


def saved_updates(checkpoint: Path) -> int:
    """Return the number of updates after which a checkpoint was saved, 0 if there is none."""
    import torch

    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(state["optimizer_history"][-1]["num_updates"])


def has_ended(checkpoints: Path, log: Path, max_update: int | None) -> bool:
    """Tell whether the engine has trained to the end, so that running it again would train further.

    It has if the last checkpoint has the updates, or if the log says that training is done and no
    later start follows (early stopping, ``--max-epoch``).
    """
    updates = saved_updates(checkpoints / "checkpoint_last.pt")
    if max_update is not None and updates >= max_update:
        return True
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return updates > 0 and text.rfind(DONE) > text.rfind(STARTED)


def execute(
    command: Sequence[str],
    log: Path,
    lock: int | None,
    output: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Run ``command`` with its messages appended to ``log`` and each new line given to ``report``.

    Standard output goes to the log too, or to ``output`` if given. The command dies with this
    process on SIGINT and SIGTERM. Raises ``RunError`` with the end of the log if it fails.
    """
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab"))
        lines = stack.enter_context(log.open(encoding="utf-8", errors="replace"))
        lines.seek(0, os.SEEK_END)
        stdout = errors if output is None else stack.enter_context(output.open("wb"))
        process = subprocess.Popen(command, stdout=stdout, stderr=errors, pass_fds=() if lock is None else (lock,))
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            partial = ""
            running = True
            while running:
                running = process.poll() is None
                for line in lines:
                    partial += line
                    if partial.endswith("\n"):
                        if report is not None:
                            report(partial.rstrip("\n"))
                        partial = ""
                if running:
                    time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            signal.signal(signal.SIGTERM, previous)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RunError(f"{command[0]} ended with status {process.returncode}; the end of {log}:\n{tail}")


def write_config(checkpoint: Path, path: Path) -> None:
    """Write fairseq's whole configuration, as the checkpoint holds it, as JSON."""
    import torch

    config = torch.load(checkpoint, map_location="cpu", weights_only=True)["cfg"]
    results.write_atomically(path, json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, argparse.Namespace) else str(value)


class Progress:
    """Turn fairseq's JSON log lines into short lines with the time still needed."""

    def __init__(self, label: str, max_update: int | None) -> None:
        self.label = label
        self.max_update = max_update
        self.first: tuple[float, int] | None = None

    def __call__(self, line: str) -> None:
        """Print a short line if ``line`` is a training or validation record."""
        match = LOG_LINE.match(line)
        if not match or match["name"] not in {"train_inner", "valid"}:
            return
        record = json.loads(match["message"])
        if match["name"] == "valid":
            self._print(f"update {record['valid_num_updates']}: valid loss {record['valid_loss']}")
            return
        update = int(record["num_updates"])
        text = f"update {update}"
        if self.max_update:
            text += f"/{self.max_update}"
        text += f": loss {record['loss']}, {float(record['wps']):,.0f} tokens/s"
        now = time.monotonic()
        if self.first is None:
            self.first = now, update
        elif self.max_update and update > self.first[1]:
            rate = (now - self.first[0]) / (update - self.first[1])
            text += f", {rate * (self.max_update - update) / 60:.1f} min left"
        self._print(text)

    def _print(self, text: str) -> None:
        print(f"[{self.label}] {text}", flush=True)


class GenerationProgress:
    """Turn fairseq-generate's JSON log lines into short lines, at most one in ten seconds."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.printed = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print the speed if ``line`` is a progress record."""
        match = LOG_LINE.match(line)
        now = time.monotonic()
        if match and match["message"].startswith('{"wps"') and now - self.printed >= 10:
            self.printed = now
            speed = float(json.loads(match["message"])["wps"])
            print(f"[{self.label}] translating: {speed:,.0f} tokens/s", flush=True)


def last_flag(command: Sequence[str], flag: str) -> str | None:
    """Return the value that argparse would take for ``flag``: the last one given."""
    value = None
    for position, word in enumerate(command[:-1]):
        if word == flag:
            value = command[position + 1]
    return value


@dataclass(frozen=True)
class Run:
    """One run: its folder, what it is called in tables, and the repository whose commit is recorded."""

    folder: Path
    task: str
    name: str
    seed: int
    repository: Path = Path()

    @property
    def label(self) -> str:
        """What the run's progress lines begin with."""
        return f"{self.task} {self.name} {self.seed}"

    def say(self, text: str) -> None:
        """Print one progress line."""
        print(f"[{self.label}] {text}", flush=True)

    def record(self, stage: str, command: Sequence[str], measured: dict[str, Any]) -> None:
        """Record a stage as ended, with its command line, measurements and environment."""
        entry = {"command": shlex.join(command), **measured, "environment": environment(self.repository)}
        results.update(self.folder, {"task": self.task, "name": self.name, "seed": self.seed, stage: entry})


def launcher_rank() -> int:
    """Return this process's rank among those that torchrun or SLURM started, 0 without them."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def train(run: Run, command: Sequence[str]) -> None:
    """Train, or go on with training, and record the measurements.

    Under torchrun or SLURM process 0 keeps the folder; the others only run the command.
    """
    rank = launcher_rank()
    given = last_flag(command, "--max-update")
    max_update = int(given) if given else None
    checkpoints, log = run.folder / "checkpoints", run.folder / "train.log"
    if rank > 0:
        if "train" not in results.read(run.folder) and not has_ended(checkpoints, log, max_update):
            execute(command, run.folder / f"train.rank-{rank}.log", None)
        return
    with exclusive(run.folder) as lock:
        claim(run.folder, "train", command)
        if "train" in results.read(run.folder):
            run.say(f"trained already: {run.folder}")
            return
        repaired = repair_last_checkpoint(checkpoints)
        if repaired:
            run.say(f"checkpoint_last.pt was torn; going on from {repaired}")
        if has_ended(checkpoints, log, max_update):
            run.say("training had ended before its results were recorded; recording them")
        else:
            run.say(f"training; all messages go to {log}")
            execute(command, log, lock, report=Progress(run.label, max_update))
        measured = results.parse_training_log(log.read_text(encoding="utf-8"))
        write_config(checkpoints / "checkpoint_last.pt", run.folder / "config.json")
        run.record("train", command, measured)


def _need_training(run: Run) -> None:
    if "train" not in results.read(run.folder):
        raise RunError(f"{run.folder}: training has not ended; run scripts/train.sh with the same arguments first")


def generate(run: Run, command: Sequence[str]) -> None:
    """Translate a test set into ``hypotheses.txt``, one line per sentence in the set's order.

    Raises ``RunError`` if the run's training has not ended.
    """
    with exclusive(run.folder) as lock:
        _need_training(run)
        claim(run.folder, "generate", command)
        if "generate" in results.read(run.folder):
            run.say(f"translated already: {run.folder}")
            return
        run.say("translating")
        output, log = run.folder / "generate.out", run.folder / "generate.log"
        log.unlink(missing_ok=True)
        execute(command, log, lock, output=output, report=GenerationProgress(run.label))
        text = output.read_text(encoding="utf-8")
        hypotheses = results.parse_hypotheses(text)
        results.write_atomically(run.folder / "hypotheses.txt", "".join(f"{line}\n" for line in hypotheses))
        measured = results.parse_generation_log(log.read_text(encoding="utf-8") + text)
        run.record("generate", command, measured)
        run.say(f"{measured['sentences']:,} sentences translated")


def evaluate(run: Run, command: Sequence[str], text: Path, subword: Path, by_bytes: bool = False) -> None:
    """Evaluate a language model on ``text``, encoded in ``subword``, and record perplexities.

    ``by_bytes``: each token is a byte, so record bits per character. Raises ``RunError`` if the
    run's training has not ended.
    """
    with exclusive(run.folder) as lock:
        _need_training(run)
        claim(run.folder, "eval-lm", command)
        if "eval-lm" not in results.read(run.folder):
            run.say("evaluating")
            log = run.folder / "eval-lm.log"
            log.unlink(missing_ok=True)
            execute(command, log, lock)
            evaluation = results.parse_evaluation_log(log.read_text(encoding="utf-8"))
            subwords = results.count_tokens(subword)
            if by_bytes:
                measured = results.bits_per_character(evaluation, text.stat().st_size, subwords)
            else:
                measured = results.perplexities(evaluation, results.count_tokens(text), subwords)
            run.record("eval-lm", command, measured)
        entry = results.read(run.folder)["eval-lm"]
        if by_bytes:
            run.say(f"{entry['bits_per_character']:.4f} bits per character")
        else:
            run.say(
                f"perplexity {entry['perplexity_subword']:.2f} per subword, {entry['perplexity_word']:.2f} per word"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: a stage, its run folder and, after ``--``, the fairseq command."""
    parser = argparse.ArgumentParser(prog="python -m fairseq_gpam.experiments.runs")
    parser.add_argument("stage", choices=("train", "generate", "eval-lm"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True, help="name of the recipe")
    parser.add_argument("--name", required=True, help="name of the run, usually the mechanism")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--repository", type=Path, default=Path(), help="whose commit to record")
    parser.add_argument("--text", type=Path, help="eval-lm: the raw test text")
    parser.add_argument("--subword", type=Path, help="eval-lm: the encoded test text")
    parser.add_argument("--bytes", action="store_true", help="eval-lm: each token is a byte of the text")
    parser.add_argument("command", nargs="+", help="the fairseq command line, after --")
    args = parser.parse_args(argv)
    run = Run(args.folder, args.task, args.name, args.seed, args.repository)
    try:
        if args.stage == "train":
            train(run, args.command)
        elif args.stage == "generate":
            generate(run, args.command)
        elif args.text is None or args.subword is None:
            parser.error("eval-lm needs --text and --subword")
        else:
            evaluate(run, args.command, args.text, args.subword, args.bytes)
    except (RunError, results.CountMismatchError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
