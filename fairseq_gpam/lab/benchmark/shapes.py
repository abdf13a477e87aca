"""What can be measured: levels, shapes of batches and layers, mechanisms and backends."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVELS = ("core", "layer", "decoding", "model", "generation")


@dataclass(frozen=True)
class Shape:
    """Length and number of a batch's sequences, and the dimensions of the layer."""

    length: int
    batch: int
    width: int
    feed_forward: int
    heads: int
    kinds: tuple[str, ...]


SHAPES = {
    "iwslt": Shape(30, 64, 512, 1024, 4, ("encoder", "decoder")),
    "wmt": Shape(64, 32, 512, 2048, 8, ("encoder", "decoder")),
    "lm512": Shape(512, 4, 512, 2048, 8, ("lm",)),
    "lm2048": Shape(2048, 1, 512, 2048, 8, ("lm",)),
}


def by_length(length: int) -> Shape:
    """Returns the shape of what is measured by length: the core on one sentence, with 2 heads of 64."""
    return Shape(length, 1, 128, 0, 2, ("lm",))


def label(case: Mapping[str, Any]) -> str:
    """Returns the name of a timed case, or of a row of its results."""
    dropout = f", attention dropout {case['dropout']:g}" if case["dropout"] else ""
    return f"{case['level']} {case['shape']} {case['kind']}, {case['mode']}{dropout}"


@dataclass(frozen=True)
class Candidate:
    """A mechanism and backend to compare with stock fairseq."""

    mechanism: str
    backend: str

    def __str__(self) -> str:
        return f"{self.mechanism}:{self.backend}"

    def settings(self, **others: Any) -> argparse.Namespace:
        return argparse.Namespace(gpam_mechanism=self.mechanism, gpam_backend=self.backend, **others)
