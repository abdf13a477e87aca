"""Differential attention, second version."""

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


class TestDifferentialV2(Contract):
    name = "differential_v2"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        second = x @ mechanism.second_q_proj.weight.T + mechanism.second_q_proj.bias
        second = torch.stack([second[..., h * WIDTH : (h + 1) * WIDTH] for h in range(self.heads)], dim=1)
        strength = 1 / (1 + torch.exp(-(x @ mechanism.strength_proj.weight.T)))
        strength = strength.permute(0, 2, 1)[..., None]
        weights = softmax_map(q, k, bias, visible) - strength * softmax_map(second, k, bias, visible)
        return weights @ v, weights


def test_the_strength_starts_as_a_linear_map_or_by_xavier():
    bounds = {}
    for init in ("linear", "xavier"):
        site = Site("decoder", 1, 3, 400, 4, 100)
        mechanism = build_mechanism("differential_v2", site, settings(differential_v2_init=init))
        bounds[init] = mechanism.strength_proj.weight.abs().max().item()
        assert mechanism.second_q_proj.weight.abs().max().item() == pytest.approx((3 / 800) ** 0.5, rel=0.01)
    assert bounds["linear"] == pytest.approx((1 / 400) ** 0.5, rel=0.02)
    assert bounds["xavier"] == pytest.approx((6 / 404) ** 0.5, rel=0.02)


@pytest.mark.parametrize("kind", ["causal, left", "bias, hiding, right"])
def test_dagpam_with_its_own_projection_and_a_lambda_per_token_is_differential_v2(kind):
    """With λ⁺ = 0 fixed and no ReLU, the two differ in how they start (W_Q⁻ has no bias by default) and in their names.

    The original differs from both: it has twice the query heads, interleaved in one projection without a bias, and
    groups them over fewer keys and values.
    """
    site = Site("decoder", 1, 3, HEADS * WIDTH, HEADS, WIDTH)
    ours = build_mechanism(
        "dagpam",
        site,
        settings(
            lambda_source="token",
            lambda_plus=0,
            lambda_plus_training="fixed",
            negative_source="input",
            negative_activation="none",
            negative_bias=True,
        ),
    ).double()
    theirs = build_mechanism("differential_v2", site, settings()).double()
    with torch.no_grad():
        theirs.second_q_proj.bias.normal_()
    ours.negative_projection.load_state_dict(theirs.second_q_proj.state_dict())
    ours.lambda_minus.projection.load_state_dict(theirs.strength_proj.state_dict())
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    x = torch.randn(3, LENGTH, HEADS * WIDTH, dtype=torch.float64)
    inputs = AttentionInput(q, k, v, masks(kind, LENGTH)[0], x, 0.0, True)
    results = [mechanism(inputs) for mechanism in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(output.square().sum(), [strength.weight, second.weight, second.bias])
        for (output, _), strength, second in (
            (results[0], ours.lambda_minus.projection, ours.negative_projection),
            (results[1], theirs.strength_proj, theirs.second_q_proj),
        )
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
