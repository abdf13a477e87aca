"""Sigmoid attention."""

import torch
from contract import Contract


class TestSigmoid(Contract):
    name = "sigmoid"
    variants = ({}, {"sigmoid_length": 7})

    def row(self, mechanism, scores, head):
        return 1 / (1 + (mechanism.length or len(scores)) * torch.exp(-scores))
