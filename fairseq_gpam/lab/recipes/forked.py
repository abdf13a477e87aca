"""fairseq's commands in processes forked from this one, which has imported fairseq: many short runs start at once."""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import IO, Any

from fairseq_gpam.lab.recipes import engine_process

MODULES = {
    "fairseq-train": "fairseq_cli.train",
    "fairseq-validate": "fairseq_cli.validate",
    "fairseq-eval-lm": "fairseq_cli.eval_lm",
}
"""What each command that can be forked runs; the modules set up logging when they are imported."""


class ForkedCommand(ForkProcess):
    """A running command, as far as `engine_process.execute` needs of `subprocess.Popen`."""

    def __init__(
        self, words: Sequence[str], stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], **_: Any
    ) -> None:
        # A forked process has all files of its parent, so locks stay held without being named.
        super().__init__(target=_run, args=(words, stdout.fileno(), stderr.fileno(), env))
        self.start()

    def poll(self) -> int | None:
        return self.exitcode

    returncode = property(poll)
    wait = ForkProcess.join


def use() -> None:
    """Makes `engine_process.execute` fork fairseq's commands from this process, in which no thread may run."""
    import torch
    from fairseq import options, tasks, trainer  # noqa: F401

    torch.set_num_threads(1)
    logging.getLogger().handlers.clear()
    engine_process.start = ForkedCommand


def _run(words: Sequence[str], stdout: int, stderr: int, environment: Mapping[str, str]) -> None:
    # The parent's handlers would unwind the parent's stack here; a command is ended by these signals.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    importlib.import_module(MODULES[Path(words[0]).name]).cli_main()
