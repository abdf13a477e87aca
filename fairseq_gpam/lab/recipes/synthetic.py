"""Text of small synthetic tasks, a fresh draw in every line: what an attention mechanism can and cannot learn shows in
a minute. A word that begins with "?" asks: the word after it can be told from the line."""

import functools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fairseq_gpam.lab.recipes import ngrams
from fairseq_gpam.lab.recipes.subwords import SPLITS, write_split

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


def flip_flop(generator: np.random.Generator, count: int, options: Mapping[str, int], sparse: bool = False) -> Lines:
    """Yields lines of `pairs` instructions and bits: write, ignore, or read, which asks for the bit written last.

    The first instruction writes and the last one reads (arXiv 2306.00946). A tenth of the others write, a tenth read;
    `sparse`: a fiftieth and three hundredths, so that the bit to read was written long before.
    """
    write, read = (0.02, 0.03) if sparse else (0.1, 0.1)
    for _ in range(count):
        kinds = generator.choice(3, size=options["pairs"], p=(write, read, 1 - write - read))
        kinds[0], kinds[-1] = 0, 1
        bits = generator.integers(2, size=len(kinds))
        # A read repeats the bit of the last write.
        written = np.maximum.accumulate(np.where(kinds == 0, np.arange(len(kinds)), 0))
        bits = np.where(kinds == 1, bits[written], bits)
        yield [word for kind, bit in zip(kinds, bits, strict=True) for word in (("w", "?", "i")[kind], str(bit))]


def lookup(generator: np.random.Generator, count: int, options: Mapping[str, int]) -> Lines:
    """Yields lines of `pairs` words, each a key with its value, and then each key in another order with its value."""
    for _ in range(count):
        keys = generator.permutation(options["keys"])[: options["pairs"]]
        values = generator.integers(options["values"], size=len(keys))
        asked = (word for at in generator.permutation(len(keys)) for word in (f"?{keys[at]}", f"v{values[at]}"))
        yield [*(f"{key}=v{value}" for key, value in zip(keys, values, strict=True)), *asked]


def set_difference(generator: np.random.Generator, count: int, options: Mapping[str, int]) -> Lines:
    """Yields lines of `chosen` words out of `symbols`, a mark, all but one of them reordered, and the missing one."""
    for _ in range(count):
        chosen = [f"s{symbol}" for symbol in generator.permutation(options["symbols"])[: options["chosen"]]]
        rest = [chosen[at] for at in generator.permutation(len(chosen))]
        yield [*chosen, "|", *rest[:-1], "?", rest[-1]]


def filler(generator: np.random.Generator, count: int, options: Mapping[str, int], length: int = 0) -> Lines:
    """Yields lines of `length` words: filler with `pairs` keys and values at random places, then each key and value."""
    pairs = options["pairs"]
    for _ in range(count):
        words = generator.integers(options["fillers"], size=(length or options["length"]) - 2 * pairs)
        line = [f"f{word}" for word in words]
        keys = generator.permutation(options["keys"])[:pairs]
        values = generator.integers(options["values"], size=pairs)
        for place, key, value in zip(generator.permutation(len(line)), keys, values, strict=False):
            line[place] = f"{key}=v{value}"
        yield [*line, *(word for at in generator.permutation(pairs) for word in (f"?{keys[at]}", f"v{values[at]}"))]


GENERATORS: dict[str, Callable[[np.random.Generator, int, Mapping[str, int]], Lines]] = {
    "bigrams": bigrams,
    "flip-flop": flip_flop,
    "lookup": lookup,
    "set-difference": set_difference,
    "filler": filler,
}
"""By corpus: yields a number of lines from a random generator and the recipe's options."""

MORE_TESTS: dict[str, tuple[Callable[[np.random.Generator, int, Mapping[str, int]], Lines], ...]] = {
    "flip-flop": (partial(flip_flop, sparse=True),),
    "filler": tuple(partial(filler, length=length) for length in (256, 512, 1024)),
}
"""Further test sets, `test1`, `test2`, …, of another distribution than the training's."""


def test_sets(corpus: str) -> list[str]:
    """Returns the names of a task's test sets."""
    return ["test", *(f"test{number}" for number, _ in enumerate(MORE_TESTS.get(corpus, ()), start=1))]


def lines(corpus: str, options: Mapping[str, int], split: str) -> list[list[str]]:
    """Returns the words of each line of a split, or of a further test set, which is drawn from a seed of its own."""
    more = MORE_TESTS.get(corpus, ())
    name, _, number = split.partition("test")
    generate = more[int(number) - 1] if number else GENERATORS[corpus]
    stream = len(SPLITS) + int(number) - 1 if number else SPLITS.index(split)
    return list(generate(np.random.default_rng([options["seed"], stream]), options[name or "test"], options))


def best_bits_of_bigrams(options: Mapping[str, int], split: str) -> float:
    """Returns `best_bits` of a split of bigrams."""
    return _best_bits_of_bigrams(tuple(sorted(options.items())), split)


@functools.cache
def _best_bits_of_bigrams(items: tuple[tuple[str, int], ...], split: str) -> float:
    options = dict(items)
    drawn = lines("bigrams", options, split)
    return best_bits(np.array([[int(word[1:]) for word in line] for line in drawn]), options["symbols"])


def write(corpus: str, options: Mapping[str, int], out: Path) -> None:
    """Writes the splits of a synthetic task to `out`, one line a sequence."""
    for split in ("train", "valid", *test_sets(corpus)):
        write_split(out, split, [" ".join(line) for line in lines(corpus, options, split)])
        if corpus == "bigrams" and split != "train":
            bits = best_bits_of_bigrams(options, split)
            print(f"{split}: the best possible predictor loses {bits:.4f} bits a token", flush=True)
