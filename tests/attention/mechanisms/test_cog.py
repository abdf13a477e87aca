"""Cog attention."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, plain_softmax, softmax_map
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput


class TestCog(Contract):
    name = "cog"
    variants = ({}, {"cog_everywhere": True})
    model_options = {"cog_everywhere": True}  # noqa: RUF012

    def row(self, mechanism, scores, head):
        return torch.where(scores < 0, -1.0, 1.0) * plain_softmax(torch.where(scores < 0, -scores, scores))


def test_the_first_and_the_last_layer_keep_softmax():
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    mask, bias, visible = masks("bias, hiding, right", LENGTH)
    expected = softmax_map(q, k, bias, visible) @ v
    for layer in range(4):
        mechanism = mechanism_of("cog", "decoder", layer, 4)
        output = mechanism(AttentionInput(q, k, v, mask, q))[0]
        assert torch.allclose(output, expected, rtol=0, atol=1e-12) == (layer in (0, 3))
        assert ("softmax here" in repr(mechanism)) == (layer in (0, 3))
