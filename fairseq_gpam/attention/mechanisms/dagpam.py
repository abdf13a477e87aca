"""daGPAM: dual-attention generalised probabilistic attention (Heo & Choi 2024, arXiv 2410.15578)."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.affine import AffineTerms, Coefficient
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, split_heads
from fairseq_gpam.attention.core.lambda_sources import LAMBDA_SOURCE_OPTIONS, build_lambdas
from fairseq_gpam.attention.core.lambdas import LAMBDA_MINUS_OPTIONS, LAMBDA_PLUS_OPTIONS
from fairseq_gpam.attention.core.negative_projection import build_negative_projection

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
