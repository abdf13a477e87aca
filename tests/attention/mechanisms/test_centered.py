"""Centred attention."""

from contract import Contract, softmax_map, uniform_map


class TestCentered(Contract):
    name = "centered"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible) - uniform_map(visible)
        return weights @ v, weights
