"""The coefficients λ: fixed or trainable; one for a model, a layer or a head; bounded or free.

Those of daGPAM are two numbers; or λ⁻ depends on the query's token; or their ratio is trained for a fixed row sum.
"""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import Option, Settings, Site, refuse_options
from fairseq_gpam.attention.core.families import split_heads, upcast

# fairseq's optimisers read this attribute of a parameter; `--optimizer gpam_adam` gives this group no weight decay.
NO_DECAY_GROUP = "gpam_lambda"

LAMBDA_PLUS_OPTIONS = (
    Option("lambda", str, "trainable", "whether the λ's are trained", choices=("fixed", "trainable")),
    Option(
        "lambda_plus",
        float,
        0.5,
        "the value of λ⁺, or its initial value if trained; a trained λ without an upper bound may become negative",
    ),
    Option(
        "lambda_scope",
        str,
        "head",
        "whether the model, each layer or each head has its own λ's",
        choices=("model", "layer", "head"),
    ),
    Option(
        "lambda_max",
        float,
        None,
        "the upper bound of the λ's: λ = max · sigmoid(θ), between 0 and max; if absent, they are unbounded",
        check=lambda bound: bound > 0,
        allowed="a number > 0",
    ),
    Option(
        "lambda_plus_training",
        str,
        None,
        "whether λ⁺ is trained; overrides --gpam-lambda",
        choices=("fixed", "trainable"),
    ),
)
LAMBDA_MINUS_OPTIONS = (
    Option(
        "lambda_minus", float, 0.5, "the value of λ⁻, or its initial value if trained; like λ⁺ it may become negative"
    ),
    Option("lambda_tied", bool, False, "λ⁺ = λ⁻, both from --gpam-lambda-plus"),
    Option(
        "lambda_minus_training",
        str,
        None,
        "whether λ⁻ is trained; overrides --gpam-lambda; not with --gpam-lambda-tied",
        choices=("fixed", "trainable"),
    ),
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


class Lambda(nn.Module):
    """One λ: a number, or one for each head.

    Its value is broadcastable to B × H × T × S: a float if it is fixed, else a tensor of shape 1 or H × 1 × 1. A fixed
    λ is not among a checkpoint's weights, but in its stored flags.
    """

    def __init__(self, initial: float, count: int, trainable: bool, bound: float | None, flag: str) -> None:
        super().__init__()
        if trainable and bound and not 0 < initial < bound:
            raise ValueError(
                f"{flag} {initial} is not allowed with --gpam-lambda-max {bound}; "
                f"allowed: a number between 0 and {bound}, both excluded"
            )
        if not trainable and bound and not 0 <= initial <= bound:
            raise ValueError(f"{flag} {initial} is not allowed with --gpam-lambda-max {bound}; allowed: 0 … {bound}")
        self.initial = initial
        self.bound = bound
        self.theta: nn.Parameter | None = None
        if trainable:
            start = math.log(initial / (bound - initial)) if bound else initial
            self.theta = no_decay_parameter(torch.full((count,), start))

    def __call__(self, x: Tensor | None = None) -> Tensor | float:
        """Returns λ; x, the layer's input, is used only if λ is computed from it."""
        # Hooks, such as those with which fairseq looks for NaN, expect tensors.
        return self.initial if self.theta is None else super().__call__(x)

    def forward(self, x: Tensor | None = None) -> Tensor:
        assert self.theta is not None
        value = self.from_theta(self.theta)
        return value if value.numel() == 1 else value.view(-1, 1, 1)

    def from_theta(self, theta: Tensor) -> Tensor:
        return self.bound * torch.sigmoid(theta) if self.bound else theta

    def extra_repr(self) -> str:
        if self.theta is None:
            return f"{self.initial:g}, fixed"
        lambdas = ", ".join(f"{number:.3f}" for number in self.from_theta(self.theta).tolist())
        return f"{lambdas}, trainable" + (f", at most {self.bound:g}" if self.bound else "")


def build_lambda(name: str, owner: str, site: Site, settings: Settings) -> Lambda:
    """Returns λ⁺ (`lambda_plus`) or λ⁻ (`lambda_minus`) of the mechanism `owner`; created on first use in its scope."""
    source = "lambda_plus" if settings.lambda_tied else name
    key = scope_key(source, owner, site, settings)
    if key not in site.shared:
        site.shared[key] = Lambda(
            initial=settings[source],
            count=scope_count(site, settings),
            trainable=is_trained(source, settings),
            bound=settings.lambda_max,
            flag="--gpam-" + source.replace("_", "-"),
        )
    return site.shared[key]


def is_trained(name: str, settings: Settings) -> bool:
    """Returns whether λ⁺ (`lambda_plus`) or λ⁻ (`lambda_minus`) is trained."""
    return (settings[f"{name}_training"] or settings["lambda"]) == "trainable"


def scope_key(name: str, owner: str, site: Site, settings: Settings) -> tuple[object, ...]:
    """Returns the key of a λ in `site.shared`, the same for all layers that share it."""
    where = () if settings.lambda_scope == "model" else (site.name, site.layer)
    return ("lambda", owner, name, *where)


def scope_count(site: Site, settings: Settings) -> int:
    """Returns how many numbers a λ consists of at one site: one for each head, or one."""
    return site.num_heads if settings.lambda_scope == "head" else 1


def no_decay_parameter(values: Tensor) -> nn.Parameter:
    """Returns a parameter to which `--optimizer gpam_adam` applies no weight decay."""
    parameter = nn.Parameter(values)
    parameter.param_group = NO_DECAY_GROUP  # type: ignore[attr-defined]
    return parameter


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
