import math

import numpy as np
import pytest
import torch

from fairseq_gpam.__main__ import main
from fairseq_gpam.analysis import induction

WORDS, LENGTH, SHARP = 12, 24, 50.0


def causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def attend(queries, keys):
    scores = (queries @ keys.T).masked_fill(~causal(len(queries)), -math.inf)
    return scores.softmax(dim=-1)


def induction_circuit(tokens):
    """Two heads built by hand: one looks one place back, the next one for what followed its own token."""
    positions, words = torch.eye(LENGTH), torch.nn.functional.one_hot(tokens, WORDS).float()
    first = attend(SHARP * positions.roll(-1, dims=1), positions)
    before = first @ words
    before[0] = 0  # nothing stands before the first token, which can only look at itself
    return first, attend(SHARP * words, before)


def test_scores_of_an_induction_head_built_by_hand():
    tokens = torch.cat([torch.randperm(WORDS), torch.randperm(WORDS)])
    tokens[WORDS:] = tokens[:WORDS]
    first, second = induction_circuit(tokens)
    assert induction.previous_token_score(first).item() >= 0.9
    assert induction.induction_score(second[None, None], tokens[None]).item() >= 0.9
    # each head is no head of the other kind
    assert induction.induction_score(first[None, None], tokens[None]).item() <= 0.1
    assert induction.previous_token_score(second).item() <= 0.1


def test_scores_of_a_random_head():
    length, words = 96, 48
    tokens = torch.cat([torch.randperm(words)] * 2)
    weights = torch.randn(1, 8, length, length).masked_fill(~causal(length), -math.inf).softmax(dim=-1)
    assert induction.induction_score(weights, tokens[None]).max() <= 0.1
    assert induction.previous_token_score(weights).mean() <= 0.1
    shape = (4, 64, 256)
    values, outputs = torch.randn(shape).flatten(0, 1), torch.randn(shape).flatten(0, 1).T
    embedding, unembedding = torch.randn(200, 256), torch.randn(200, 256)
    assert induction.copying_score(values, outputs, embedding, unembedding, 4).abs().max() <= 0.1


def test_copying_score_against_the_full_map_from_token_to_logit():
    values, outputs = torch.randn(6, 8, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    embedding, unembedding = torch.randn(10, 8, dtype=torch.float64), torch.randn(10, 8, dtype=torch.float64)
    found = induction.copying_score(values, outputs, embedding, unembedding, 2)
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        full = unembedding @ outputs[:, part] @ values[part] @ embedding.T
        eigenvalues = torch.linalg.eigvals(full)
        assert found[head].item() == pytest.approx((eigenvalues.real.sum() / eigenvalues.abs().sum()).item(), rel=1e-5)
    copier = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64))[0]
    assert induction.copying_score(copier.T, copier, embedding, embedding, 1).item() == pytest.approx(1)
    assert induction.copying_score(-copier.T, copier, embedding, embedding, 1).item() == pytest.approx(-1)


def test_padding_and_unrepeated_tokens():
    weights = torch.full((1, 1, 4, 4), 0.25)
    assert induction.induction_score(weights, torch.arange(4)[None]).isnan().all()
    tokens = torch.tensor([[1, 2, 1, 2]])
    visible = torch.tensor([True, True, True, False])[None, None, :, None] & causal(4)
    # only the third query repeats and is a token: its key is the second
    assert induction.induction_score(weights, tokens, visible).item() == 0.25
    assert induction.previous_token_score(weights, visible).item() == 0.25


def test_sequences_follow_a_source_of_the_order_that_was_asked_for():
    (long,) = induction.markov_sequences(2, 3, 1, 20_000, concentration=0.05, seed=3)
    pairs, triples = np.zeros((3, 3)), np.zeros((3, 3, 3))
    np.add.at(pairs, (long[:-1], long[1:]), 1)
    np.add.at(triples, (long[:-2], long[1:-1], long[2:]), 1)

    def conditional_entropy(counts):
        shares = counts / counts.sum()
        inner = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
        return -(shares * np.log(np.where(inner > 0, inner, 1))).sum()

    assert conditional_entropy(triples) < 0.8 * conditional_entropy(pairs)
    one, other = induction.markov_sequences(1, 3, 2, 500, concentration=0.1)
    assert not np.array_equal(one, other)
    assert np.array_equal(induction.markov_sequences(1, 3, 2, 500, concentration=0.1)[0], one)
    with pytest.raises(ValueError, match=r"length 2, concentration 1\.0 are not allowed"):
        induction.markov_sequences(2, 3, 1, 2)


def test_the_command_writes_text(tmp_path):
    flags = "--train 3 --valid 2 --test 1 --length 9 --vocabulary 4"
    assert main(["ngrams", "--out", str(tmp_path), *flags.split()]) == 0
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        lines = (tmp_path / f"{split}.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count and all(len(line.split()) == 9 for line in lines)
        assert {word for line in lines for word in line.split()} <= {"t0", "t1", "t2", "t3"}
