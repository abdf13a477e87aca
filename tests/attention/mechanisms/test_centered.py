"""Centred attention."""

from contract import Contract, softmax_map, uniform_map


class TestCentered(Contract):
    name = "centered"

    def weights(self, mechanism, q, k, x, bias, visible):
        return softmax_map(q, k, bias, visible) - uniform_map(visible)
