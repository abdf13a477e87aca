"""Differential attention, first version."""

import math

import pytest
import torch
from contract import LENGTH, WIDTH, Contract, masks, settings, softmax_map
from learning import build_model
from tiny import STOCK, build

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


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


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_exactly_the_papers_parameters(task):
    """A stock model's parameters and, in each attention, four vectors of D and one norm weight of 2D."""
    stock = sum(p.numel() for p in build(task, STOCK[task], words=12).parameters())
    ours = sum(p.numel() for p in build_model(task, "differential").parameters())
    attentions, width = {"translation": 6, "language_modeling": 2}[task], 8
    assert ours - stock == attentions * (4 * width + 2 * width)


def test_published_size_adds_less_than_a_thousandth():
    mechanism = build_mechanism("differential", Site("decoder", 0, 28, 3072, 24, 128), settings())
    assert sum(p.numel() for p in mechanism.parameters()) == 6 * 128
    assert 6 * 128 / (4 * 3072**2) < 1e-3


def test_lambda_init_deepens_from_layer_zero():
    starts = [
        build_mechanism("differential", Site("decoder", layer, 3, 8, 4, 2), settings()).lambda_init
        for layer in range(3)
    ]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="1 heads are not allowed"):
        build_mechanism("differential:1,softmax:3", Site("encoder", 0, 1, 8, 4, 2), settings())


def test_a_bias_for_each_head_is_refused():
    mechanism = build_mechanism("differential", Site("encoder", 0, 1, 4 * WIDTH, 4, WIDTH), settings())
    q = torch.randn(3, 4, LENGTH, WIDTH)
    with pytest.raises(ValueError, match="one matrix per head"):
        mechanism(AttentionInput(q, q, q, masks("bias for each head", LENGTH, heads=4)[0], q))
