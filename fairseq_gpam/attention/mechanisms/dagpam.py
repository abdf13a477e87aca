"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import AffineTerms, Coefficient
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, refuse_options, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, split_heads
from fairseq_gpam.attention.core.lambdas import (
    LAMBDA_MINUS_OPTIONS,
    LAMBDA_PLUS_OPTIONS,
    LAMBDA_SOURCE_OPTIONS,
    build_lambdas,
)

DAGPAM_OPTIONS = (
    *LAMBDA_PLUS_OPTIONS,
    *LAMBDA_MINUS_OPTIONS,
    *LAMBDA_SOURCE_OPTIONS,
    Option(
        "negative_projection",
        str,
        "head",
        "one W_Q⁻ (D × D, D the head dimension) for each head, or one shared by the heads of a layer",
        choices=("head", "shared"),
    ),
    Option("negative_bias", bool, False, "give W_Q⁻ a bias"),
    Option("negative_init", str, "xavier", "the initialisation of W_Q⁻", choices=("xavier", "zero", "minus-identity")),
    Option(
        "negative_activation",
        str,
        "relu",
        "the activation applied to the input of W_Q⁻ (see --gpam-negative-source)",
        choices=("relu", "none"),
    ),
    Option(
        "negative_frozen",
        bool,
        False,
        "keep W_Q⁻ and its bias at their initial values; the checkpoint still contains them",
    ),
    Option(
        "negative_source",
        str,
        "query",
        "the input of W_Q⁻: the queries, or the layer's input, which W_Q⁻ then projects to the queries of all heads",
        choices=("query", "input"),
    ),
)


class PerHeadLinear(nn.Linear):
    """A D × D linear map for each head; the weight is (H·D) × D, the maps of the heads stacked."""

    def __init__(self, head_dim: int, num_heads: int, bias: bool) -> None:
        super().__init__(head_dim, num_heads * head_dim, bias=bias)
        self.num_heads = num_heads
        self.head_dim = head_dim

    def forward(self, heads: Tensor) -> Tensor:
        """Maps B × H × T × D to the same shape."""
        bsz, _, length, width = heads.shape
        # H × (T·B) × D, which needs no copy in the memory layout of fairseq's projections.
        rows = heads.permute(1, 2, 0, 3).flatten(1, 2)
        matrices = self.weight.view(self.num_heads, self.head_dim, self.head_dim).transpose(1, 2)
        if self.bias is None:
            mapped = torch.bmm(rows, matrices)
        else:
            mapped = torch.baddbmm(self.bias.view(self.num_heads, 1, self.head_dim), rows, matrices)
        return mapped.view(self.num_heads, length, bsz, width).permute(2, 0, 1, 3)


def build_negative_projection(site: Site, settings: Settings) -> nn.Linear:
    """Returns W_Q⁻, initialised by `--gpam-negative-init`, its bias at 0; not trained if `--gpam-negative-frozen`.

    It maps the queries, head by head, or the layer's input, C → H·D. Raises ValueError for options that do not fit.
    """
    head_dim, bias, gain = site.query_dim, settings.negative_bias, 1.0
    projection: nn.Linear
    if settings.negative_source == "input":
        refusals: tuple[tuple[str, object, str], ...] = (("negative_projection", "head", "head"),)
        if settings.negative_init != "zero":
            refusals += (("negative_init", "xavier", "xavier, zero"),)
        companion = "--gpam-negative-source 'input', where W_Q⁻ maps the model dimension to all heads"
        refuse_options(settings, companion, refusals)
        # As fairseq's query projection.
        projection, gain = nn.Linear(site.embed_dim, site.num_heads * head_dim, bias=bias), 1 / math.sqrt(2)
    elif settings.negative_projection == "shared":
        projection = nn.Linear(head_dim, head_dim, bias=bias)
    else:
        projection = PerHeadLinear(head_dim, site.num_heads, bias)
    with torch.no_grad():
        whole = settings.negative_source == "input"
        for block in [projection.weight] if whole else projection.weight.view(-1, head_dim, head_dim):
            if settings.negative_init == "xavier":
                nn.init.xavier_uniform_(block, gain=gain)
            elif settings.negative_init == "zero":
                nn.init.zeros_(block)
            else:
                nn.init.eye_(block).neg_()
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection.requires_grad_(not settings.negative_frozen)


def dagpam_terms(negative_q: Tensor, lambda_plus: Coefficient, lambda_minus: Coefficient) -> AffineTerms:
    """Returns the terms of P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax(Q⁻Kᵀ/√D + M), B × H × T × S.

    Shapes: negative_q (Q⁻ = ReLU(Q)W_Q⁻) B × H × T × D; λ⁺ and λ⁻ broadcastable to P. Heo & Choi 2024, arXiv
    2410.15578.
    """
    return AffineTerms(positive=1 + lambda_plus, negative=lambda_minus, negative_q=negative_q)


@register_mechanism
class DualGPAMAttention(AffineMechanism):
    """Two softmax branches over the same keys and values, the second one subtracted.

    Rows sum to 1+λ⁺−λ⁻, and entries lie in [−λ⁻, 1+λ⁺] as long as λ⁻ ≥ 0 and λ⁺ ≥ −1; λ⁺ = λ⁻ = 0 is softmax
    attention. Choices that the paper leaves open are options here: the scope, initial value and bound of the λ's, and
    whether W_Q⁻ is shared by the heads, has a bias, and how it is initialised.

    Two options go beyond the paper. With `--gpam-lambda-source token` λ⁻ is computed from each token, as in
    Differential V2. With `--gpam-row-sum` the row sum is fixed and the ratio λ⁻/(1+λ⁺) is trained.

    Whether the authors' heads share W_Q⁻ is not known (docs/index.md); `info --arch` prints which one a model has.
    """

    name = "dagpam"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M) − λ⁻·softmax((ReLU(Q)W_Q⁻)Kᵀ/√D + M)"
    source = "Heo & Choi 2024, arXiv 2410.15578"
    row_sum = "1+λ⁺−λ⁻"
    cost = "1.5×"
    neutral = (("lambda", "trainable"), ("lambda_max", None), ("lambda_plus", 0.0), ("lambda_minus", 0.0))
    options = DAGPAM_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.lambda_plus, self.lambda_minus = build_lambdas(self.name, site, settings)
        self.negative_projection = build_negative_projection(site, settings)
        self.activates = settings.negative_activation == "relu"
        self.projects_input = settings.negative_source == "input"

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        source = inputs.x if self.projects_input else inputs.form.unrotate(inputs.q)
        negative_q = self.negative_projection(torch.relu(source) if self.activates else source)
        if self.projects_input:
            negative_q = inputs.form.query(split_heads(negative_q, inputs.q.size(1)))
        else:
            negative_q = inputs.form.rotate(negative_q)
        return dagpam_terms(negative_q, self.lambda_plus(), self.lambda_minus(inputs.x))
