"""Tells before a grid runs whether fairseq can read the options of its trainings and build their models."""

import contextlib
import io
from pathlib import Path

from fairseq_gpam.lab.experiments.grid import Grid
from fairseq_gpam.lab.recipes import stages
from fairseq_gpam.lab.schema import SchemaError

WORDS = 300_000
"""A vocabulary above every adaptive softmax of a recipe, for tasks whose own is known only with the data."""


def check(chosen: Grid, path: Path, out: Path) -> None:
    """Builds the model of each arm on each task, without allocating memory, unless it is being trained in `out`.

    Raises `SchemaError` with the file, the arm, the task and what is wrong with the training's options.
    """
    last = {(run.arm, run.task.name): run for run in chosen.runs()}
    for (arm, task), run in last.items():
        has_begun = (out / run.folder / "train.command").exists()
        if not has_begun and (reason := fault(run)):
            raise SchemaError(f"{path}: arm {arm} cannot be trained on {task}: {reason}")


def fault(run: stages.RunSettings) -> str:
    """Returns why fairseq refuses the options of a run's training, or nothing."""
    from fairseq_gpam.parameters import Model, build

    task, words, said = run.task, stages.train_command(run), io.StringIO()
    vocabulary = 300 if task.data.subwords == "bytes" else task.data.vocabulary or WORDS
    try:
        with contextlib.redirect_stderr(said):
            build(Model(words[words.index("--arch") + 1], tuple(words[2:]), vocabulary))
    except SystemExit:
        return said.getvalue().rpartition("error: ")[2].strip()
    except (ValueError, RuntimeError, AssertionError, TypeError, KeyError, ImportError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
