"""Keeps and shows the results of runs.

`table RUN...` prints runs as a Markdown table, `report RUN... --out FOLDER` writes that table, the JSON and the
learning curves, `keep RUN...` adds results to `examples/results`, and `tables` rebuilds the tables of README.md
and examples/ from these.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fairseq_gpam.lab.experiments import committed_results, pages, run_results, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="results_command", required=True, metavar="COMMAND")
    command = commands.add_parser("table", help="Markdown table of runs")
    command.add_argument("runs", type=Path, nargs="+")
    command = commands.add_parser("report", help="table, JSON and learning curves of runs")
    command.add_argument("runs", type=Path, nargs="+")
    command.add_argument("--out", type=Path, required=True)
    command = commands.add_parser(
        "keep", help="add runs' results, without training curves and paths, to examples/results"
    )
    command.add_argument("runs", type=Path, nargs="+")
    command.add_argument("--repository", type=Path, default=Path())
    command.add_argument(
        "--without-speeds",
        default="",
        metavar="REASON",
        help="leave out speeds and times and note why, such as 'the machine was shared with other work'",
    )
    command = commands.add_parser("tables", help="rebuild the results tables of README.md and examples/")
    command.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    command.add_argument("--repository", type=Path, default=Path())


def run(args: argparse.Namespace) -> int:
    # Some of fairseq's modules set the root logger to DEBUG when imported.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        if args.results_command == "table":
            print(tables.table([run_results.read(run) for run in args.runs]))
        elif args.results_command == "report":
            print(tables.report([run_results.read(run) for run in args.runs], args.out))
        elif args.results_command == "keep":
            print(*committed_results.keep(args.runs, args.repository, args.without_speeds), sep="\n")
        else:
            changed = pages.rebuild(args.repository, write=not args.check)
            for path in changed:
                print(f"out of date: {path}" if args.check else path)
            if args.check and changed:
                sys.exit("run: python -m fairseq_gpam results tables")
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(str(error))
    return 0
