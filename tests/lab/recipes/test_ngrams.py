import math
from collections import Counter

import numpy as np
import pytest

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.recipes import ngrams


def test_sequences_follow_a_source_of_the_order_that_was_asked_for():
    (long,) = ngrams.markov_sequences(2, 3, 1, 20_000, concentration=0.05, seed=3)
    pairs, triples = np.zeros((3, 3)), np.zeros((3, 3, 3))
    np.add.at(pairs, (long[:-1], long[1:]), 1)
    np.add.at(triples, (long[:-2], long[1:-1], long[2:]), 1)

    def conditional_entropy(counts):
        shares = counts / counts.sum()
        inner = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
        return -(shares * np.log(np.where(inner > 0, inner, 1))).sum()

    assert conditional_entropy(triples) < 0.8 * conditional_entropy(pairs)
    one, other = ngrams.markov_sequences(1, 3, 2, 500, concentration=0.1)
    assert not np.array_equal(one, other)
    assert np.array_equal(ngrams.markov_sequences(1, 3, 2, 500, concentration=0.1)[0], one)
    with pytest.raises(ValueError, match=r"length 2, concentration 1\.0 are not allowed"):
        ngrams.markov_sequences(2, 3, 1, 2)


def test_the_command_writes_text(tmp_path):
    flags = "--train 3 --valid 2 --test 1 --length 9 --vocabulary 4"
    assert main(["ngrams", "--out", str(tmp_path), *flags.split()]) == 0
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        lines = (tmp_path / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count and all(len(line.split()) == 9 for line in lines)
        assert {word for line in lines for word in line.split()} <= {"t0", "t1", "t2", "t3"}


@pytest.mark.parametrize("flag", ["order", "vocabulary", "length", "train", "concentration"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "two"])
def test_what_makes_no_sequences_is_refused(tmp_path, capsys, flag, value):
    with pytest.raises(SystemExit) as end:
        main(["ngrams", "--out", str(tmp_path / "out"), f"--{flag}", value])
    assert end.value.code == 2 and f"{value} is not allowed; allowed: a" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predictors_count_only_what_stood_before():
    vocabulary, prior = 3, 0.5
    sequences = ngrams.markov_sequences(1, vocabulary, 4, 12, seed=5)
    for context in (0, 1, 2):
        bits = 0.0
        for sequence in sequences.tolist():
            counts = Counter()
            for position, token in enumerate(sequence):
                before = tuple(sequence[max(0, position - context) : position])
                if position < context:
                    bits += math.log2(vocabulary)
                    continue
                seen = sum(counts[before, other] for other in range(vocabulary))
                bits -= math.log2((counts[before, token] + prior) / (seen + vocabulary * prior))
                counts[before, token] += 1
        found = ngrams.predictor_bits(sequences, context, vocabulary, prior)
        assert found == pytest.approx(bits / sequences.size, rel=1e-12)
