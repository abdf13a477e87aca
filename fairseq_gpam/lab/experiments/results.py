"""Shows the results of runs.

`table RUN...` prints runs as a Markdown table; `report RUN... --out FOLDER` writes that table, the JSON and the
learning curves.
"""

import argparse
import logging
from pathlib import Path

from fairseq_gpam.lab.experiments import run_results, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="results_command", required=True, metavar="COMMAND")
    for name, summary in (("table", "Markdown table of runs"), ("report", "table, JSON and learning curves of runs")):
        command = commands.add_parser(name, help=summary)
        command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")


def run(args: argparse.Namespace) -> int:
    # Some of fairseq's modules set the root logger to DEBUG when imported.
    logging.getLogger().setLevel(logging.WARNING)
    if args.results_command == "table":
        print(tables.table_of_runs([run_results.read(run) for run in args.runs]))
    else:
        print(tables.report([run_results.read(run) for run in args.runs], args.out))
    return 0
