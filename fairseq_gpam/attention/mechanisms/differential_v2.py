"""Differential attention, second version: minus a second softmax, weighted by a coefficient computed per token."""

import math

import torch
from torch import nn

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, split_heads, upcast


@register_mechanism
class DifferentialV2Attention(AffineMechanism):
    """Softmax attention minus a second softmax branch over the same keys, with a weight for each token and head.

    It adds a second query projection and one vector for each head, initialised as nn.Linear, as in the source, or by
    Xavier. In the source one projection without a bias gives both sets of queries, interleaved. Here the second
    projection has a bias and is initialised as fairseq's own, so that the two branches are alike.
    """

    name = "differential_v2"
    formula = "P = softmax(Q₁Kᵀ/√D + M) − sigmoid(X w)·softmax(Q₂Kᵀ/√D + M)"
    source = "Diff-Transformer V2, microsoft/unilm, January 2026"
    row_sum = "1−sigmoid(x·w)"
    cost = "1.5×, and a second query projection"
    why_never_neutral = "sigmoid(X w), the weight of its second softmax, is never 0"
    options = (
        Option(
            "differential_v2_init",
            str,
            "linear",
            "the initialisation of w, the projection that gives the second branch's weight",
            choices=("linear", "xavier"),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.second_q_proj = nn.Linear(site.embed_dim, site.num_heads * site.query_dim)
        nn.init.xavier_uniform_(self.second_q_proj.weight, gain=1 / math.sqrt(2))
        self.strength_proj = nn.Linear(site.embed_dim, site.num_heads, bias=False)
        if settings.differential_v2_init == "xavier":
            nn.init.xavier_uniform_(self.strength_proj.weight)

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        second_q = inputs.form.query(split_heads(self.second_q_proj(inputs.x), inputs.q.size(1)))
        strength = torch.sigmoid(upcast(self.strength_proj(inputs.x))).type_as(second_q)
        return AffineTerms(negative=split_heads(strength, strength.size(-1)), negative_q=second_q)
