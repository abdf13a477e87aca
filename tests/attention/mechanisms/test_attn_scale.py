"""AttnScale."""

import pytest
import torch
from contract import BATCH, HEADS, LENGTH, PADDING, WIDTH, Contract, softmax_map, uniform_map
from tiny import mechanism_of

from fairseq_gpam.attention import FUTURE, AttentionInput, AttentionMask
from fairseq_gpam.modules import GPAMMultiheadAttention


class TestAttnScale(Contract):
    name = "attn_scale"

    def weights(self, mechanism, q, k, x, bias, visible):
        low = uniform_map(visible)
        high = softmax_map(q, k, bias, visible) - low
        return low + (1 + mechanism.scale.reshape(-1, 1, 1)) * high


def layer(site, spec="attn_scale", **role):
    """A self-attention with FeatScale whose parameters have left their initial values."""
    mechanism = mechanism_of(spec, site, layers=2, attn_scale_features=True)
    attention = GPAMMultiheadAttention(HEADS * WIDTH, HEADS, mechanism, self_attention=True, **role).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention


@pytest.mark.parametrize("site", ["encoder", "decoder"])
@pytest.mark.parametrize("padded", ["left", "right"])
def test_feat_scale_is_its_formula_token_by_token(site, padded):
    """An encoder's mean is over all tokens of the sentence, a decoder's over the tokens up to the current one."""
    attention = layer(site)
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor(PADDING[padded]).bool()
    mask = FUTURE if site == "decoder" else None
    found, _ = attention(x, x, x, padding, attn_mask=mask)
    features, attention.mechanism.features = attention.mechanism.features, None
    before, _ = attention(x, x, x, padding, attn_mask=mask)
    for sentence in range(BATCH):
        tokens = [i for i in range(LENGTH) if not padding[sentence, i]]
        for i in tokens:
            counted = [j for j in tokens if site == "encoder" or j <= i]
            mean = sum(before[j, sentence] for j in counted) / len(counted)
            expected = (1 + features.mean_scale) * mean + (1 + features.rest_scale) * (before[i, sentence] - mean)
            torch.testing.assert_close(found[i, sentence], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", ["attn_scale", "attn_scale:1,softmax:1"])
def test_feat_scale_step_by_step_and_after_a_change_of_beams_is_the_full_forward(spec):
    attention = layer("decoder", spec)
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor(PADDING["left"]).bool()
    order, state = torch.tensor([2, 2, 1]), {}
    for i in range(LENGTH):
        if i == 3:
            attention.reorder_incremental_state(state, order)
            x, padding = x[:, order], padding[order]
        step, _ = attention(x[i : i + 1], x[i : i + 1], x[i : i + 1], padding[:, i : i + 1], state)
        full, _ = attention(x, x, x, padding, attn_mask=FUTURE)
        seen = ~padding[:, i]
        torch.testing.assert_close(step[0][seen], full[i][seen], rtol=1e-9, atol=1e-9)


def test_feat_scale_is_refused_where_its_tokens_are_not_the_queries():
    with pytest.raises(ValueError, match="add_zero_attn=True are not allowed with --gpam-mechanism attn_scale"):
        layer("decoder", add_zero_attn=True)


@pytest.mark.parametrize("earlier", [1, 3, 9])
def test_feat_scale_without_the_sums_of_earlier_keys_is_refused(earlier):
    q, k = torch.randn(1, HEADS, 3, WIDTH), torch.randn(1, HEADS, 3 + earlier, WIDTH)
    x = torch.randn(1, 3, HEADS * WIDTH)
    inputs = AttentionInput(q, k, k, AttentionMask(causal=True), x, past={})
    with pytest.raises(ValueError, match=f"has no cached sums for {earlier} earlier keys; allowed: decoding from the"):
        layer("decoder").mechanism.float().after_projection(x, inputs)
