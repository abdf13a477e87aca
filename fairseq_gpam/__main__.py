"""The command line: `python -m fairseq_gpam [path|info]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_gpam", description="daGPAM attention for fairseq. Bare, it prints the --user-dir path."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("path", help="print the folder to give to --user-dir (the default)")
    commands.add_parser("info", help="print versions, engine, models, architectures and mechanisms")
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        from fairseq_gpam.info import print_info

        print_info()
    else:
        print(Path(__file__).resolve().parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
