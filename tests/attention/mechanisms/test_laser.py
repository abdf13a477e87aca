"""LASER: exact where exponentials overflow, and never moved by a key that is hidden."""

import pytest
import torch
from contract import LENGTH, Contract, masks, softmax_map

from fairseq_gpam.attention import AttentionMask


class TestLaser(Contract):
    name = "laser"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        seen = weights.sum(-1, keepdim=True) > 0
        sums = torch.where(seen, weights @ torch.exp(v), 1.0)
        return torch.log(sums), weights

    @pytest.mark.parametrize("kind_of_check", ["causal, left", "bias, hiding, right"])
    def test_gradcheck_with_dropout(self, variant, kind_of_check):
        mask, _, _ = masks(kind_of_check, LENGTH)
        q, k, v, x = self.inputs(LENGTH)
        with pytest.raises(ValueError, match=r"--attention-dropout 0\.4 is not allowed.*logarithm.*allowed: 0"):
            self.call(self.build(variant), q, k, v, mask, x, 0.4)

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

    def test_blocks_of_rows_are_one_block(self):
        mechanism = self.build({})
        q, k, v, x = self.inputs(37, 37)
        arguments = (q, k, v, AttentionMask(causal=True), x)
        output = self.call(mechanism, *arguments)[0]
        torch.testing.assert_close(output, self.reference(mechanism, q, k, v, x, *masks("causal", 37, 37)[1:])[0])
        for ours, theirs in zip(
            torch.autograd.grad(output.sum(), (q, k, v)),
            torch.autograd.grad(torch.log(softmax_map(q, k, *masks("causal", 37, 37)[1:]) @ v.exp()).sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
