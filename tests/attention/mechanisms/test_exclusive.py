"""Exclusive self-attention."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, settings, softmax_map

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism


class TestExclusive(Contract):
    name = "exclusive"
    needs_positions = True

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        offset = k.size(2) - q.size(2)
        rows = []
        for i in range(q.size(2)):
            y, own = (weights[:, :, i, :, None] * v).sum(2), v[:, :, offset + i]
            rows.append(y - (y * own).sum(-1, keepdim=True) * own / (own * own).sum(-1, keepdim=True))
        return torch.stack(rows, dim=2), weights


def test_the_output_is_orthogonal_to_the_own_value():
    mechanism = build_mechanism("exclusive", Site("decoder", 0, 2, HEADS * WIDTH, HEADS, WIDTH), settings())
    q, k, v = torch.randn(3, 2, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    output, _ = mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), torch.zeros(2, LENGTH, 6)))
    assert (output * v).sum(-1).abs().max() < 1e-12
    assert output[:, :, 0].abs().max() < 1e-12  # the first token sees itself alone
