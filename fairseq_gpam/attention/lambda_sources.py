"""Where daGPAM's λ⁻ comes from: a number, or the token that queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.base import Option, Settings, Site
from fairseq_gpam.attention.families import split_heads, upcast
from fairseq_gpam.attention.lambdas import Lambda, build_lambda

LAMBDA_SOURCE_OPTIONS = (
    Option(
        "lambda_source",
        str,
        "number",
        "where λ⁻ comes from: a number, or the token, λ⁻ = sigmoid(x·w⁻) with x the layer's input and a trained vector "
        "w⁻ for each head",
        choices=("number", "token"),
    ),
)

# With a λ⁻ for each token: the options that have no meaning, the value that they must keep, and what is allowed.
_TOKEN_REFUSALS = (
    ("warm_start", False, "no --gpam-warm-start, because such a λ⁻ is never 0"),
    ("lambda_minus_training", None, "no --gpam-lambda-minus-training, because w⁻ is always trained"),
    ("lambda_minus", 0.5, "no --gpam-lambda-minus, because w⁻ decides where λ⁻ starts"),
    ("lambda_max", None, "no --gpam-lambda-max, because such a λ⁻ lies between 0 and 1"),
    ("lambda_scope", "head", "head"),
    ("lambda_tied", False, "no --gpam-lambda-tied, because λ⁺ stays a number"),
    ("lambda", "trainable", "trainable; --gpam-lambda-plus-training 'fixed' fixes λ⁺ alone"),
)


class TokenLambda(nn.Module):
    """One λ for each token and head: sigmoid(x·w), x the layer's input; w starts as nn.Linear's weight does."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(embed_dim, num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the layer's input, B × T × C, to the λ's, B × H × T × 1."""
        return split_heads(torch.sigmoid(upcast(self.projection(x))).type_as(x), self.projection.out_features)

    def extra_repr(self) -> str:
        return "sigmoid(x·w), one for each token and head"


def build_lambda_minus(owner: str, site: Site, settings: Settings) -> Lambda | TokenLambda:
    """Builds, or finds, λ⁻ of the mechanism `owner`.

    Raises ValueError if an option is given that has no meaning with the source of λ⁻.
    """
    if settings.lambda_source == "number":
        return build_lambda("lambda_minus", owner, site, settings)
    refuse_options(settings, "--gpam-lambda-source 'token'", _TOKEN_REFUSALS)
    return TokenLambda(site.embed_dim, site.num_heads)


def refuse_options(settings: Settings, companion: str, refusals: tuple[tuple[str, object, str], ...]) -> None:
    """Raises ValueError for the first option that does not have the one value allowed together with `companion`.

    `refusals` holds each option's name, that value, and what is allowed in words.
    """
    for name, value, allowed in refusals:
        if settings[name] != value:
            flag = "--gpam-" + name.replace("_", "-")
            given = flag if settings[name] is True else f"{flag} {settings[name]!r}"
            raise ValueError(f"{given} is not allowed with {companion}; allowed: {allowed}")
