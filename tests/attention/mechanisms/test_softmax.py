"""Softmax attention."""

from contract import Contract, softmax_map


class TestSoftmax(Contract):
    name = "softmax"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        return weights @ v, weights
