"""NeuTRENO."""

import copy

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, softmax_map
from learning import build_model
from tiny import mechanism_of, translation_input

from fairseq_gpam.attention import AttentionInput, AttentionMask


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


def test_a_skipped_layer_is_refused():
    shared = {}
    layers = [mechanism_of("neutreno", "decoder", layer, 3, shared=shared) for layer in range(3)]
    q = torch.randn(1, HEADS, LENGTH, WIDTH)
    inputs = AttentionInput(q, q, q, AttentionMask(causal=True), q)
    layers[0](inputs)
    with pytest.raises(ValueError, match=r"all 3 decoder layers.*layer 2 followed 0.*--decoder-layerdrop"):
        layers[2](inputs)
    with pytest.raises(ValueError, match="layer 1 followed None"):
        layers[1](inputs)


def test_a_model_can_be_copied_after_a_forward():
    model = build_model("translation", "neutreno")
    model(**{name: value % 16 for name, value in translation_input().items()})
    copy.deepcopy(model)
