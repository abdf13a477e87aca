"""LASER: exact where exponentials overflow, and never moved by a key that is hidden."""

import torch
from contract import LENGTH, Contract, softmax_map

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

    def test_a_row_with_one_key_has_its_value(self):
        q, k, v, x = (tensor.detach() * 100 for tensor in self.inputs(LENGTH))
        output = self.call(self.build({}), q, k, v, AttentionMask(causal=True), x)[0]
        torch.testing.assert_close(output[:, :, 0], v[:, :, 0])
