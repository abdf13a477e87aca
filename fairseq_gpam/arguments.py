"""The types of numbers on command lines: argparse names the flag, these say what is allowed."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

LARGEST_SEED = 2**32 - 1
"""The largest seed of numpy, which fairseq seeds too."""


def _between(least: int, most: float, allowed: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: {allowed}")
        return value

    return parse


positive = _between(1, math.inf, "a whole number above 0")
whole = _between(0, math.inf, "0 or a whole number above")
seed = _between(0, LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")


def positive_number(text: str) -> float:
    """Returns a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: a number above 0")
    return value


def run_name(text: str) -> str:
    """Returns a run's name, which becomes a folder."""
    if ":" in text or "/" in text or text in (".", ".."):
        raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: the name of a folder, without ':' and '/'")
    return text


def output_folder(text: str) -> Path:
    """Returns the path of a folder that fairseq, which separates paths by colons or commas, takes for one."""
    if {":", ","} & set(str(Path(text).resolve())):
        raise argparse.ArgumentTypeError(f"{Path(text).resolve()} is not allowed; allowed: a path without ':' and ','")
    return Path(text)


def add_output_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the argument for the folder of data and runs."""
    parser.add_argument("--out", type=output_folder, default="out", metavar="DIR", help="output folder (default: out)")
