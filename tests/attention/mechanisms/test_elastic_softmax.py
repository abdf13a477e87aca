"""Elastic softmax."""

import torch
from contract import Contract, plain_softmax


class TestElasticSoftmax(Contract):
    name = "elastic_softmax"
    variants = ({}, {"elastic_tau": 0.5})

    def row(self, mechanism, scores, head):
        return torch.clamp(plain_softmax(scores) + mechanism.tau[head] / len(scores), min=0)
