"""Softmax with a sink."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract
from fairseq.modules import MultiheadAttention
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput, AttentionMask
from fairseq_gpam.modules import GPAMMultiheadAttention


class TestSink(Contract):
    name = "sink"
    variants = ({}, {"sink_kind": "off-by-one"}, {"sink_kind": "weight"}, {"sink_start": -1.5})

    def row(self, mechanism, scores, head):
        powers = torch.exp(scores)
        sink = torch.exp(mechanism.logits[head]) if mechanism.weight is None else mechanism.weight[head].abs()
        return powers / (sink + powers.sum())


def sink(kind, **chosen):
    return mechanism_of("sink", sink_kind=kind, **chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_initial_weight_has_a_gradient(dtype):
    """At w = 0, d(softmax(S)V/(1 + w/Σexp S))/dw is −softmax(S)V/Σexp S."""
    mechanism = sink("weight").to(dtype).train()
    q, k, v = (torch.randn(1, HEADS, LENGTH, WIDTH, dtype=dtype) for _ in range(3))
    mechanism(AttentionInput(q, k, v, AttentionMask(), q))[0].sum().backward()
    scores = q.double() @ k.double().transpose(-1, -2) / WIDTH**0.5
    slope = -(scores.softmax(-1) @ v.double()).sum(-1) / scores.exp().sum(-1)
    # In bf16 the logit of the smallest weight, −69.3, is rounded by up to 0.25.
    rtol = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(mechanism.weight.grad.double(), slope.sum(-1)[0], rtol=rtol, atol=rtol / 10)


def test_what_has_no_gradient_is_refused():
    q = torch.randn(1, HEADS, LENGTH, WIDTH, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"--gpam-sink-kind 'weight'.*is not allowed in fp16.*allowed: fp32, bf16"):
        sink("weight").half().train()(AttentionInput(q, q, q, AttentionMask(), q))
    sink("weight").half().eval()(AttentionInput(q, q, q, AttentionMask(), q))


def test_off_by_one_is_stock_attention_with_a_zero_key():
    stock = MultiheadAttention(HEADS * WIDTH, HEADS, self_attention=True, add_zero_attn=True).double()
    ours = GPAMMultiheadAttention(HEADS * WIDTH, HEADS, sink("off-by-one"), self_attention=True).double()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(LENGTH, 2, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for hidden in (None, padding):
        expected, expected_weights = stock(x, x, x, key_padding_mask=hidden)
        output, weights = ours(x, x, x, key_padding_mask=hidden)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights, expected_weights[..., :-1], rtol=0, atol=1e-12)
