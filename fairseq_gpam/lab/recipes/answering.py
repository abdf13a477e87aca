"""Evaluates a model of a text with questions on all its test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_gpam.lab.recipes import logs, stage_results
from fairseq_gpam.lab.recipes.engine_process import execute
from fairseq_gpam.lab.recipes.run_folder import Run, record_evaluation


def answer(run: Run, command: Sequence[str], overwrite: bool = False) -> None:
    """Evaluates a model of a text with questions on every test set, and records loss and accuracy of its answers.

    Raises as `run_folder.evaluate` does.
    """

    def measure(lock: int) -> dict[str, Any]:
        run.say("evaluating")
        log = run.folder / "eval-lm.log"
        execute(command, log, lock)
        return {"answers": logs.parse_answers(log.read_text(encoding="utf-8"))}

    if not record_evaluation(run, "eval-lm", command, overwrite, measure):
        run.say(f"evaluated already: {run.folder}")
    for name, answer in stage_results.read(run.folder)["eval-lm"]["answers"].items():
        run.say(f"{name}: {answer['accuracy']:.1%} of the answers right, {answer['loss']:.4f} bits an answer")
