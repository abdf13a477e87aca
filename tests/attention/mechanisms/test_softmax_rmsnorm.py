"""Softmax attention with an RMSNorm of each head."""

from contract import Contract, softmax_map


class TestSoftmaxRMSNorm(Contract):
    name = "softmax_rmsnorm"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        heads = weights @ v
        size = ((heads**2).sum(-1, keepdim=True) / heads.size(-1) + 1e-5) ** 0.5
        return heads / size * mechanism.norm_weight, weights
