"""DNAS."""

import torch
from contract import Contract, future_gradients, row_by_row

from fairseq_gpam.attention import AttentionMask
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


def test_the_contracts_test_of_the_future_catches_dnas_in_a_decoder():
    mask = AttentionMask(causal=True)
    assert future_gradients(lambda q, k, v, x: dnas_weights(q, k, mask) @ v) > 1e-3
