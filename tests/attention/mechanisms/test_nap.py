"""NAP."""

import torch
import torch.nn.functional as F
from contract import Contract, joined, row_by_row


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
            output = F.gelu(output, approximate="tanh")
        if mechanism.order == "layernorm-gelu":
            rows = joined(output)
            normed = F.layer_norm(rows, rows.shape[-1:], mechanism.norm.weight, mechanism.norm.bias, 1e-3)
            normed = F.gelu(normed, approximate="tanh") * visible[:, 0].any(-1)[..., None]
            output = torch.stack(normed.split(q.size(-1), dim=-1), dim=1)
        return output, weights


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
    rows = F.gelu(pooled["heads"], approximate="tanh") @ attention.out_proj.weight.T + attention.out_proj.bias
    torch.testing.assert_close(output, F.layer_norm(rows, rows.shape[-1:], norm.weight, norm.bias, 1e-3))
