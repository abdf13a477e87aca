"""The sources of daGPAM's λ's: numbers, the token, or a ratio with a fixed row sum."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, masks
from tiny import logits, mechanism_of, model_input, model_of

from fairseq_gpam.attention import AttentionInput
from fairseq_gpam.attention.core.measures import mean_lambda


def mechanism(**chosen):
    return mechanism_of("dagpam", "decoder", layers=2, **chosen)


def test_a_lambda_per_token_is_near_one_half_at_the_start_and_reads_the_token_alone():
    module = mechanism(lambda_source="token").lambda_minus
    x = torch.randn(4, 9, HEADS * WIDTH)
    found = module(x)
    assert found.shape == (4, HEADS, 9, 1)
    torch.testing.assert_close(found[1:2, :, 3:4], module(x[1:2, 3:4]))
    assert 0.3 < found.mean() < 0.7


def test_the_mean_of_a_lambda_leaves_padding_out():
    values = torch.tensor([[[1.0, 2.0, 30.0]], [[4.0, 50.0, 60.0]], [[7.0, 8.0, 9.0]]]).unsqueeze(-1)
    tokens = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    found = mean_lambda(values, tokens)
    assert found[:2].flatten().tolist() == [1.5, 4.0] and found[2].isnan().all()


def test_a_group_of_heads_may_have_lambdas_per_token():
    flags = ("--gpam-mechanism", "dagpam:1,scaled_softmax:1", "--gpam-lambda-source", "token")
    model = model_of("translation", *flags)
    assert logits(model, model_input("translation")).isfinite().all()
    assert model.decoder.layers[0].encoder_attn.mechanism.groups["dagpam"].lambda_minus.projection.weight.size(0) == 1


@pytest.mark.parametrize("scope", ["model", "layer", "head"])
@pytest.mark.parametrize(("row_sum", "start"), [(1.0, None), (0.4, 0.1), (2.5, 0.9)])
def test_the_row_sum_is_held_wherever_the_ratio_goes(row_sum, start, scope):
    module = mechanism(row_sum=row_sum, lambda_ratio=start, lambda_scope=scope)
    (theta,) = (parameter for name, parameter in module.named_parameters() if "lambda" in name)
    assert theta.numel() == (HEADS if scope == "head" else 1) and theta.param_group == "gpam_lambda"
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH)
    mask, _, visible = masks("causal, left", LENGTH)
    seen = visible.any(-1)
    for ratio in (1 / 3 if start is None else start, 0.01, 0.5, 0.95):
        plus, minus = module.lambda_plus(), module.lambda_minus()
        torch.testing.assert_close(1 + plus - minus, torch.full_like(plus, row_sum), rtol=1e-5, atol=0)
        torch.testing.assert_close(minus / (1 + plus), torch.full_like(plus, ratio), rtol=1e-5, atol=0)
        inputs = AttentionInput(q, k, v, mask, torch.zeros(3, LENGTH, HEADS * WIDTH), need_weights=True)
        sums = module(inputs)[1].sum(-1)[seen]
        torch.testing.assert_close(sums, torch.full_like(sums, row_sum), rtol=1e-4, atol=0)
        following = {0.01: 0.5, 0.5: 0.95}.get(ratio, 0.01)
        with torch.no_grad():
            theta.fill_(following).logit_()


def test_the_gradient_of_the_ratio_moves_both_lambdas():
    """dλ⁺/dθ = dλ⁻/dθ = λ⁻, since both differ by a constant and λ⁻ = s·exp(θ)."""
    module = mechanism(row_sum=0.7, lambda_ratio=0.6)
    assert module.lambda_plus.theta is module.lambda_minus.theta
    for one in (module.lambda_plus, module.lambda_minus):
        (gradient,) = torch.autograd.grad(one().sum(), one.theta)
        torch.testing.assert_close(gradient, torch.full((HEADS,), 0.7 * 0.6 / 0.4))


def test_layers_of_one_scope_share_the_ratio():
    shared = {}
    layers = [
        mechanism_of("dagpam", "decoder", layer, 2, shared=shared, row_sum=0.8, lambda_scope="model")
        for layer in (0, 1)
    ]
    assert len({id(theta) for each in layers for name, theta in each.named_parameters() if name.endswith("theta")}) == 1


def test_without_a_row_sum_the_default_ratio_is_that_of_the_default_lambdas():
    free, held = mechanism(), mechanism(row_sum=1)
    for name in ("lambda_plus", "lambda_minus"):
        torch.testing.assert_close(getattr(held, name)(), getattr(free, name)())
