"""Value residual learning."""

import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


def first_values(v):
    return 0.7 * v.flip(-1) + 0.1


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
            values = torch.cat([saved["prev_value"], values], dim=2)
        site.shared[attention.mechanism.name, site.name] = (site.layer - 1, first_values(values))
        return attention(x, x, x, key_padding_mask=padding, **arguments)


def test_three_layers_share_the_first_ones_values():
    shared = {}
    mechanisms = [
        build_mechanism("value_residual", Site("decoder", i, 3, HEADS * WIDTH, HEADS, WIDTH, shared), settings())
        for i in range(3)
    ]
    q, k, *values = torch.randn(5, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    mask, bias, visible = masks("causal", LENGTH)
    weights = softmax_map(q, k, bias, visible)
    for layer, (mechanism, v) in enumerate(zip(mechanisms, values, strict=True)):
        output = mechanism(AttentionInput(q, k, v, mask, q))[0]
        expected = weights @ v if layer == 0 else weights @ (v + values[0]) / 2
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    assert not shared
