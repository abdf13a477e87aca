"""Elastic softmax."""

import torch
from contract import LENGTH, Contract, masks, plain_softmax

from fairseq_gpam.attention import AttentionMask


class TestElasticSoftmax(Contract):
    name = "elastic_softmax"
    variants = ({}, {"elastic_tau": 0.5})

    def row(self, mechanism, scores, head):
        return torch.clamp(plain_softmax(scores) + mechanism.tau[head] / len(scores), min=0)

    def test_hidden_keys_stay_at_zero_with_a_positive_tau(self):
        mechanism = self.build({"elastic_tau": 2.0})
        q, k, v, x = self.inputs(LENGTH)
        mask, _, visible = masks("causal, left", LENGTH)
        weights = self.call(mechanism, q, k, v, mask, x, need_weights=True)[1]
        assert weights[~visible].abs().max() == 0
        assert (weights[visible] > 0).all()

    def test_at_the_papers_start_a_row_with_one_key_is_zero(self):
        mechanism = self.build({})
        torch.nn.init.constant_(mechanism.tau, -1.0)
        q, k, v, x = self.inputs(LENGTH)
        weights = self.call(mechanism, q, k, v, AttentionMask(causal=True), x, need_weights=True)[1]
        assert weights[:, :, 0].abs().max() == 0 < weights[:, :, -1].max()
