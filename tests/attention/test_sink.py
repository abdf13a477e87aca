"""Softmax with a sink."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, row_by_row, settings
from fairseq.modules import MultiheadAttention

from fairseq_gpam.attention import Site, build_mechanism
from fairseq_gpam.modules import GPAMMultiheadAttention


class TestSink(Contract):
    name = "sink"
    variants = ({}, {"sink_kind": "off-by-one"}, {"sink_start": -1.5})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / WIDTH**0.5 + bias

        def weigh(b, h, i, seen):
            powers = torch.exp(scores[b, h, i, seen])
            return powers / (torch.exp(mechanism.logits[h]) + powers.sum())

        weights = row_by_row(q.size(2), k.size(2), visible, weigh)
        return weights @ v, weights


def test_what_the_model_prints_names_the_sink():
    site = Site("encoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    shown = {
        kind: repr(build_mechanism("sink", site, settings(sink_kind=kind)))
        for kind in ("learned", "weight", "off-by-one")
    }
    assert ", s 0.000 0.000" in shown["learned"] and ", off by one" in shown["off-by-one"]
    assert ", weight 0.0" in shown["weight"]


def test_off_by_one_is_stock_attention_with_a_zero_key():
    stock = MultiheadAttention(HEADS * WIDTH, HEADS, self_attention=True, add_zero_attn=True).double()
    site = Site("encoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    ours = GPAMMultiheadAttention(
        HEADS * WIDTH, HEADS, build_mechanism("sink", site, settings(sink_kind="off-by-one")), self_attention=True
    ).double()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(LENGTH, 2, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for hidden in (None, padding):
        expected, expected_weights = stock(x, x, x, key_padding_mask=hidden)
        output, weights = ours(x, x, x, key_padding_mask=hidden)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, expected_weights[..., :-1], rtol=0, atol=1e-12)
