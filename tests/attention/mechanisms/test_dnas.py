"""DNAS."""

import pytest
import torch
from contract import Contract, future_gradients, plain_softmax, row_by_row, settings

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.attention.mechanisms.dnas import dnas_weights


def doubly_normalised(q, k, bias, visible):
    """Columns first: exp(s_ij)/Σ_i exp(s_ij) over the queries that are not padding; then rows."""
    scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5 + bias
    batch, heads, length = scores.shape[:3]
    present = visible.any(2)  # B × H × S: a position that some query sees is not padding
    shares = torch.zeros_like(scores)
    for b in range(batch):
        for h in range(heads):
            for j in range(length):
                asking = [i for i in range(length) if visible[b, h, i, j] and present[b, h, i]]
                asking = asking or list(range(length))
                total = torch.exp(scores[b, h, asking, j]).sum()
                column = torch.exp(scores[b, h, :, j]) / total
                shares = shares.index_put(
                    (torch.tensor(b), torch.tensor(h), torch.arange(length), torch.tensor(j)), column
                )
    return row_by_row(visible, lambda b, h, i, seen: shares[b, h, i, seen] / shares[b, h, i, seen].sum())


class TestDnas(Contract):
    name = "dnas"
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        return doubly_normalised(q, k, bias, visible)


def test_the_future_test_catches_dnas_in_a_decoder():
    def dnas(q, k, v, x):
        return dnas_weights(q, k, AttentionMask(causal=True)) @ v

    def softmax(q, k, v, x):
        site = Site("decoder", 0, 1, q.size(1) * q.size(-1), q.size(1), q.size(-1))
        return build_mechanism("softmax", site, settings())(AttentionInput(q, k, v, AttentionMask(causal=True), x))[0]

    assert future_gradients(dnas) > 1e-3
    assert future_gradients(softmax) == 0


def test_a_single_query_gets_uniform_weights():
    """With one query every key's share is 1: the weights are uniform."""
    q = torch.randn(1, 1, 1, 3, dtype=torch.float64)
    assert dnas_weights(q, q, AttentionMask()).item() == 1
    assert plain_softmax(torch.zeros(2)).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="as many queries as keys"):
        dnas_weights(q, q.expand(1, 1, 4, 3), AttentionMask())
