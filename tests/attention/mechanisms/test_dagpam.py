"""The daGPAM mechanism alone, B × H × T × D, against the formula in float64."""

import math

import pytest
import torch
from contract import Contract, settings, softmax_map
from tiny import attention

from fairseq_gpam.attention import FUTURE, AttentionInput, AttentionMask, Site, build_mechanism

BACKENDS = ("auto", "reference", "fused")
HEADS, WIDTH = 2, 4
PROJECTION = ("negative_projection.weight", "negative_projection.bias")


def mechanism(**chosen):
    return attention(embed_dim=HEADS * WIDTH, heads=HEADS, **chosen).mechanism


def heads(batch=2, queries=5, keys=None):
    return [torch.randn(batch, HEADS, length, WIDTH) for length in (queries, keys or queries, keys or queries)]


def attend(attend_with, q, k, v, mask=None, **kwargs):
    x = q.new_zeros(q.size(0), q.size(2), HEADS * WIDTH)
    return attend_with(AttentionInput(q, k, v, AttentionMask() if mask is None else mask, x, **kwargs))


class TestDagpam(Contract):
    name = "dagpam"
    variants = (
        {},
        {"negative_projection": "shared", "negative_bias": True, "lambda_scope": "layer"},
        {"lambda": "fixed", "backend": "reference"},
        {"negative_activation": "none", "negative_frozen": True},
        {"negative_source": "input", "negative_bias": True, "negative_activation": "none"},
        {"negative_source": "input"},
        {"row_sum": 0.7, "lambda_ratio": 0.6},
        {"lambda_source": "token", "lambda_plus_training": "fixed"},
        {"lambda_source": "token", "negative_source": "input", "backend": "fused"},
        {"negative_bias": True, "lambda_max": 2.0, "lambda_tied": True, "backend": "fused"},
    )

    def reference(self, mechanism, q, k, v, x, bias, visible):
        projection = mechanism.negative_projection
        second = []
        for head in range(q.size(1)):
            own = (
                slice(head * q.size(-1), (head + 1) * q.size(-1))
                if len(projection.weight) > q.size(-1)
                else slice(None)
            )
            offset = 0 if projection.bias is None else projection.bias[own]
            source = x if projection.weight.size(1) > q.size(-1) else q[:, head]
            source = source.clamp(min=0) if mechanism.activates else source
            second.append(source @ projection.weight[own].T + offset)
        plus = mechanism.lambda_plus()
        if hasattr(mechanism.lambda_minus, "projection"):
            logits = torch.einsum("btc,hc->bht", x, mechanism.lambda_minus.projection.weight)
            minus = (1 / (1 + torch.exp(-logits))).unsqueeze(-1)
        else:
            minus = mechanism.lambda_minus()
        weights = (1 + plus) * softmax_map(q, k, bias, visible)
        weights = weights - minus * softmax_map(torch.stack(second, dim=1), k, bias, visible)
        return weights @ v, weights


@pytest.mark.parametrize("plus", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("minus", [0.0, 0.3, 1.0])
def test_rows_sum_to_1_plus_minus_and_entries_stay_in_their_range(plus, minus):
    module = mechanism(**{"lambda": "fixed"}, lambda_plus=plus, lambda_minus=minus)
    q, k, v = heads(queries=9)
    _, weights = attend(module, 3 * q, k, v, AttentionMask.from_fairseq(None, FUTURE), need_weights=True)
    assert torch.allclose(weights.sum(-1), torch.full((2, HEADS, 9), 1 + plus - minus), atol=1e-5)
    assert weights.min() >= -minus - 1e-6
    assert weights.max() <= 1 + plus + 1e-6
    assert (weights.triu(1) == 0).all()


def fresh(**chosen):
    """A mechanism with its own initial values, which `tiny.attention` replaces."""
    return build_mechanism("dagpam", Site("encoder", 0, 1, 256, 4, 64), settings(**chosen))


@pytest.mark.parametrize("projection", ["head", "shared"])
def test_the_initial_projection_is_that_of_negative_init(projection):
    xavier = fresh(negative_projection=projection, negative_init="xavier").negative_projection.weight
    bound = math.sqrt(6 / (64 + 64))
    assert xavier.abs().max() <= bound
    assert abs(xavier.std().item() - bound / math.sqrt(3)) < 0.01 * bound
    zero = fresh(negative_projection=projection, negative_init="zero").negative_projection.weight
    assert (zero == 0).all()
    identity = fresh(negative_projection=projection, negative_init="minus-identity").negative_projection.weight
    for block in identity.view(-1, 64, 64):
        assert torch.equal(block, -torch.eye(64))


def test_names_and_initial_values_stay_those_of_the_checkpoints_and_results_there_are():
    torch.manual_seed(1)
    state = fresh(negative_bias=True).state_dict()
    half, projection = torch.full((4,), 0.5), state["negative_projection.weight"]
    assert list(state) == ["lambda_plus.theta", "lambda_minus.theta", *PROJECTION]
    assert torch.equal(state["lambda_plus.theta"], half) and torch.equal(state["lambda_minus.theta"], half)
    assert projection.shape == (256, 64)
    torch.testing.assert_close(projection[0, :3], torch.tensor([0.14936039, -0.17004342, -0.03137674]))
    # The next draw shows that nothing but W_Q⁻ was drawn.
    torch.testing.assert_close(torch.rand(1), torch.tensor([0.71941221]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_a_long_gradient_well(dtype):
    module = mechanism()
    q, k, v = (each.requires_grad_() for each in heads(batch=1500, queries=9))
    upstream = torch.randn_like(q)

    def results(*inputs):
        output = attend(module, *inputs)[0]
        return output, torch.autograd.grad(output, module.negative_projection.weight, upstream.to(output.dtype))[0]

    expected = results(q, k, v)
    module.to(dtype)
    found = results(*(each.to(dtype) for each in (q, k, v)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.float() - other).norm() <= 2e-2 * other.norm()


def test_a_frozen_projection_is_saved_and_gets_no_gradient():
    """DistributedDataParallel waits for the gradient of every parameter that requires one."""
    torch.manual_seed(1)
    trained = fresh(negative_bias=True)
    torch.manual_seed(1)
    frozen = fresh(negative_bias=True, negative_frozen=True)
    assert {name for name, each in frozen.named_parameters() if not each.requires_grad} == set(PROJECTION)
    for (name, one), (other_name, other) in zip(trained.state_dict().items(), frozen.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(one, other)
    q, k, v = (torch.randn(1, 4, 3, 64) for _ in range(3))
    frozen(AttentionInput(q, k, v, AttentionMask(), torch.zeros(1, 3, 256)))[0].square().sum().backward()
    assert all((each.grad is not None) == each.requires_grad for each in frozen.parameters())


@pytest.mark.parametrize("init", ["xavier", "zero"])
def test_the_projection_of_the_input_starts_as_fairseqs_query_projection_or_at_zero(init):
    projection = fresh(negative_source="input", negative_init=init, negative_bias=True).negative_projection
    bound = math.sqrt(6 / (256 + 256) / 2) if init == "xavier" else 0.0
    assert projection.weight.shape == (256, 256) and (projection.bias == 0).all()
    assert projection.weight.abs().max() <= bound
    assert abs(projection.weight.std().item() - bound / math.sqrt(3)) <= 0.01 * bound
