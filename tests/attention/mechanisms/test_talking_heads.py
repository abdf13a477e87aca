"""Talking heads."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, plain_softmax, row_by_row
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput
from fairseq_gpam.attention.mechanisms.talking_heads import talking_heads_maps


class TestTalkingHeads(Contract):
    name = "talking_heads"
    variants = ({}, {"talking_heads_dropout": "after"})

    def weights(self, mechanism, q, k, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
        mixed = torch.stack(
            [sum(mechanism.mix_scores[g, f] * scores[:, f] for f in range(self.heads)) for g in range(self.heads)],
            dim=1,
        )
        mixed = mixed + bias
        maps = row_by_row(visible, lambda b, h, i, seen: plain_softmax(mixed[b, h, i, seen]))
        return torch.stack(
            [sum(mechanism.mix_weights[h, g] * maps[:, g] for g in range(self.heads)) for h in range(self.heads)], dim=1
        )


def test_dropout_before_the_second_mixture_reaches_every_head():
    """With W all ones, each head gets the sum of the dropped maps: the heads are equal, unless dropout comes later."""
    q, k = torch.randn(2, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    eye = torch.eye(LENGTH, dtype=torch.float64).expand(3, HEADS, LENGTH, LENGTH)
    for place in ("before", "after"):
        talking = mechanism_of("talking_heads", talking_heads_dropout=place).double()
        torch.nn.init.ones_(talking.mix_weights)
        output = talking(AttentionInput(q, k, eye, masks("nothing", LENGTH)[0], q, 0.5))[0]
        assert torch.equal(output[:, 0], output[:, 1]) == (place == "before")


def test_autocast_leaves_the_mixture_of_scores_in_fp32():
    q, k = 20 * torch.randn(2, 1, HEADS, LENGTH, WIDTH)
    mask, mix = masks("nothing", LENGTH)[0], 100 * torch.randn(HEADS, HEADS)
    expected = talking_heads_maps(q.half(), k.half(), mask, mix)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(talking_heads_maps(q.half(), k.half(), mask, mix), expected)
