"""Sequences from random n-gram sources, a new source for each line: text on which induction heads can be learned."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fairseq_gpam.arguments import positive, positive_number, whole
from fairseq_gpam.lab.recipes.subwords import SPLITS, write_split

CONCENTRATION = 0.3
"""Of the Dirichlet prior: the smaller it is, the more predictable the token after each context."""
LARGEST_SOURCE = 10**8
"""Numbers of one source, 8 bytes each."""


def markov_sequences(
    order: int, vocabulary: int, count: int, length: int, concentration: float = 1.0, seed: int = 1
) -> np.ndarray:
    """Returns `count` sequences, each of its own random Markov source of `order` tokens: count × length integers.

    Each context has a next-token distribution from Dirichlet(concentration, …), redrawn for each sequence, so that it
    can be learned only from that sequence (the n-gram task of arXiv 2409.10559). The first `order` tokens are uniform.
    Raises ValueError for numbers below 1, a length that is not above the order, or a source too large for the memory.
    """
    if min(order, vocabulary, count) < 1 or concentration <= 0 or length <= order:
        raise ValueError(
            f"order {order}, vocabulary {vocabulary}, count {count}, length {length}, concentration {concentration} "
            "are not allowed; allowed: numbers above 0, and a length above the order"
        )
    generator = np.random.default_rng(seed)
    if (order + 1) * math.log(vocabulary) > math.log(LARGEST_SOURCE):
        raise ValueError(
            f"vocabulary {vocabulary} with order {order} is not allowed: a source has vocabulary^(order + 1) numbers; "
            f"allowed: {LARGEST_SOURCE:,} of them"
        )
    places = vocabulary ** np.arange(order)
    sequences = np.empty((count, length), dtype=np.int64)
    for sequence in sequences:
        cumulated = generator.dirichlet([concentration] * vocabulary, size=vocabulary**order).cumsum(axis=1)
        sequence[:order] = generator.integers(vocabulary, size=order)
        for position, draw in enumerate(generator.random(length - order), start=order):
            context = int(sequence[position - order : position] @ places)
            # The last sum may fall short of 1 by rounding.
            sequence[position] = min(int(np.searchsorted(cumulated[context], draw, side="right")), vocabulary - 1)
    return sequences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train, valid and test text")
    parser.add_argument(
        "--order",
        type=positive,
        default=1,
        help="number of tokens that determine the distribution of the next one (default: 1)",
    )
    parser.add_argument(
        "--vocabulary", type=positive, default=8, metavar="N", help="number of different tokens (default: 8)"
    )
    parser.add_argument(
        "--length", type=positive, default=64, metavar="N", help="number of tokens in a sequence (default: 64)"
    )
    parser.add_argument("--train", type=positive, default=8000, metavar="N", help="sequences (default: 8000)")
    parser.add_argument("--valid", type=positive, default=200, metavar="N", help="sequences (default: 200)")
    parser.add_argument("--test", type=positive, default=200, metavar="N", help="sequences (default: 200)")
    parser.add_argument(
        "--concentration",
        type=positive_number,
        default=CONCENTRATION,
        help="of the Dirichlet prior (default: %(default)s)",
    )
    parser.add_argument("--seed", type=whole, default=1, help="default: 1; each split is given a different one")


def run(arguments: argparse.Namespace) -> int:
    """Writes DIR/train.txt, DIR/valid.txt and DIR/test.txt."""
    write(vars(arguments), arguments.out)
    return 0


def write(options: Mapping[str, float], out: Path) -> None:
    """Writes one sequence a line, tokens `t0`, `t1`, …, and prints the loss of the best predictor of each order.

    `options` are those of the command line: order, vocabulary, length, seed, the number of sequences of each split, and
    concentration (default: `CONCENTRATION`).
    """
    out.mkdir(parents=True, exist_ok=True)
    order, vocabulary = int(options["order"]), int(options["vocabulary"])
    concentration = options.get("concentration", CONCENTRATION)
    for number, split in enumerate(SPLITS):
        seed = len(SPLITS) * int(options["seed"]) + number
        length, count = int(options["length"]), int(options[split])
        sequences = markov_sequences(order, vocabulary, count, length, concentration, seed)
        write_split(out, split, [" ".join(f"t{token}" for token in sequence) for sequence in sequences])
    # The end of the line costs nothing to predict but counts as a token in fairseq's losses.
    for context in range(order + 1):
        bits = predictor_bits(sequences, context, vocabulary, concentration) * length / (length + 1)
        print(
            f"test: a predictor that counts {context + 1}-grams of the line loses {bits:.3f} bits a token", flush=True
        )


def predictor_bits(sequences: np.ndarray, context: int, vocabulary: int, concentration: float) -> float:
    """Returns the mean loss, in bits per token, of predicting from the counts of a sequence's own (context + 1)-grams.

    If `context` is the order of the source, this is the Bayes predictor: counts plus the Dirichlet prior's
    concentration. Shape: sequences count × length.
    """
    places = vocabulary ** np.arange(context)
    rows = np.arange(len(sequences))
    counts = np.full((len(sequences), vocabulary**context, vocabulary), concentration)
    bits = np.full(len(sequences), context * np.log2(vocabulary))
    for position in range(context, sequences.shape[1]):
        before = sequences[:, position - context : position] @ places
        seen, token = counts[rows, before], sequences[:, position]
        bits -= np.log2(seen[rows, token] / seen.sum(axis=1))
        counts[rows, before, token] += 1
    return float(bits.mean() / sequences.shape[1])
