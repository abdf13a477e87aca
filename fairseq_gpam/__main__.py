"""The command line, `fairseq-gpam [COMMAND …]` or `python -m fairseq_gpam [COMMAND …]`: finds a command and calls it.

A command's module has `add_arguments(parser)` and `run(arguments) -> exit status`; its docstring is the help text. If
it sets TAKES_FURTHER_FLAGS, unknown flags are passed in `arguments.further_flags`; if it sets TAKES_FLAGS_AFTER_DASHES,
so is everything after `--`. A module with several commands is given as `MODULE:OBJECT`, where the object has these
attributes.
"""

import argparse
import difflib
import importlib
import sys
from typing import Any

import fairseq_gpam
from fairseq_gpam import errors

PROGRAM = "fairseq-gpam"
COMMANDS = {
    "path": ("fairseq_gpam.path", "print the folder to give to --user-dir (the default)"),
    "info": ("fairseq_gpam.info", "print versions, engine, models, architectures, mechanisms; parameters of a model"),
    "flags": ("fairseq_gpam.flags", "print the --gpam flags, all or those of a mechanism"),
    "benchmark": ("fairseq_gpam.lab.benchmark.cli", "compare time and memory with the unmodified fairseq"),
    "export": ("fairseq_gpam.export_command", "turn a checkpoint into one of fairseq's own model, where that is exact"),
    "analyze": ("fairseq_gpam.analysis.cli", "measure and draw attention in checkpoints: collapse, gradients, maps"),
    "quickstart": ("fairseq_gpam.lab.experiments.quickstart", "from nothing to a table: stock attention and daGPAM"),
    "prepare": ("fairseq_gpam.lab.recipes.prepare", "fetch and prepare the data of a standard task"),
    "train": ("fairseq_gpam.lab.recipes.stages:TRAIN", "train a model on a standard task"),
    "generate": ("fairseq_gpam.lab.recipes.stages:GENERATE", "translate a task's test set"),
    "eval-lm": ("fairseq_gpam.lab.recipes.stages:EVAL_LM", "evaluate a language model on a task's test set"),
    "score": ("fairseq_gpam.lab.recipes.score", "score translations with sacreBLEU, or compare those of two runs"),
    "average": ("fairseq_gpam.lab.recipes.averaging", "average checkpoints of a run"),
    "experiment": ("fairseq_gpam.lab.experiments.experiment", "run a grid of arms, tasks, seeds and learning rates"),
    "compare": ("fairseq_gpam.lab.experiments.compare", "compare runs with a baseline: tables, verdicts, a page"),
    "cards": ("fairseq_gpam.lab.experiments.make_cards", "what a mechanism learns in five small tasks, beside softmax"),
    "results": ("fairseq_gpam.lab.experiments.tables", "tables and reports of runs"),
    "ngrams": ("fairseq_gpam.lab.recipes.ngrams", "write sequences of random n-gram sources, to study induction heads"),
}
WITHOUT_ENGINE = {"path", "info", "flags", "compare", "results", "score", "ngrams"}
"""The commands that work without fairseq; the others check and prepare it first."""


def load(name: str) -> Any:
    """Returns the module, or the object in it, that is the command."""
    module_name, _, attribute = COMMANDS[name][0].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its status; a failed one prints why and raises SystemExit (see errors.py)."""
    with errors.boundary():
        return dispatch(sys.argv[1:] if argv is None else argv)


def dispatch(argv: list[str]) -> int:
    """Parses the command line, and calls the command that it names."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="daGPAM attention for fairseq. Without a command, it prints the path for --user-dir."
    )
    parser.add_argument("--version", action="version", version=f"fairseq-gpam {fairseq_gpam.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    argv = argv or ["path"]
    # Only the chosen command is imported, because others may need extras that are not installed.
    module: Any = load(argv[0]) if argv[0] in COMMANDS else None
    for name, (_, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name == argv[0]:
            command.description = module.__doc__
            module.add_arguments(command)
    if module is None and (near := difflib.get_close_matches(argv[0], COMMANDS, 1)):
        parser.error(f"there is no command {argv[0]!r}; did you mean {near[0]}?")
    after_dashes: list[str] = []
    if getattr(module, "TAKES_FLAGS_AFTER_DASHES", False) and "--" in argv:
        position = argv.index("--")
        argv, after_dashes = argv[:position], argv[position + 1 :]
    arguments, further = parser.parse_known_args(argv)
    if further and not getattr(module, "TAKES_FURTHER_FLAGS", False):
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    arguments.further_flags = [*further, *after_dashes]
    if arguments.command not in WITHOUT_ENGINE:
        fairseq_gpam.register()
    return load(arguments.command).run(arguments)


if __name__ == "__main__":
    sys.exit(main())
