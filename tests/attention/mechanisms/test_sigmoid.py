"""Sigmoid attention."""

import math

import torch
from contract import Contract, row_by_row


class TestSigmoid(Contract):
    name = "sigmoid"
    variants = ({}, {"sigmoid_length": 7})

    def reference(self, mechanism, q, k, v, x, bias, visible):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) + bias

        def weigh(b, h, i, seen):
            length = mechanism.length or len(seen)
            return 1 / (1 + length * torch.exp(-scores[b, h, i, seen]))

        weights = row_by_row(q.size(2), k.size(2), visible, weigh)
        return weights @ v, weights
