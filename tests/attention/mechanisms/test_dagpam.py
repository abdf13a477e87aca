"""The daGPAM mechanism alone, B × H × T × D, against the formula in float64."""

import pytest
import torch
from contract import Contract
from reference import dagpam_weights
from tiny import mechanism_of

from fairseq_gpam.attention import AttentionInput, AttentionMask

PROJECTION = ("negative_projection.weight", "negative_projection.bias")


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

    def weights(self, mechanism, q, k, x, bias, visible):
        return dagpam_weights(mechanism, q, k, x, bias, visible)


def fresh(**chosen):
    return mechanism_of("dagpam", heads=4, width=64, **chosen)


@pytest.mark.parametrize("projection", ["head", "shared"])
def test_the_initial_projection_may_be_zero_or_minus_the_identity(projection):
    assert not fresh(negative_projection=projection, negative_init="zero").negative_projection.weight.any()
    identity = fresh(negative_projection=projection, negative_init="minus-identity").negative_projection.weight
    assert all(torch.equal(block, -torch.eye(64)) for block in identity.view(-1, 64, 64))


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
