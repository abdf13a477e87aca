"""The sources of daGPAM's λ's: two numbers; the query's token (λ⁻ only); or a trained ratio and a fixed row sum."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import Option, Settings, Site, refuse_options
from fairseq_gpam.attention.core.families import split_heads, upcast
from fairseq_gpam.attention.core.lambdas import (
    Lambda,
    build_lambda,
    is_trained,
    no_decay_parameter,
    scope_count,
    scope_key,
)

LAMBDA_SOURCE_OPTIONS = (
    Option(
        "lambda_source",
        str,
        "number",
        "whether λ⁻ is a number, or depends on the token: λ⁻ = sigmoid(x·w⁻), x the layer's input, with a trained "
        "vector w⁻ for each head",
        choices=("number", "token"),
    ),
    Option(
        "row_sum",
        float,
        None,
        "fix the row sum 1+λ⁺−λ⁻ at this number and train the ratio r = λ⁻/(1+λ⁺), between 0 and 1, in place of the "
        "two λ's",
        check=lambda total: total > 0,
        allowed="a number > 0, because r stays below 1",
    ),
    Option(
        "lambda_ratio",
        float,
        None,
        "the initial r with --gpam-row-sum; 1/3 if absent, which is the ratio for λ⁺ = λ⁻ = 0.5",
        check=lambda ratio: 0 < ratio < 1,
        allowed="a number between 0 and 1, both excluded",
    ),
)

# The options without a meaning if λ⁻ depends on the token: name, the only value allowed, and what is allowed in words.
_TOKEN_REFUSALS = (
    ("warm_start", False, "no --gpam-warm-start, because such a λ⁻ is never 0"),
    ("lambda_minus_training", None, "no --gpam-lambda-minus-training, because w⁻ is always trained"),
    ("lambda_minus", 0.5, "no --gpam-lambda-minus, because w⁻ determines λ⁻"),
    ("lambda_max", None, "no --gpam-lambda-max, because such a λ⁻ lies between 0 and 1"),
    ("lambda_scope", "head", "head"),
    ("lambda_tied", False, "no --gpam-lambda-tied, because λ⁺ stays a number"),
    ("lambda", "trainable", "trainable; --gpam-lambda-plus-training 'fixed' fixes λ⁺ alone"),
)

# The same for a fixed row sum.
_ROW_SUM_REFUSALS = (
    ("warm_start", False, "no --gpam-warm-start, because such a λ⁻ is never 0"),
    ("lambda", "trainable", "trainable; with two fixed λ's the row sum is fixed anyway"),
    ("lambda_plus_training", None, "no --gpam-lambda-plus-training, because r is trained in place of λ⁺"),
    ("lambda_minus_training", None, "no --gpam-lambda-minus-training, because r is trained in place of λ⁻"),
    ("lambda_plus", 0.5, "no --gpam-lambda-plus; --gpam-lambda-ratio sets the initial r"),
    ("lambda_minus", 0.5, "no --gpam-lambda-minus; --gpam-lambda-ratio sets the initial r"),
    ("lambda_max", None, "no --gpam-lambda-max, because λ⁺ and λ⁻ follow from r"),
    ("lambda_tied", False, "no --gpam-lambda-tied; --gpam-row-sum 1 makes λ⁺ = λ⁻"),
    ("lambda_source", "number", "number"),
)
_DEFAULT_RATIO = 1 / 3


class TokenLambda(nn.Module):
    """One λ for each token and head: sigmoid(x·w), x the layer's input; w is initialised as nn.Linear's weight."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's input, B × T × C, to the λ's, B × H × T × 1."""
        return split_heads(torch.sigmoid(upcast(self.projection(x))).type_as(x), self.projection.out_features)

    def extra_repr(self) -> str:
        return "sigmoid(x·w), one for each token and head"


class RatioLambda(Lambda):
    """λ⁺ or λ⁻ where the row sum s = 1+λ⁺−λ⁻ is fixed and the ratio r = λ⁻/(1+λ⁺) = sigmoid(θ) is trained.

    λ⁻ = s·r/(1−r) = s·exp(θ) and λ⁺ = λ⁻ + s − 1, both from the same θ.
    """

    def __init__(self, theta: nn.Parameter, row_sum: float, offset: float) -> None:
        super().__init__(initial=0.0, count=theta.numel(), trainable=False, bound=None, flag="--gpam-row-sum")
        self.theta = theta
        self.row_sum = row_sum
        self.offset = offset

    def from_theta(self, theta: Tensor) -> Tensor:
        return self.row_sum * torch.exp(theta) + self.offset

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, row sum {self.row_sum:g}"


def build_lambdas(owner: str, site: Site, settings: Settings) -> tuple[Lambda, Lambda | TokenLambda]:
    """Returns λ⁺ and λ⁻ of the mechanism `owner`, created on first use.

    Raises ValueError for an option that has no meaning with the source of the λ's.
    """
    if settings.lambda_tied:
        minus = 0.0 if settings.warm_start else 0.5
        refusals = (
            ("lambda_minus_training", None, "--gpam-lambda-plus-training"),
            ("lambda_minus", minus, "--gpam-lambda-plus"),
        )
        refuse_options(settings, "--gpam-lambda-tied, where λ⁻ is λ⁺", refusals)
    if settings.warm_start and not (is_trained("lambda_plus", settings) or is_trained("lambda_minus", settings)):
        raise ValueError(
            "--gpam-lambda-plus-training 'fixed' with --gpam-lambda-minus-training 'fixed' is not allowed with "
            "--gpam-warm-start, because the model would stay softmax attention; allowed: one of them trainable"
        )
    if settings.row_sum is not None:
        refuse_options(settings, f"--gpam-row-sum {settings.row_sum:g}", _ROW_SUM_REFUSALS)
        return _build_ratio_lambdas(owner, site, settings)
    if settings.lambda_ratio is not None:
        raise ValueError(
            f"--gpam-lambda-ratio {settings.lambda_ratio:g} is not allowed without --gpam-row-sum, which makes the "
            "ratio a parameter; allowed: --gpam-row-sum with a number > 0"
        )
    lambda_plus = build_lambda("lambda_plus", owner, site, settings)
    if settings.lambda_source == "number":
        return lambda_plus, build_lambda("lambda_minus", owner, site, settings)
    refuse_options(settings, "--gpam-lambda-source 'token'", _TOKEN_REFUSALS)
    return lambda_plus, TokenLambda(site.embed_dim, site.num_heads)


def _build_ratio_lambdas(owner: str, site: Site, settings: Settings) -> tuple[RatioLambda, RatioLambda]:
    key = scope_key("lambda_ratio", owner, site, settings)
    if key not in site.shared:
        ratio = _DEFAULT_RATIO if settings.lambda_ratio is None else settings.lambda_ratio
        theta = no_decay_parameter(torch.full((scope_count(site, settings),), math.log(ratio / (1 - ratio))))
        site.shared[key] = (
            RatioLambda(theta, settings.row_sum, settings.row_sum - 1),
            RatioLambda(theta, settings.row_sum, 0.0),
        )
    return site.shared[key]
