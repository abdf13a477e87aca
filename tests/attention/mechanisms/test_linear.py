"""Linear attention."""

import pytest
import torch
from contract import Contract, row_by_row
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput, AttentionMask


def features(vectors):
    return torch.where(vectors > 0, vectors + 1, torch.exp(vectors))


class TestLinear(Contract):
    name = "linear"

    def weights(self, mechanism, q, k, x, bias, visible):
        def weigh(b, h, i, seen):
            row = features(k[b, h, seen]) @ features(q[b, h, i]) * torch.exp(bias[b, h, i, seen])
            return row / row.sum()

        return row_by_row(visible, weigh)


@pytest.mark.parametrize(("name", "need_weights"), [("linear", False), ("linear", True), ("gated_linear", False)])
def test_sums_over_many_keys_do_not_overflow_in_fp16(name, need_weights):
    mechanism = mechanism_of(name, "decoder", heads=1, width=8).eval()
    q = torch.full((1, 1, 2000, 8), 3.0)
    values, x = torch.randn(1, 1, 2000, 8), torch.randn(1, 2000, 8)
    inputs = AttentionInput(q, q, values, AttentionMask(causal=True), x, need_weights=need_weights)
    expected, _ = mechanism(inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        found, _ = mechanism(inputs)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
