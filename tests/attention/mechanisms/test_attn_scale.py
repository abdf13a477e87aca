"""AttnScale."""

import math

import pytest
import torch
from contract import (
    BATCH,
    HEADS,
    LENGTH,
    PADDING,
    WIDTH,
    Contract,
    masks,
    settings,
    softmax_map,
    uniform_map,
)
from learning import build_model, check_stepwise, train

from fairseq_gpam.attention import FUTURE, AttentionInput, Site, build_mechanism
from fairseq_gpam.modules import GPAMMultiheadAttention


class TestAttnScale(Contract):
    name = "attn_scale"

    def weights(self, mechanism, q, k, x, bias, visible):
        low = uniform_map(visible)
        high = softmax_map(q, k, bias, visible) - low
        return low + (1 + mechanism.scale.reshape(-1, 1, 1)) * high


@pytest.mark.parametrize("row_sum", [0.4, 1.0, 2.5])
def test_a_uniform_subtraction_with_a_trained_ratio_is_attn_scale_times_the_row_sum(row_sum):
    """With W_Q⁻ kept at 0, P = s·((1+λ)·softmax − λ·U) with λ = r/(1−r), also after r was trained; U ignores a bias."""
    site = Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    uniform = {"negative_init": "zero", "negative_frozen": True}
    ours = build_mechanism("dagpam", site, settings(row_sum=row_sum, lambda_ratio=0.25, **uniform)).double()
    theirs = build_mechanism("attn_scale", site, settings(attn_scale_start=1 / 3)).double()
    assert sum(each.numel() for each in ours.parameters() if each.requires_grad) == HEADS
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.SGD([each for each in ours.parameters() if each.requires_grad], lr=0.05)
    for kind in ("causal, right", "boolean", "nothing"):
        inputs = AttentionInput(q, k, v, masks(kind, LENGTH)[0], q, 0.0, True)
        output, weights = ours(inputs)
        expected, expected_weights = theirs(inputs)
        torch.testing.assert_close(output, row_sum * expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(weights, row_sum * expected_weights, rtol=0, atol=1e-6)
        optimizer.zero_grad()
        output.square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            ratio = ours.lambda_minus() / (1 + ours.lambda_plus())
            theirs.scale.copy_((ratio / (1 - ratio)).flatten())
    assert not math.isclose(ratio.flatten()[0].item(), 0.25, abs_tol=1e-3)


def layer(site, spec="attn_scale", features=True, **role):
    """A self-attention whose parameters have left their initial values."""
    place = Site(site, 0, 2, HEADS * WIDTH, HEADS, WIDTH)
    mechanism = build_mechanism(spec, place, settings(attn_scale_features=features))
    attention = GPAMMultiheadAttention(HEADS * WIDTH, HEADS, mechanism, self_attention=True, **role).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention


def without_features(attention):
    """The output of the same attention before FeatScale, and FeatScale's two vectors."""
    features = attention.mechanism.features
    scales = features.mean_scale.detach().clone(), features.rest_scale.detach().clone()
    attention.mechanism.features = None
    return attention, *scales


@pytest.mark.parametrize("site", ["encoder", "decoder"])
@pytest.mark.parametrize("padded", ["left", "right"])
def test_feat_scale_is_its_formula_token_by_token(site, padded):
    """An encoder's mean is over all tokens of the sentence, a decoder's over the tokens up to the current one."""
    attention = layer(site)
    x = torch.randn(LENGTH, BATCH, HEADS * WIDTH, dtype=torch.float64)
    padding = torch.tensor(PADDING[padded]).bool()
    mask = FUTURE if site == "decoder" else None
    found, _ = attention(x, x, x, padding, attn_mask=mask)
    plain, mean_scale, rest_scale = without_features(attention)
    before, _ = plain(x, x, x, padding, attn_mask=mask)
    for sentence in range(BATCH):
        tokens = [i for i in range(LENGTH) if not padding[sentence, i]]
        for i in tokens:
            counted = [j for j in tokens if site == "encoder" or j <= i]
            mean = sum(before[j, sentence] for j in counted) / len(counted)
            expected = (1 + mean_scale) * mean + (1 + rest_scale) * (before[i, sentence] - mean)
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


def test_feat_scale_does_not_depend_on_the_future():
    attention = layer("decoder")
    x = torch.randn(LENGTH, 1, HEADS * WIDTH, dtype=torch.float64, requires_grad=True)
    output, _ = attention(x, x, x, attn_mask=FUTURE)
    for i in range(LENGTH - 1):
        (gradient,) = torch.autograd.grad(output[i].square().sum(), x, retain_graph=True)
        assert gradient[i + 1 :].abs().max() == 0 and gradient[: i + 1].abs().min() > 0


@pytest.mark.parametrize("task", ["translation", "language_modeling"])
def test_models_with_feat_scale_learn_and_decode(task):
    model = build_model(task, "attn_scale", attn_scale_features=True, cross_mechanism="softmax")
    first, last = train(model, task)
    assert last < 0.8 * first
    check_stepwise(model, task)


def test_feat_scale_is_refused_where_its_tokens_are_not_the_queries():
    with pytest.raises(ValueError, match=r"--gpam-attn-scale-features is not allowed for cross attention.*; allowed: "):
        build_mechanism("attn_scale", Site("cross", 0, 2, 8, 2, 4), settings(attn_scale_features=True))
    with pytest.raises(ValueError, match="add_zero_attn=True are not allowed with --gpam-mechanism attn_scale"):
        layer("decoder", add_zero_attn=True)
