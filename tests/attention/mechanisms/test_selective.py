"""Selective attention."""

import math

import torch
from contract import HEADS, Contract, plain_softmax, row_by_row

from fairseq_gpam.attention import AttentionMask


class TestSelective(Contract):
    name = "selective"
    needs_positions = True
    mixes_queries = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        zero = torch.zeros((), dtype=torch.float64)

        def weigh(b, h, i, seen):
            penalties = []
            for j in seen:
                selected = zero
                for later in range(j + 1, i):
                    if j != seen[0] and visible[b, h, -1, later] and scores[b, 0, later, j] > 0:
                        selected = selected + scores[b, 0, later, j]
                penalties.append(selected)
            return plain_softmax(scores[b, h, i, seen] - torch.stack(penalties))

        weights = row_by_row(q.size(2), k.size(2), visible, weigh)
        return weights @ v, weights


def test_what_a_token_selects_falls_for_later_tokens_only():
    mechanism = TestSelective().build({})
    q, k, v, x = TestSelective().inputs(5)
    with torch.no_grad():
        q[:, 0] = k[:, 0] = 0.0
        q[:, 0, 3] = 3.0
        k[:, 0, 1] = 3.0
    contract = TestSelective()
    weights = contract.call(mechanism, q, k, v, AttentionMask(causal=True), x, 0.0, True)[1]
    plain = (q @ k.transpose(-1, -2) / math.sqrt(3)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
    torch.testing.assert_close(weights[:, :, :4], plain[:, :, :4])
    assert (weights[:, 1 % HEADS, 4, 1] < 0.1 * plain[:, 1 % HEADS, 4, 1]).all()
