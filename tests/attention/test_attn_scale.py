"""AttnScale."""

import math

import pytest
import torch
from contract import HEADS, LENGTH, WIDTH, Contract, masks, settings, softmax_map, uniform_map

from fairseq_gpam.attention import AttentionInput, Site, build_mechanism


class TestAttnScale(Contract):
    name = "attn_scale"

    def reference(self, mechanism, q, k, v, x, bias, visible):
        low = uniform_map(visible)
        high = softmax_map(q, k, bias, visible) - low
        weights = low + (1 + mechanism.scale.reshape(-1, 1, 1)) * high
        return weights @ v, weights


def test_dagpam_without_its_projection_is_attn_scale():
    """Holds where the mask has no finite bias: a bias would shape daGPAM's negative branch."""
    site = Site("decoder", 0, 1, HEADS * WIDTH, HEADS, WIDTH)
    ours = build_mechanism("attn_scale", site, settings(attn_scale_start=0.7)).double()
    theirs = build_mechanism("dagpam", site, settings(lambda_plus=0.7, lambda_minus=0.7, negative_init="zero")).double()
    q, k, v = torch.randn(3, 3, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    for kind in ("nothing", "left", "a sentence of padding", "causal", "causal, right", "boolean"):
        mask = masks(kind, LENGTH)[0]
        one, other = (
            ours(AttentionInput(q, k, v, mask, q, 0.0, True)),
            theirs(AttentionInput(q, k, v, mask, q, 0.0, True)),
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("row_sum", [0.4, 1.0, 2.5])
def test_a_uniform_subtraction_with_a_trained_ratio_is_attn_scale_times_the_row_sum(row_sum):
    """With W_Q⁻ = 0 kept, P = s·((1+λ)·softmax − λ·U) with λ = r/(1−r), also after r was trained; U ignores a bias."""
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
