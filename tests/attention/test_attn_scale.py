"""AttnScale."""

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
