import math

import pytest
import torch

from fairseq_gpam.analysis import induction

WORDS, LENGTH, SHARP = 12, 24, 50.0


def causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def attend(queries, keys):
    scores = (queries @ keys.T).masked_fill(~causal(len(queries)), -math.inf)
    return scores.softmax(dim=-1)


def induction_circuit(tokens):
    """Two heads built by hand: one attends to the previous token, one to what followed the current token earlier."""
    positions, words = torch.eye(LENGTH), torch.nn.functional.one_hot(tokens, WORDS).float()
    first = attend(SHARP * positions.roll(-1, dims=1), positions)
    before = first @ words
    before[0] = 0  # the first token has no previous one and attends to itself
    return first, attend(SHARP * words, before)


def test_scores_of_an_induction_head_built_by_hand():
    tokens = torch.cat([torch.randperm(WORDS), torch.randperm(WORDS)])
    tokens[WORDS:] = tokens[:WORDS]
    first, second = induction_circuit(tokens)
    assert induction.previous_token_score(first).item() >= 0.9
    assert induction.induction_score(second[None, None], tokens[None]).item() >= 0.9
    # neither head is one of the other kind
    assert induction.induction_score(first[None, None], tokens[None]).item() <= 0.1
    assert induction.previous_token_score(second).item() <= 0.1


def test_copying_score_against_the_full_map_from_token_to_logit():
    values, outputs = torch.randn(6, 8, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    embedding, unembedding = torch.randn(10, 8, dtype=torch.float64), torch.randn(10, 8, dtype=torch.float64)
    found = induction.copying_score(values, outputs, embedding, unembedding, 2)
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        full = (unembedding - unembedding.mean(dim=0)) @ outputs[:, part] @ values[part] @ embedding.T
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
