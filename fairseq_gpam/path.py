"""The folder to give to --user-dir."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: `path` takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    print(Path(__file__).resolve().parent)
    return 0
