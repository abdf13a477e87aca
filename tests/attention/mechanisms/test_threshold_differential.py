"""Threshold differential attention."""

import math

import torch
from contract import LENGTH, WIDTH, Contract, row_by_row

from fairseq_gpam.attention import AttentionMask


class TestThresholdDifferential(Contract):
    name = "threshold_differential"
    needs_positions = True
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        def view(q, k):
            scores = (q @ k.transpose(-1, -2)) / (q.norm(dim=-1)[..., None] * k.norm(dim=-1)[..., None, :]) + bias

            def weigh(b, h, i, seen):
                return torch.clamp(scores[b, h, i, seen] - math.sqrt(2 * math.log(len(seen)) / WIDTH), min=0) ** 2

            return row_by_row(visible, weigh)

        def second(projection):
            joined = x @ projection.weight.T + projection.bias
            return torch.stack([joined[..., h * WIDTH : (h + 1) * WIDTH] for h in range(self.heads)], dim=1)

        other = view(second(mechanism.second_q_proj), second(mechanism.second_k_proj))
        return view(q, k) - mechanism.strength.clamp(0, 1) * other

    def test_a_strength_outside_0_to_1_counts_as_its_bound(self):
        mechanism, made = self.build({}), self.inputs(LENGTH)
        outputs = {}
        for strength in (-2.0, 0.0, 1.0, 3.0):
            torch.nn.init.constant_(mechanism.strength, strength)
            outputs[strength] = self.call(mechanism, *made[:3], AttentionMask(causal=True), made[3])[0]
        assert torch.equal(outputs[-2.0], outputs[0.0])
        assert torch.equal(outputs[3.0], outputs[1.0])
        assert not torch.equal(outputs[0.0], outputs[1.0])
