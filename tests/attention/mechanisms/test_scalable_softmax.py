"""Scalable softmax."""

import math

from contract import Contract, row_by_row


class TestScalableSoftmax(Contract):
    name = "scalable_softmax"

    def weights(self, mechanism, q, k, x, bias, visible):
        products = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))

        def weigh(b, h, i, seen):
            powers = len(seen) ** (mechanism.scale[h] * products[b, h, i, seen]) * bias[b, h, i, seen].exp()
            return powers / powers.sum()

        return row_by_row(visible, weigh)
