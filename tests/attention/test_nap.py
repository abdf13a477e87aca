"""NAP."""

import math

import torch
from contract import Contract, joined, row_by_row

from fairseq_gpam.attention import AttentionInput, AttentionMask


def gelu(values):
    return values * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))


class TestNap(Contract):
    name = "nap"
    variants = ({}, {"nap_output": "none"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) + bias

        def weigh(b, h, i, seen):
            row = scores[b, h, i, seen]
            if len(seen) == 1:
                return mechanism.bias[h].expand(1)
            deviation = row - row.mean()
            std = (deviation**2).mean() ** 0.5
            return mechanism.gain[h] * deviation / (std + 1e-3) + mechanism.bias[h]

        weights = row_by_row(q.size(2), k.size(2), visible, weigh)
        output = weights @ v
        if mechanism.norm is not None:
            rows = joined(output)
            centred = rows - rows.mean(-1, keepdim=True)
            normed = centred / ((centred**2).mean(-1, keepdim=True) + 1e-3) ** 0.5
            normed = gelu(normed * mechanism.norm.weight + mechanism.norm.bias)
            normed = normed * visible[:, 0].any(-1)[..., None]
            output = torch.stack(normed.split(q.size(-1), dim=-1), dim=1)
        return output, weights

    def test_a_row_with_one_key_gives_nothing_at_the_start(self):
        mechanism = self.build({"nap_output": "none"})
        torch.nn.init.zeros_(mechanism.bias)
        q, k, v, x = self.inputs(5)
        output, weights = mechanism(AttentionInput(q, k, v, AttentionMask(causal=True), x, 0.0, True))
        assert output[:, :, 0].abs().max() == 0 and weights[:, :, 0].abs().max() == 0
        output.sum().backward()
        assert q.grad.isfinite().all() and k.grad.isfinite().all()
