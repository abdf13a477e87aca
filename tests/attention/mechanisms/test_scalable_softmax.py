"""Scalable softmax."""

import math

from contract import HEADS, Contract, row_by_row, settings

from fairseq_gpam.attention import Site, build_mechanism


class TestScalableSoftmax(Contract):
    name = "scalable_softmax"

    def weights(self, mechanism, q, k, x, bias, visible):
        products = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))

        def weigh(b, h, i, seen):
            powers = len(seen) ** (mechanism.scale[h] * products[b, h, i, seen]) * bias[b, h, i, seen].exp()
            return powers / powers.sum()

        return row_by_row(visible, weigh)


def test_the_start_is_the_flags():
    mechanism = build_mechanism(
        "scalable_softmax", Site("encoder", 0, 1, 4, HEADS, 2), settings(scalable_softmax_start=0.7)
    )
    assert all(abs(value - 0.7) < 1e-6 for value in mechanism.scale.tolist())
    assert "s 0.700 0.700" in repr(mechanism)
