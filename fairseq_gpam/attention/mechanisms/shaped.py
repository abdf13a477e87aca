"""Shaped attention: identity plus centred softmax, each with a learned weight."""

from dataclasses import replace

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values
from fairseq_gpam.attention.core.lambdas import no_decay_parameter
from fairseq_gpam.attention.core.masks import AttentionMask


def shaped_terms(alpha: Tensor, beta: Tensor, gamma: Tensor, own_visible: Tensor | None) -> AffineTerms:
    """Returns P = α·I + β·softmax(QKᵀ/√D + M) − γ·U, B × H × T × S, U uniform over the keys visible to a row.

    α, β, γ are broadcastable to P; `own_visible`, broadcastable to B × H × T × 1, is false where a query's own key,
    S−T+i, is hidden, which removes the identity there. Noci et al. 2023, arXiv 2306.17759, with the three weights
    learned per head from 1 as in He & Hofmann 2023, arXiv 2311.01906, and a running mean for U under a causal mask as
    in bobby-he/simplified_transformers.
    """
    identity = alpha if own_visible is None else alpha * own_visible
    return AffineTerms(positive=beta, uniform=gamma, identity=identity)


def own_key_visible(mask: AttentionMask, num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
    """Returns whether query i may see its own key S−T+i, broadcastable to B × H × T × 1; None if all may."""
    hidden = replace(mask, causal=False).hidden_keys(num_queries, num_keys, device)
    if hidden is None:
        return None
    square = hidden.expand(*hidden.shape[:-2], num_queries, num_keys)
    return ~square.diagonal(num_keys - num_queries, dim1=-2, dim2=-1).unsqueeze(-1)


@register_mechanism
class ShapedAttention(AffineMechanism):
    """Centred softmax self-attention plus a weighted identity; α = 0, β = 1, γ = 0 is softmax attention.

    As in bobby-he/simplified_transformers (arXiv 2311.01906), the identity replaces the skip connection around
    attention: a layer has none if all its heads are shaped. `--gpam-skip-weight 1` gives it one, and α = 1 adds the
    values to it; `--gpam-shaped-alpha 0` starts without them. Not provided from that code: identity value and output
    projections (except the first layer's values), a learned gain of the feed-forward branch, initially 0.1, and a
    query projection initialised at 0.
    """

    name = "shaped"
    formula = "P = α·I + β·softmax(QKᵀ/√D + M) − γ·U"
    source = "Noci et al. 2023, arXiv 2306.17759; learned α, β, γ: arXiv 2311.01906"
    row_sum = "α+β−γ"
    cost = "1×, and a mean of the values"
    default_skip_weight = 0.0
    neutral = (("shaped_alpha", 0.0), ("shaped_beta", 1.0), ("shaped_gamma", 0.0))
    sites = ("encoder", "decoder")
    key_positions = "own"
    options = (
        Option("shaped_alpha", float, 1.0, "the initial α, the weight of the identity"),
        Option("shaped_beta", float, 1.0, "the initial β, the weight of the softmax"),
        Option("shaped_gamma", float, 1.0, "the initial γ, the weight of the uniform part, which is subtracted"),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.alpha = no_decay_parameter(torch.full((site.num_heads,), settings.shaped_alpha))
        self.beta = no_decay_parameter(torch.full((site.num_heads,), settings.shaped_beta))
        self.gamma = no_decay_parameter(torch.full((site.num_heads,), settings.shaped_gamma))

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        own_visible = own_key_visible(inputs.mask, inputs.q.size(-2), inputs.k.size(-2), inputs.q.device)
        alpha, beta, gamma = (number.view(-1, 1, 1) for number in (self.alpha, self.beta, self.gamma))
        return shaped_terms(alpha, beta, gamma, own_visible)

    def extra_repr(self) -> str:
        learned = f"α {format_values(self.alpha)}, β {format_values(self.beta)}, γ {format_values(self.gamma)}"
        return f"{super().extra_repr()}, {learned}"
