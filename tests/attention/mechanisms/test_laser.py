"""LASER: exact where exponentials overflow, and never moved by a key that is hidden."""

import pytest
import torch
from contract import LENGTH, Contract, masks, softmax_map
from reference import assert_same

from fairseq_gpam.attention import AttentionMask


class TestLaser(Contract):
    name = "laser"
    drops_weights = False

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        seen = weights.sum(-1, keepdim=True) > 0
        sums = torch.where(seen, weights @ torch.exp(v), 1.0)
        return torch.log(sums), weights

    def test_no_hidden_value_moves_a_row(self):
        q, k, v, x = (tensor.detach() for tensor in self.inputs(LENGTH))
        mechanism, mask = self.build({}), AttentionMask(causal=True)
        rows = self.call(mechanism, q, k, v, mask, x)[0]
        v[:, :, -1] = 1e6
        moved = self.call(mechanism, q, k, v, mask, x)[0]
        assert torch.equal(moved[:, :, :-1], rows[:, :, :-1])
        assert moved.isfinite().all()

    @pytest.mark.parametrize("size", [20, 1000])
    def test_values_whose_exponentials_overflow(self, kind, size):
        q, k, v, x = (tensor.detach().requires_grad_() for tensor in self.inputs(LENGTH))
        large = torch.zeros_like(v).index_fill(2, torch.tensor([2]), size) + v * torch.arange(1, 4).view(-1, 1, 1, 1)
        mask, bias, visible = masks(kind, LENGTH)
        output = self.call(self.build({}), q, k, large, mask, x)[0]

        log_weights = softmax_map(q, k, bias, visible).log().masked_fill(~visible, -torch.inf).unsqueeze(-1)
        seen = visible.any(-1)[..., None, None]
        terms = torch.where(seen, log_weights + large.unsqueeze(2), 0.0)
        expected = torch.where(seen.squeeze(-2), torch.logsumexp(terms, dim=-2), 0.0)
        assert_same(output, expected, (q, k, v))

    def test_values_whose_exponentials_overflow_half_precision_under_autocast(self):
        q, k, v, x = (tensor.detach().float() for tensor in self.inputs(LENGTH))
        mechanism, mask = self.build({}).float(), AttentionMask(causal=True)
        expected = self.call(mechanism, q, k, v + 13, mask, x)[0]
        with torch.autocast("cpu", dtype=torch.float16):
            output = self.call(mechanism, q, k, v + 13, mask, x)[0]
        torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=0)

    def test_sharp_weights_in_single_precision(self):
        q, k, v = (30 * torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8), 40 * torch.rand(1, 2, 40, 8) - 20)
        single, double = (
            self.call(self.build({}), q.to(kind), k.to(kind), v.to(kind), AttentionMask(causal=True), q.to(kind))[0]
            for kind in (torch.float32, torch.float64)
        )
        torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-4)
