"""The command line, `python -m fairseq_gpam [COMMAND …]`: it finds a command's module and calls it.

A command's module has `add_arguments(parser)` and `run(arguments) -> exit status`, and a docstring that is its help.
With TAKES_FURTHER_FLAGS it finds the flags that it does not know itself in `arguments.further_flags`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "path": ("fairseq_gpam.path", "print the folder to give to --user-dir (the default)"),
    "info": ("fairseq_gpam.info", "print versions, engine, models, architectures, mechanisms; parameters of a model"),
    "mechanisms": ("fairseq_gpam.mechanism_page", "write the page of the mechanisms and its drawings"),
    "benchmark": ("fairseq_gpam.benchmark.cli", "compare time and memory with the unmodified fairseq"),
    "export": ("fairseq_gpam.export", "turn a checkpoint into one of fairseq's own model, where that is exact"),
    "analyze": ("fairseq_gpam.analysis.cli", "measure and draw attention in checkpoints: collapse, gradients, maps"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_gpam", description="daGPAM attention for fairseq. Bare, it prints the --user-dir path."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        # Only the chosen command is imported: its libraries may be an extra that is not installed.
        if argv[:1] == [name]:
            module = importlib.import_module(module_name)
            command = commands.add_parser(name, help=summary, description=module.__doc__, allow_abbrev=False)
            module.add_arguments(command)
        else:
            commands.add_parser(name, help=summary)
    arguments, further = parser.parse_known_args(argv or ["path"])
    module = importlib.import_module(COMMANDS[arguments.command][0])
    if further and not getattr(module, "TAKES_FURTHER_FLAGS", False):
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    arguments.further_flags = further
    return module.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
