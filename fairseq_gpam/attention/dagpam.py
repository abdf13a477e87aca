"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.affine import Affine, Coefficient
from fairseq_gpam.attention.base import Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.coefficients import LAMBDA_OPTIONS, build_lambda
from fairseq_gpam.attention.families import AffineMechanism
from fairseq_gpam.attention.masks import AttentionMask

DAGPAM_OPTIONS = (
    *LAMBDA_OPTIONS,
    Option(
        "negative_projection",
        str,
        "head",
        "one W_Q⁻ (head dimension squared) for each head, or one shared by the heads of a layer",
        choices=("head", "shared"),
    ),
    Option("negative_bias", bool, False, "W_Q⁻ has a bias"),
    Option("negative_init", str, "xavier", "how W_Q⁻ starts", choices=("xavier", "zero", "minus-identity")),
)


def dagpam_terms(negative_q: Tensor, lambda_plus: Coefficient, lambda_minus: Coefficient) -> Affine:
    """Returns the terms of P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), B × H × T × S.

    Shapes: negative_q (Q⁻ = ReLU(Q)W_Q⁻) B × H × T × D; λ⁺ and λ⁻ broadcastable to P. Heo & Choi 2024, arXiv
    2410.15578.
    """
    return Affine(positive=1 + lambda_plus, negative=lambda_minus, negative_q=negative_q)


class PerHeadLinear(nn.Linear):
    """A D × D linear map of its own for each head; the weight is (H·D) × D, the blocks of the heads stacked."""

    def __init__(self, head_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(head_dim, num_heads * head_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × T × D to the same shape."""
        bsz, _, length, _ = heads.shape
        blocks = self.weight.view(self.num_heads, self.head_dim, self.head_dim)
        # Queries lie in memory as T × B × H × D: for each head, T·B rows that need no copy.
        rows = heads.permute(1, 2, 0, 3).reshape(self.num_heads, length * bsz, self.head_dim)
        if self.bias is None:
            mapped = torch.bmm(rows, blocks.transpose(1, 2))
        else:
            mapped = torch.baddbmm(self.bias.view(self.num_heads, 1, self.head_dim), rows, blocks.transpose(1, 2))
        return mapped.view(self.num_heads, length, bsz, self.head_dim).permute(2, 0, 1, 3)


def build_negative_projection(site: Site, settings: Settings) -> nn.Linear:
    """Builds W_Q⁻ with the initial values that `--gpam-negative-init` names; a bias starts at 0."""
    head_dim, bias = site.head_dim, settings.negative_bias
    projection: nn.Linear
    if settings.negative_projection == "shared":
        projection = nn.Linear(head_dim, head_dim, bias=bias)
    else:
        projection = PerHeadLinear(head_dim, site.num_heads, bias)
    with torch.no_grad():
        for block in projection.weight.view(-1, head_dim, head_dim):
            if settings.negative_init == "xavier":
                nn.init.xavier_uniform_(block)
            elif settings.negative_init == "zero":
                nn.init.zeros_(block)
            else:
                nn.init.eye_(block).neg_()
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection


@register_mechanism
class DualGPAMAttention(AffineMechanism):
    """Two softmax branches over the same keys and values, the second one subtracted.

    Rows sum to 1+λ⁺−λ⁻, entries lie in [−λ⁻, 1+λ⁺]; λ⁺ = λ⁻ = 0 is softmax attention. What the paper leaves open (the
    λ's scope, start and bound, W_Q⁻ per head or shared, its bias and start) are options.
    """

    name = "dagpam"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax((ReLU(Q)W_Q⁻)Kᵀ/√D + M)"
    source = "Heo & Choi 2024, arXiv 2410.15578"
    row_sum = "1+λ⁺−λ⁻"
    cost = "1.5×"
    options = DAGPAM_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.lambda_plus = build_lambda("lambda_plus", self.name, site, settings)
        self.lambda_minus = build_lambda("lambda_minus", self.name, site, settings)
        self.negative_projection = build_negative_projection(site, settings)

    def terms(self, q: Tensor, k: Tensor, mask: AttentionMask, x: Tensor) -> Affine:
        return dagpam_terms(self.negative_projection(torch.relu(q)), self.lambda_plus(), self.lambda_minus())
