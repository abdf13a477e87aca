"""HNAS."""

import pytest
import torch
from contract import Contract, softmax_map
from test_dnas import doubly_normalised
from tiny import mechanism_of


class TestHnas(Contract):
    name = "hnas"
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        share = (1 / (1 + torch.exp(-mechanism.theta))).reshape(-1, 1, 1)
        return share * doubly_normalised(q, k, bias, visible) + (1 - share) * softmax_map(q, k, bias, visible)


def test_the_share_starts_at_the_flags_value():
    assert torch.sigmoid(mechanism_of("hnas", hnas_share=0.8).theta).tolist() == pytest.approx([0.8, 0.8])
