"""Runs a fairseq command, prints its progress as short lines, and terminates it when this process ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LOG_LINE = re.compile(r"^(?P<time>\S+ \S+) \| INFO \| (?P<name>\S+) \| (?P<message>.*)$")


stopping = threading.Event()
"""When set, all commands started by this process are terminated."""
start: Any = subprocess.Popen
"""What starts a command; `forked` replaces it."""


def name_holder(lock: int, process: int, log: Path | str = "") -> None:
    """Writes into a lock's file which process holds it, and its log."""
    os.truncate(lock, 0)
    os.pwrite(lock, os.fsencode(f"{process} {log}\n"), 0)


def stop_on_sigterm() -> None:
    """Makes SIGTERM, and a closed terminal unless nohup is used, end this process and its commands cleanly."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


class EngineFailure(RuntimeError):
    """A fairseq command failed; the message has its status and the end of its log."""


def execute(
    command: Sequence[str],
    log: Path,
    lock: int | None = None,
    output: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Runs `command`, appends its messages to `log` and passes each new line to `report`.

    Standard output goes to `output` if given, else to the log. The process inherits the file descriptor `lock`, and its
    id is written to that file. An exception terminates the process. Raises EngineFailure if the command fails.
    """
    # This interpreter's own commands take precedence.
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', os.defpath)}"}
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab"))
        lines = stack.enter_context(log.open(encoding="utf-8", errors="replace"))
        lines.seek(0, os.SEEK_END)
        stdout = errors if output is None else stack.enter_context(output.open("wb"))
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        process = start(
            [program, *command[1:]],
            stdout=stdout,
            stderr=errors,
            env=environment,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            if lock is not None:
                name_holder(lock, process.pid, log)
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
                if running and stopping.wait(0.2):
                    raise KeyboardInterrupt
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise EngineFailure(f"{command[0]} ended with status {process.returncode}; the end of {log}:\n{tail}")


def training_line(line: str, max_update: int | None = None) -> str | None:
    """Returns the training progress reported by a line of fairseq's JSON log, or None if it holds no whole record."""
    match = LOG_LINE.match(line)
    if not match or match["name"] not in {"train_inner", "valid"}:
        return None
    total = f"/{max_update}" if max_update else ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        record = json.loads(match["message"])
        if match["name"] == "valid":
            return f"update {record['valid_num_updates']}: valid loss {record['valid_loss']}"
        speed = f"{float(record['wps']):,.0f} tokens/s"
        return f"update {int(record['num_updates'])}{total}: loss {record['loss']}, {speed}"
    return None


class Progress:
    """Prints fairseq's JSON log lines as short lines with the remaining time."""

    def __init__(self, label: str, max_update: int | None) -> None:
        self.label = label
        self.max_update = max_update
        self.first: tuple[float, int] | None = None

    def __call__(self, line: str) -> None:
        """Prints a short line if `line` is a training or validation record."""
        text = training_line(line, self.max_update)
        if text is None:
            return
        record = json.loads(line[line.index("{") :])
        if "num_updates" in record:
            update, now = int(record["num_updates"]), time.monotonic()
            if self.first is None:
                self.first = now, update
            elif self.max_update and update > self.first[1]:
                rate = (now - self.first[0]) / (update - self.first[1])
                text += f", {rate * (self.max_update - update) / 60:.1f} min left"
        print(f"[{self.label}] {text}", flush=True)


class GenerationProgress:
    """Prints fairseq-generate's JSON log lines as short lines, at most one every ten seconds."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.printed = time.monotonic()

    def __call__(self, line: str) -> None:
        """Prints the speed if `line` is a progress record."""
        match = LOG_LINE.match(line)
        now = time.monotonic()
        if match and match["message"].startswith('{"wps"') and now - self.printed >= 10:
            with contextlib.suppress(ValueError):
                speed = float(json.loads(match["message"])["wps"])
                print(f"[{self.label}] translating: {speed:,.0f} tokens/s", flush=True)
                self.printed = now
