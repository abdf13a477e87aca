"""Shaped attention: identity plus centred softmax, each with a learned weight."""

from dataclasses import replace

import torch

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values
from fairseq_gpam.attention.core.lambdas import no_decay_parameter


@register_mechanism
class ShapedAttention(AffineMechanism):
    """Centred softmax self-attention plus a weighted identity; α = 0, β = 1, γ = 0 is softmax attention.

    U is uniform over the keys visible to a row, under a causal mask a running mean; where a query's own key is hidden
    there is no identity. As in bobby-he/simplified_transformers (arXiv 2311.01906), the identity replaces the skip
    connection around attention: a layer has none if all its heads are shaped. `--gpam-skip-weight 1` gives it one, and
    α = 1 adds the values to it; `--gpam-shaped-alpha 0` starts without them. Not provided from that code: identity
    value and output projections (except the first layer's values), a learned gain of the feed-forward branch, initially
    0.1, and a query projection initialised at 0.
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
        alpha, beta, gamma = (number.view(-1, 1, 1) for number in (self.alpha, self.beta, self.gamma))
        num_queries, num_keys = inputs.q.size(-2), inputs.k.size(-2)
        hidden = replace(inputs.mask, causal=False).hidden_keys(num_queries, num_keys, inputs.q.device)
        if hidden is not None:
            own = hidden.expand(*hidden.shape[:-2], num_queries, num_keys).diagonal(num_keys - num_queries, -2, -1)
            alpha = alpha * ~own.unsqueeze(-1)
        return AffineTerms(positive=beta, uniform=gamma, identity=alpha)

    def extra_repr(self) -> str:
        learned = f"α {format_values(self.alpha)}, β {format_values(self.beta)}, γ {format_values(self.gamma)}"
        return f"{super().extra_repr()}, {learned}"
