"""HNAS."""

import torch
from contract import Contract, softmax_map
from test_dnas import doubly_normalised


class TestHnas(Contract):
    name = "hnas"
    mixes_queries = True

    def weights(self, mechanism, q, k, x, bias, visible):
        share = (1 / (1 + torch.exp(-mechanism.theta))).reshape(-1, 1, 1)
        return share * doubly_normalised(q, k, bias, visible) + (1 - share) * softmax_map(q, k, bias, visible)
