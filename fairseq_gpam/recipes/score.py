"""Scores the translations of a run with sacreBLEU, or tests two runs for a significant difference.

BLEU and chrF on detokenised text, each with its signature, are added to the run's results.json. For a task with
tokenised text the hypotheses are detokenised first (hypotheses.detok.txt), and the tokenised BLEU of older papers is
printed too, labelled as such. With two runs, prints sacreBLEU's paired bootstrap test of the second against the first.
Stops if hypotheses and references differ in number.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairseq_gpam.experiments import results
from fairseq_gpam.recipes import stages
from fairseq_gpam.recipes.run_folder import RunError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; at most two")
    parser.add_argument("--references", type=Path, metavar="FILE", help="raw text (default: the task's test set)")
    parser.add_argument("--split-compounds", action="store_true", help="tokenised BLEU: split words at hyphens first")


def run(arguments: argparse.Namespace) -> int:
    try:
        if len(arguments.runs) > 2:
            raise RunError("expected one or two run folders; see --help")
        for folder in arguments.runs:
            if not (folder / "hypotheses.txt").is_file():
                raise RunError(f"no {folder}/hypotheses.txt; first run scripts/generate.sh")
        test = references(arguments.runs[0], arguments.references, arguments.split_compounds)
        if len(arguments.runs) == 1:
            print(*results.score_lines(results.score(arguments.runs[0], test)), sep="\n")
        else:
            print(results.compare(arguments.runs[0], arguments.runs[1], test))
    except (*stages.ERRORS, FileNotFoundError) as error:
        sys.exit(str(error))
    return 0


def references(folder: Path, raw: Path | None = None, compounds: bool = False) -> results.References:
    """Returns the references of a run's test set."""
    out, task = stages.run_of(folder)
    text, moses = task.text(out), task.data.tokenizer == "moses"
    return results.References(
        raw=raw or text / f"test.{task.target}",
        lowercase=task.data.lowercase,
        detokenize=task.target if moses else None,
        tokenized=text / f"input/test.{task.target}" if moses else None,
        compounds=compounds,
    )
