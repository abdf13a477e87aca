"""The coefficients λ: fixed or trainable; one for a model, a layer or a head; bounded or free."""

import math

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.base import Option, Settings, Site

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

    def forward(self, x: Tensor | None = None) -> Tensor | float:
        """Returns λ; x, the layer's input, is used only if λ is computed from it."""
        if self.theta is None:
            return self.initial
        value = self.from_theta(self.theta)
        return value if value.numel() == 1 else value.view(-1, 1, 1)

    def from_theta(self, theta: Tensor) -> Tensor:
        return self.bound * torch.sigmoid(theta) if self.bound else theta

    def extra_repr(self) -> str:
        if self.theta is None:
            return f"{self.initial:g}, fixed"
        with torch.no_grad():
            value = self()
            assert isinstance(value, Tensor)
            lambdas = ", ".join(f"{number:.3f}" for number in value.flatten().tolist())
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
