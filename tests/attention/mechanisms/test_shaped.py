"""Shaped attention."""

import torch
from contract import Contract, softmax_map, uniform_map


class TestShaped(Contract):
    name = "shaped"
    needs_positions = True

    def weights(self, mechanism, q, k, x, bias, visible):
        queries, keys = q.size(2), k.size(2)
        identity = torch.zeros(queries, keys, dtype=torch.float64)
        for i in range(queries):
            identity[i, keys - queries + i] = 1.0
        alpha, beta, gamma = (n.reshape(-1, 1, 1) for n in (mechanism.alpha, mechanism.beta, mechanism.gamma))
        own = identity * visible
        return alpha * own + beta * softmax_map(q, k, bias, visible) - gamma * uniform_map(visible)
