"""The types of numbers on command lines: argparse names the flag, these say what is allowed."""

import argparse
import math

LARGEST_SEED = 2**32 - 1
"""The largest seed of numpy, which fairseq seeds too."""


def positive(text: str) -> int:
    """Returns a whole number above 0."""
    return _between(text, 1, None, "a whole number above 0")


def whole(text: str) -> int:
    """Returns 0 or a whole number above."""
    return _between(text, 0, None, "0 or a whole number above")


def seed(text: str) -> int:
    """Returns a random seed that torch, numpy and fairseq take."""
    return _between(text, 0, LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")


def positive_number(text: str) -> float:
    """Returns a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: a number above 0")
    return value


def _between(text: str, least: int, most: int | None, allowed: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        raise argparse.ArgumentTypeError(f"{text} is not allowed; allowed: {allowed}")
    return value
