"""Text of small synthetic tasks, a fresh draw in every line: what an attention mechanism can and cannot learn shows in
a minute. A word that begins with "?" asks: the word after it can be told from the line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fairseq_gpam.lab.recipes import ngrams
from fairseq_gpam.lab.recipes.subwords import SPLITS

CONCENTRATION = 0.2
"""Of the Dirichlet prior of the bigrams."""

Lines = Iterator[list[str]]


def bigrams(generator: np.random.Generator, count: int, options: Mapping[str, int]) -> Lines:
    """Yields lines of `length` words, each from its own random distribution of a word given the word before it."""
    seed = int(generator.integers(2**31))
    for line in ngrams.markov_sequences(1, options["symbols"], count, options["length"], CONCENTRATION, seed):
        yield [f"t{symbol}" for symbol in line]


def best_bits(lines: np.ndarray, symbols: int) -> float:
    """Returns the loss of the Bayes predictor of the bigrams in bits per token, the certain end of the line included.

    It knows the prior and counts the bigrams of the line, so that no model has a lower expected loss. Shape: lines
    count × length.
    """
    length = lines.shape[1]
    return ngrams.predictor_bits(lines, 1, symbols, CONCENTRATION) * length / (length + 1)


GENERATORS: dict[str, Callable[[np.random.Generator, int, Mapping[str, int]], Lines]] = {"bigrams": bigrams}
"""By corpus: yields a number of lines from a random generator and the recipe's options."""


def write(corpus: str, options: Mapping[str, int], out: Path) -> None:
    """Writes the splits of a synthetic task to `out`, one line a sequence, each split from a seed of its own."""
    for number, split in enumerate(SPLITS):
        generator = np.random.default_rng([options["seed"], number])
        lines = list(GENERATORS[corpus](generator, options[split], options))
        (out / f"{split}.txt").write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
        print(f"{split}: {len(lines):,} lines, {sum(map(len, lines)):,} words", flush=True)
        if corpus == "bigrams" and split != "train":
            symbols = np.array([[int(word[1:]) for word in line] for line in lines])
            bits = best_bits(symbols, options["symbols"])
            print(f"{split}: the best possible predictor loses {bits:.4f} bits a token", flush=True)
