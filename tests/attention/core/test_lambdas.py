"""λ⁺ and λ⁻: fixed or trainable, for a model, a layer or a head, tied, bounded."""

import itertools

import pytest
import torch
from fairseq.nan_detector import NanDetector
from tiny import OURS, build, logits, mechanism_of, model_input


def mechanisms(layers=2, heads=4, **chosen):
    """The daGPAM mechanisms of a whole model: encoder, decoder and cross attention in every layer."""
    shared = {}
    return [
        mechanism_of("dagpam", site, layer, layers, heads, 8, shared, **chosen)
        for site, layer in itertools.product(("encoder", "decoder", "cross"), range(layers))
    ]


def trainable(modules, name):
    found = {id(p): p for module in modules for p in getattr(module, name).parameters()}
    return list(found.values())


@pytest.mark.parametrize(
    ("scope", "parameters", "numbers"),
    [("model", 1, 1), ("layer", 6, 6), ("head", 6, 24)],
)
def test_scope_determines_which_attentions_share_a_lambda(scope, parameters, numbers):
    modules = mechanisms(lambda_scope=scope)
    for name in ("lambda_plus", "lambda_minus"):
        found = trainable(modules, name)
        assert len(found) == parameters
        assert sum(p.numel() for p in found) == numbers


def test_plus_and_minus_are_two_parameters_unless_tied():
    for module in mechanisms():
        assert module.lambda_plus.theta is not module.lambda_minus.theta
    for scope in ("model", "layer", "head"):
        for module in mechanisms(lambda_tied=True, lambda_plus=0.7, lambda_scope=scope):
            assert module.lambda_plus.theta is module.lambda_minus.theta
            assert torch.allclose(torch.as_tensor(module.lambda_minus()), torch.tensor(0.7))


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize("kind", ["fixed", "trainable"])
@pytest.mark.parametrize("scope", ["model", "layer", "head"])
def test_lambda_starts_at_the_value_of_its_flag(kind, scope, bound):
    for module in mechanisms(
        **{"lambda": kind}, lambda_scope=scope, lambda_max=bound, lambda_plus=0.25, lambda_minus=1.5
    ):
        assert torch.allclose(torch.as_tensor(module.lambda_plus()), torch.tensor(0.25), atol=1e-6)
        assert torch.allclose(torch.as_tensor(module.lambda_minus()), torch.tensor(1.5), atol=1e-6)


def test_fixed_lambda_is_no_parameter_and_not_in_the_state():
    for module in mechanisms(**{"lambda": "fixed"}):
        assert not [name for name, _ in module.named_parameters() if "lambda" in name]
        assert not [name for name in module.state_dict() if "lambda" in name]


@pytest.mark.parametrize("theta", [-50.0, -1.0, 0.0, 1.0, 50.0])
def test_bounded_lambda_is_max_times_sigmoid(theta):
    (module, *_) = mechanisms(lambda_max=0.8, lambda_plus=0.4, lambda_minus=0.4)
    with torch.no_grad():
        module.lambda_plus.theta.fill_(theta)
    expected = 0.8 / (1 + torch.exp(torch.tensor(-theta)))
    assert torch.allclose(module.lambda_plus().flatten(), expected.expand(4), atol=1e-6)
    assert module.lambda_plus().min() >= 0 and module.lambda_plus().max() <= 0.8


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_fixed_lambda_may_stand_at_its_bound(value):
    (module, *_) = mechanisms(**{"lambda": "fixed"}, lambda_plus=value, lambda_minus=value, lambda_max=1.0)
    assert module.lambda_plus() == value


def test_fairseq_can_look_for_nan_in_a_model_with_fixed_lambdas():
    model = build("language_modeling", OURS["language_modeling"], "--gpam-lambda", "fixed")
    with NanDetector(model):
        logits(model, model_input("language_modeling")).sum().backward()
