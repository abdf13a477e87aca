"""Differential attention, first version."""

import math

import pytest
import torch
from contract import WIDTH, Contract, softmax_map
from tiny import mechanism_of


class TestDifferential(Contract):
    name = "differential"
    heads = 4
    knows_heads = False

    def reference(self, mechanism, q, k, v, x, bias, visible):
        start = 0.8 - 0.6 * math.exp(-0.3 * mechanism.site.layer)
        lam = (
            math.e ** (mechanism.lambda_q1 @ mechanism.lambda_k1)
            - math.e ** (mechanism.lambda_q2 @ mechanism.lambda_k2)
            + start
        )
        outputs, maps = [], []
        for pair in range(self.heads // 2):
            one, two = [2 * pair], [2 * pair + 1]
            weights = softmax_map(q[:, one], k[:, one], bias[:, one], visible[:, one]) - lam * softmax_map(
                q[:, two], k[:, two], bias[:, two], visible[:, two]
            )
            mixed = weights @ torch.cat([v[:, one], v[:, two]], dim=-1)
            size = ((mixed**2).mean(-1, keepdim=True) + 1e-5) ** 0.5
            normed = (1 - start) * mixed / size * mechanism.norm_weight
            outputs += [normed[..., :WIDTH], normed[..., WIDTH:]]
            maps += [weights, weights]
        return torch.cat(outputs, dim=1), torch.cat(maps, dim=1)


def test_lambda_init_deepens_from_layer_zero():
    starts = [mechanism_of("differential", "decoder", layer, 3).lambda_init for layer in range(3)]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])
