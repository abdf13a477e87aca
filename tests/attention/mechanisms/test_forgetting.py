"""Forgetting attention."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, plain_softmax, row_by_row, settings

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism


class TestForgetting(Contract):
    name = "forgetting"
    needs_positions = True
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias
        logits = x @ mechanism.gate_proj.weight.T + mechanism.gate_proj.bias
        log_gates = -torch.log(1 + torch.exp(-logits))

        def weigh(b, h, i, seen):
            fading = [
                sum((log_gates[b, p, h] for p in range(j + 1, i + 1) if visible[b, h, -1, p]), torch.zeros(()).double())
                for j in seen
            ]
            return plain_softmax(scores[b, h, i, seen] + torch.stack(fading))

        return row_by_row(visible, weigh)


def test_the_gates_start_as_in_the_source():
    mechanism = build_mechanism("forgetting", Site("decoder", 0, 1, 512, 8, 64), settings())
    assert mechanism.gate_proj.bias.abs().max() == 0
    assert 0.018 < mechanism.gate_proj.weight.std() < 0.022


@pytest.mark.parametrize("mask", [AttentionMask(), AttentionMask(hidden=torch.ones(5, 5).triu(1).bool())])
@pytest.mark.parametrize("name", ["forgetting", "selective", "stick_breaking"])
def test_a_mask_that_is_not_the_future_is_refused(name, mask):
    mechanism = build_mechanism(name, Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH), settings())
    q = torch.randn(1, HEADS, LENGTH, WIDTH)
    with pytest.raises(ValueError, match=f"--gpam-mechanism {name} is causal.*allowed: decoder self-attention"):
        mechanism(AttentionInput(q, q, q, mask, torch.randn(1, LENGTH, HEADS * WIDTH)))


@pytest.mark.parametrize("name", ["forgetting", "selective"])
def test_earlier_keys_without_a_memory_of_them_are_refused(name):
    mechanism = build_mechanism(name, Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH), settings())
    k = torch.randn(1, HEADS, LENGTH, WIDTH)
    with pytest.raises(ValueError, match="no cached state for 4 earlier keys"):
        mechanism(AttentionInput(k[:, :, :1], k, k, AttentionMask(), torch.randn(1, 1, HEADS * WIDTH), past={}))
