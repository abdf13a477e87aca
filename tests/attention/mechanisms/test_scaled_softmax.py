"""(1+λ⁺)·softmax."""

import torch
from contract import Contract, softmax_map


class TestScaledSoftmax(Contract):
    name = "scaled_softmax"
    variants = ({}, {"lambda_scope": "layer", "lambda_max": 2.0}, {"lambda": "fixed", "lambda_plus": -0.4})

    def weights(self, mechanism, q, k, x, bias, visible):
        lam = mechanism.lambda_plus
        if lam.theta is None:
            value = lam.initial
        else:
            value = lam.theta if lam.bound is None else lam.bound / (1 + torch.exp(-lam.theta))
            value = value.reshape(-1, 1, 1)
        return (1 + value) * softmax_map(q, k, bias, visible)
