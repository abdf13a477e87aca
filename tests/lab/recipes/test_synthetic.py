"""The synthetic tasks: what their lines promise, and the best possible loss."""

import itertools
import math

import numpy as np
import pytest

from fairseq_gpam.lab.recipes import synthetic, tasks

TASKS = [name for name in tasks.names() if tasks.load(name).data.corpus in synthetic.GENERATORS]


@pytest.mark.parametrize("name", TASKS)
def test_no_line_of_a_task_is_seen_twice_and_splits_differ(name, tmp_path):
    data = tasks.load(name).data
    small = {**data.options, "train": 500, "valid": 50, "test": 50}
    synthetic.write(data.corpus, small, tmp_path)
    texts = [path.read_text().splitlines() for path in sorted(tmp_path.glob("*.txt"))]
    lines = list(itertools.chain(*texts))
    assert len(set(lines)) == len(lines)
    (again := tmp_path / "again").mkdir()
    synthetic.write(data.corpus, small, again)
    assert [path.read_text().splitlines() for path in sorted(again.glob("*.txt"))] == texts


def test_the_best_predictor_of_bigrams_is_the_posterior_over_their_tables():
    """The mean probability of each line, over tables drawn from the prior, is the predictor's."""
    symbols, lines = 2, np.array(list(itertools.product(range(2), repeat=4)))
    tables = np.random.default_rng(1).dirichlet([synthetic.CONCENTRATION] * symbols, size=(100_000, symbols))
    for line in lines:
        exact = np.mean(np.prod([tables[:, a, b] for a, b in itertools.pairwise(line)], axis=0)) / symbols
        bits = synthetic.best_bits(line[None], symbols) * (len(line) + 1)
        assert bits == pytest.approx(-math.log2(exact), abs=0.05)
