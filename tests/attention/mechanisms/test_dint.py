"""DINT."""

import math

import torch
from contract import WIDTH, Contract, softmax_map


class TestDint(Contract):
    name = "dint"
    heads = 4
    needs_positions = True
    mixes_queries = True
    knows_heads = False

    def pair_weights(self, mechanism, q, k, bias, visible):
        """A₁ − λA₂ + λG, B × H/2 × T × S, row by row."""
        vectors = (mechanism.lambda_q1, mechanism.lambda_k1, mechanism.lambda_q2, mechanism.lambda_k2)
        strength = torch.exp(vectors[0] @ vectors[1]) - torch.exp(vectors[2] @ vectors[3])
        strength = strength + 0.8 - 0.6 * math.exp(-0.3 * mechanism.site.layer)
        maps = softmax_map(q, k, bias, visible)
        first, second = maps[:, 0::2], maps[:, 1::2]
        result = []
        for b in range(q.size(0)):
            causal = mechanism.site.name == "decoder" or not visible.triu(1).any()
            shown = [i for i in range(q.size(2)) if visible[b, 0, :, i].any()]
            rows = []
            for i in range(q.size(2)):
                counted = [j for j in shown if not causal or j <= i]
                mean = sum(first[b, :, j] for j in counted) / max(len(counted), 1)
                row = first[b, :, i] + strength * (mean - second[b, :, i])
                rows.append(row * visible[b, 0, i].any())
            result.append(torch.stack(rows, dim=1))
        return torch.stack(result)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = self.pair_weights(mechanism, q, k, bias, visible)
        values = torch.cat([v[:, 0::2], v[:, 1::2]], dim=-1)
        output = weights @ values
        output = output / (output.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mechanism.norm_weight
        output = output * (0.2 + 0.6 * math.exp(-0.3 * mechanism.site.layer))
        output = torch.stack([output[..., :WIDTH], output[..., WIDTH:]], dim=2).flatten(1, 2)
        return output, weights.repeat_interleave(2, dim=1)


class TestDintEncoder(TestDint):
    needs_positions = False
