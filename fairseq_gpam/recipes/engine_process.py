"""Runs a fairseq command, shows its log as short lines, and ends it when this process ends."""

from __future__ import annotations

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

LOG_LINE = re.compile(r"^(?P<time>\S+ \S+) \| INFO \| (?P<name>\S+) \| (?P<message>.*)$")


stopping = threading.Event()
"""When set, every command that runs in this process is ended."""


def stop_on_sigterm() -> None:
    """Lets SIGTERM end this process, and the commands that it runs, cleanly."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class EngineFailure(RuntimeError):
    """A fairseq command failed; the message has its status and the end of its log."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def execute(
    command: Sequence[str],
    log: Path,
    lock: int | None = None,
    output: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> None:
    """Runs `command` with its messages appended to `log` and each new line given to `report`.

    Standard output goes to the log too, or to `output` if given. The process inherits the descriptor `lock`, into
    whose file its id is written. An exception in this function ends the process. Raises EngineFailure if it fails.
    """
    # The commands of this interpreter's installation come first.
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', os.defpath)}"}
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("ab"))
        lines = stack.enter_context(log.open(encoding="utf-8", errors="replace"))
        lines.seek(0, os.SEEK_END)
        stdout = errors if output is None else stack.enter_context(output.open("wb"))
        program = shutil.which(command[0], path=environment["PATH"]) or command[0]
        process = subprocess.Popen(
            [program, *command[1:]],
            stdout=stdout,
            stderr=errors,
            env=environment,
            pass_fds=() if lock is None else (lock,),
        )
        if lock is not None:
            os.truncate(lock, 0)
            os.pwrite(lock, f"{process.pid} {log}\n".encode(), 0)
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
                if running and stopping.wait(0.2):
                    raise KeyboardInterrupt
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        message = f"{command[0]} ended with status {process.returncode}; the end of {log}:\n{tail}"
        raise EngineFailure(message, process.returncode)


def training_line(line: str, max_update: int | None = None) -> str | None:
    """Returns what a line of fairseq's JSON log says of the training's progress, or None."""
    match = LOG_LINE.match(line)
    if not match or match["name"] not in {"train_inner", "valid"}:
        return None
    record = json.loads(match["message"])
    if match["name"] == "valid":
        return f"update {record['valid_num_updates']}: valid loss {record['valid_loss']}"
    total = f"/{max_update}" if max_update else ""
    return f"update {record['num_updates']}{total}: loss {record['loss']}, {float(record['wps']):,.0f} tokens/s"


class Progress:
    """Turns fairseq's JSON log lines into short lines with the time still needed."""

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
    """Turns fairseq-generate's JSON log lines into short lines, at most one in ten seconds."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.printed = time.monotonic()

    def __call__(self, line: str) -> None:
        """Prints the speed if `line` is a progress record."""
        match = LOG_LINE.match(line)
        now = time.monotonic()
        if match and match["message"].startswith('{"wps"') and now - self.printed >= 10:
            self.printed = now
            speed = float(json.loads(match["message"])["wps"])
            print(f"[{self.label}] translating: {speed:,.0f} tokens/s", flush=True)
