"""NAP."""

import math

import torch
from contract import Contract, joined, row_by_row

from fairseq_gpam.attention import AttentionInput, AttentionMask


def gelu(values):
    return values * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))


class TestNap(Contract):
    name = "nap"
    variants = ({}, {"nap_output": "layernorm-gelu"}, {"nap_output": "none"})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) + bias

        def weigh(b, h, i, seen):
            row = scores[b, h, i, seen]
            if len(seen) == 1:
                return mechanism.bias[h].expand(1)
            deviation = row - row.mean()
            std = (deviation**2).mean() ** 0.5
            return mechanism.gain[h] * deviation / (std + 1e-3) + mechanism.bias[h]

        weights = row_by_row(visible, weigh)
        output = weights @ v
        if mechanism.order == "gelu-layernorm":
            output = gelu(output)
        if mechanism.order == "layernorm-gelu":
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


def test_the_layers_norm_follows_the_output_projection():
    contract = TestNap()
    attention = contract.module({}, "encoder", self_attention=True)
    x = torch.randn(5, 2, contract.heads * 3, dtype=torch.float64)
    output, _ = attention(x, x, x)
    norm, attention.mechanism.norm = attention.mechanism.norm, None
    attention.mechanism.order = "none"
    pooled = {}
    attention.out_proj.register_forward_pre_hook(lambda module, args: pooled.update(heads=args[0]))
    attention(x, x, x)
    rows = gelu(pooled["heads"]) @ attention.out_proj.weight.T + attention.out_proj.bias
    centred = rows - rows.mean(-1, keepdim=True)
    expected = centred / ((centred**2).mean(-1, keepdim=True) + 1e-3) ** 0.5
    torch.testing.assert_close(output, expected * norm.weight + norm.bias)
