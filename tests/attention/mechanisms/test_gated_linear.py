"""Gated linear attention."""

import math

import pytest
import torch
from contract import WIDTH, Contract, settings

from fairseq_gpam.attention import AttentionInput, AttentionMask, Site, build_mechanism
from fairseq_gpam.attention.mechanisms.gated_linear import gated_linear_sums, gated_linear_weights


class TestGatedLinear(Contract):
    name = "gated_linear"
    needs_positions = True
    mixes_queries = True

    def attend(self, attention, x, padding, **arguments):
        return super().attend(attention, x, padding, need_weights=False, **arguments)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        batch, heads, length, width = q.shape
        logits = x @ mechanism.decay_down.weight.T @ mechanism.decay_up.weight.T + mechanism.decay_up.bias
        decays = (1 / (1 + torch.exp(-logits))) ** (1 / 16)
        gates = x @ mechanism.gate_proj.weight.T
        outputs, maps = [], []
        for b in range(batch):
            for h in range(heads):
                channels = slice(h * width, (h + 1) * width)
                state = torch.zeros(width, width, dtype=torch.float64)
                ages = torch.ones(length, width, dtype=torch.float64)
                for i in range(length):
                    if visible[b, h, -1, i]:
                        decay = decays[b, i, channels]
                        state = decay[:, None] * state + k[b, h, i][:, None] * v[b, h, i][None]
                        ages = torch.cat([ages[:i] * decay, ages[i:]])
                    seen = torch.tensor([float(j <= i and visible[b, h, -1, j]) for j in range(length)]).double()
                    maps.append((k[b, h] * ages) @ q[b, h, i] * seen / math.sqrt(width))
                    y = q[b, h, i] @ state / math.sqrt(width)
                    y = y / torch.sqrt((y * y).mean() + 1e-5) * mechanism.norm_weight
                    gate = gates[b, i, channels]
                    outputs.append(y * gate / (1 + torch.exp(-gate)))
        return torch.stack(outputs).view(q.shape), torch.stack(maps).view(batch, heads, length, length)


@pytest.mark.parametrize("length", [15, 16, 37])
def test_chunks_are_the_matrix(length):
    q, k, v = torch.randn(3, 2, 2, length, WIDTH, dtype=torch.float64)
    decay = -torch.rand(2, 2, length, WIDTH, dtype=torch.float64)
    output, _ = gated_linear_sums(q, k, v, decay, None)
    torch.testing.assert_close(output, gated_linear_weights(q, k, decay) @ v, rtol=1e-10, atol=1e-12)


def test_a_bias_is_refused():
    mechanism = build_mechanism("gated_linear", Site("decoder", 0, 1, 6, 2, 3), settings())
    q = torch.randn(1, 2, 1, 3)
    with pytest.raises(ValueError, match="bias in attn_mask is not allowed with --gpam-mechanism gated_linear"):
        mechanism(AttentionInput(q, q, q, AttentionMask(bias=torch.zeros(1, 1)), torch.randn(1, 1, 6)))


def test_keys_without_a_query_are_refused():
    mechanism = build_mechanism("gated_linear", Site("decoder", 0, 1, 6, 2, 3), settings())
    q, k = torch.randn(1, 2, 1, 3), torch.randn(1, 2, 2, 3)
    with pytest.raises(ValueError, match="2 keys for 1 queries; allowed: one key and value for each query"):
        mechanism(AttentionInput(q, k, k, AttentionMask(), torch.randn(1, 1, 6)))
