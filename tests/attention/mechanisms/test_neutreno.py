"""NeuTRENO."""

import copy

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map
from learning import build_model
from tiny import translation_input

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


def first_values(v):
    return 0.7 * v.flip(-1) + 0.1


class TestNeutreno(Contract):
    name = "neutreno"
    needs_positions = True

    def call(self, mechanism, q, k, v, mask, x, dropout_p=0.0, need_weights=False):
        current = v[..., v.size(-2) - q.size(-2) :, :]
        mechanism.site.shared[mechanism.name, mechanism.site.name] = (mechanism.site.layer - 1, first_values(current))
        return mechanism(AttentionInput(q, k, v, mask, x, dropout_p, need_weights))

    def reference(self, mechanism, q, k, v, x, bias, visible):
        weights = softmax_map(q, k, bias, visible)
        offset = k.size(2) - q.size(2)
        rows = []
        for i in range(q.size(2)):
            own = v[:, :, offset + i]
            row = (weights[:, :, i, :, None] * v).sum(2) + 0.4 * (first_values(own) - own)
            rows.append(row * visible[:, :, i].any(-1, keepdim=True))
        return torch.stack(rows, dim=2), weights

    def attend(self, attention, x, padding, **arguments):
        site = attention.mechanism.site
        values = attention.v_proj(x).view(*x.shape[:2], HEADS, WIDTH).permute(1, 2, 0, 3)
        site.shared[attention.mechanism.name, site.name] = (site.layer - 1, first_values(values))
        return attention(x, x, x, key_padding_mask=padding, **arguments)


def layers(number=3):
    shared = {}
    return [
        build_mechanism("neutreno", Site("decoder", i, number, HEADS * WIDTH, HEADS, WIDTH, shared), settings())
        for i in range(number)
    ], shared


def test_three_layers_share_the_first_ones_values():
    mechanisms, shared = layers()
    q, k, *values = torch.randn(5, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    mask, bias, visible = masks("causal", LENGTH)
    softmax = softmax_map(q, k, bias, visible)
    for mechanism, v in zip(mechanisms, values, strict=True):
        output = mechanism(AttentionInput(q, k, v, mask, q))[0]
        torch.testing.assert_close(output, softmax @ v + 0.4 * (values[0] - v), rtol=0, atol=1e-12)
    assert not shared


def test_a_skipped_layer_is_refused():
    mechanisms, _ = layers()
    q = torch.randn(1, HEADS, LENGTH, WIDTH)
    mask = masks("causal", LENGTH)[0]
    mechanisms[0](AttentionInput(q, q, q, mask, q))
    with pytest.raises(ValueError, match=r"all 3 decoder layers.*layer 2 followed 0.*--decoder-layerdrop"):
        mechanisms[2](AttentionInput(q, q, q, mask, q))
    with pytest.raises(ValueError, match="layer 1 followed None"):
        mechanisms[1](AttentionInput(q, q, q, mask, q))


def test_a_model_can_be_copied_after_a_forward():
    model = build_model("translation", "neutreno")
    model(**{name: value % 16 for name, value in translation_input().items()})
    copy.deepcopy(model)
