"""Integral attention."""

import math

from contract import WIDTH, Contract, plain_softmax, row_by_row


class TestIntegral(Contract):
    name = "integral"
    variants = ({"integral_signals": WIDTH}, {"integral_signals": 1})
    model_options = {"integral_signals": 2}  # noqa: RUF012

    def weights(self, mechanism, q, k, x, bias, visible):
        part = q.size(-1) // mechanism.signals
        signals = [
            q[..., start : start + part] @ k[..., start : start + part].transpose(-1, -2) / math.sqrt(part)
            for start in range(0, q.size(-1), part)
        ]
        scores = sum(signals) / len(signals) + bias
        return row_by_row(visible, lambda b, h, i, seen: plain_softmax(scores[b, h, i, seen]))
