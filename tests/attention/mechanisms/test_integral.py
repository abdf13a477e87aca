"""Integral attention."""

import math

import pytest
from contract import WIDTH, Contract, plain_softmax, row_by_row, settings

from fairseq_gpam.attention import Site, build_mechanism


class TestIntegral(Contract):
    name = "integral"
    variants = ({"integral_signals": WIDTH}, {"integral_signals": 1})
    model_options = {"integral_signals": 2}  # noqa: RUF012

    def reference(self, mechanism, q, k, v, x, bias, visible):
        part = q.size(-1) // mechanism.signals
        signals = [
            q[..., start : start + part] @ k[..., start : start + part].transpose(-1, -2) / math.sqrt(part)
            for start in range(0, q.size(-1), part)
        ]
        scores = sum(signals) / len(signals) + bias
        weights = row_by_row(q.size(2), k.size(2), visible, lambda b, h, i, seen: plain_softmax(scores[b, h, i, seen]))
        return weights @ v, weights


def test_signals_that_do_not_divide_the_head_are_refused():
    with pytest.raises(ValueError, match=r"--gpam-integral-signals 8 is .*12 channels in a head; allowed: .*12"):
        build_mechanism("integral", Site("encoder", 0, 1, 24, 2, 12), settings())
