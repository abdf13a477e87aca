"""Value residual learning."""

import torch
from contract import HEADS, WIDTH, Contract, softmax_map
from test_neutreno import first_values


class TestValueResidual(Contract):
    name = "value_residual"
    needs_positions = True
    variants = ({}, {"value_residual_learned": True}, {"value_residual_own": 1.0, "value_residual_first": 0.0})

    def call(self, mechanism, q, k, v, mask, x, dropout_p=0.0, need_weights=False):
        mechanism.site.shared[mechanism.name, mechanism.site.name] = (mechanism.site.layer - 1, first_values(v))
        return super().call(mechanism, q, k, v, mask, x, dropout_p, need_weights)

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        own, first = mechanism.fixed if mechanism.factors is None else mechanism.factors
        return own * (weights @ v) + first * (weights @ first_values(v)), weights

    def attend(self, attention, x, padding, **arguments):
        # The first layer's cache, as it is after this step.
        site = attention.mechanism.site
        values = attention.v_proj(x).view(*x.shape[:2], HEADS, WIDTH).permute(1, 2, 0, 3)
        saved = attention._get_input_buffer(arguments.get("incremental_state"))
        if "prev_value" in saved:
            order = saved.get("beam_order")
            values = torch.cat([saved["prev_value"][slice(None) if order is None else order], values], dim=2)
        site.shared[attention.mechanism.name, site.name] = (site.layer - 1, first_values(values))
        return attention(x, x, x, key_padding_mask=padding, **arguments)
