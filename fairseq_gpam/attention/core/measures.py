"""Measures of an attention matrix and of hidden states, cheap enough to be logged during training.

Shapes: weights … × T × S, signed; visible bool, broadcastable to them, True = the query is not padding and may see the
key; states … × T × C; tokens bool … × T, True = not padding. None means that all are True. Results have the shape of
the leading dimensions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.lambdas import Lambda, TokenLambda

DONG = "Dong et al. 2021, arXiv 2103.03404"
GPAM = "Heo & Choi 2024, arXiv 2410.15578"
ZHAI = "Zhai et al. 2023, arXiv 2303.06296"


@dataclass(frozen=True)
class Definition:
    """The definition of a metric; with `logarithmic` it is plotted on a logarithmic axis."""

    label: str
    definition: str
    source: str
    logarithmic: bool = False


DEFINITIONS: dict[str, Definition] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def metric(
    label: str, definition: str, source: str = "–", logarithmic: bool = False, name: str | None = None
) -> Callable[[Function], Function]:
    """Decorates the function that computes a metric, and declares it under the function's name or `name`.

    The definition is added to DEFINITIONS and to the function's docstring.
    """

    def declare(function: Function) -> Function:
        DEFINITIONS[name or function.__name__] = Definition(label, definition, source, logarithmic)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    {label}: {definition} ({source}).\n    "
        return function

    return declare


Module = TypeVar("Module", bound=nn.Module)


def lambdas(attention: nn.Module) -> dict[str, Tensor]:
    """Returns the values of every λ that does not depend on the token, by name, such as `lambda_plus`.

    With mixed heads the name begins with that of the mechanism; a tied λ is listed under both its names.
    """
    return {
        name: torch.as_tensor(module(), dtype=torch.float64).detach().flatten()
        for name, module in _named_lambdas(attention, Lambda)
    }


def token_lambdas(attention: nn.Module) -> dict[str, TokenLambda]:
    """Returns the modules that compute a λ for each token, by the names that `lambdas` uses."""
    return dict(_named_lambdas(attention, TokenLambda))


def mean_lambda(values: Tensor, tokens: Tensor) -> Tensor:
    """Returns the mean of a λ per token, B × H × T × 1, over the tokens (bool B × T): B × H, NaN if there is none."""
    kept = tokens[:, None, :, None]
    return torch.where(kept, values.double(), 0.0).sum(dim=(2, 3)) / kept.sum(dim=(2, 3))


def _named_lambdas(attention: nn.Module, kind: type[Module]) -> Iterator[tuple[str, Module]]:
    for path, module in attention.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            yield path.removeprefix("mechanism.").removeprefix("groups.").replace(".", "_"), module


def first_head(attention: nn.Module, name: str) -> int:
    """Returns the first head to which the values `name` belong: not 0 for the λ's of a later group of mixed heads."""
    groups = getattr(getattr(attention, "mechanism", None), "first_heads", {})
    return next((first for group, first in groups.items() if name.startswith(f"{group}_lambda_")), 0)


def mean_over_rows(values: Tensor, weights: Tensor, visible: Tensor | None, least_keys: int = 1) -> Tensor:
    """Returns the mean of values (… × T) over rows with at least `least_keys` visible keys; NaN if there is none."""
    counted = _visible_counts(weights, visible) >= least_keys
    return torch.where(counted, values, 0.0).sum(dim=-1) / counted.sum(dim=-1)


def _visible_counts(weights: Tensor, visible: Tensor | None) -> Tensor:
    """Returns the number of keys visible to each row: … × T."""
    shape, device = weights.shape, weights.device
    return (torch.ones((), dtype=torch.bool, device=device) if visible is None else visible).expand(shape).sum(dim=-1)


def zero_unseen(weights: Tensor, visible: Tensor | None) -> Tensor:
    """Returns the weights with zeros where a key is not visible."""
    return weights if visible is None else torch.where(visible, weights, 0.0)


@metric("row sum", "Σ_j P_ij, mean over rows", GPAM)
def row_sum(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean row sum: 1 for softmax attention, 1 + λ⁺ − λ⁻ for daGPAM."""
    return mean_over_rows(zero_unseen(weights, visible).sum(dim=-1), weights, visible)


@metric("negative mass", "Σ max(−P, 0) / Σ |P|", GPAM)
def negative_mass(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the negative share of the whole matrix: 0 for probabilities, at most 1."""
    weights = zero_unseen(weights, visible)
    return weights.clamp(max=0).abs().sum(dim=(-2, -1)) / weights.abs().sum(dim=(-2, -1))


@metric(
    "normalised entropy",
    "the entropy of each row divided by log n, n its number of visible keys; rows with one key are left out",
    ZHAI,
    name="entropy_normalised",
)
@metric("entropy (nats)", "−Σ_j a log a, a = |P| / Σ_j |P|, mean over rows that have weight", ZHAI)
def entropy(weights: Tensor, visible: Tensor | None = None, normalised: bool = False) -> Tensor:
    """Returns the mean entropy of the rows; between 0 and 1 if `normalised`."""
    magnitude = zero_unseen(weights, visible).abs()
    total = magnitude.sum(dim=-1, keepdim=True)
    has_weight = total > 0
    rows = torch.special.entr(torch.where(has_weight, magnitude / total, 0.0)).sum(dim=-1)
    visible = has_weight if visible is None else visible & has_weight
    if not normalised:
        return mean_over_rows(rows, weights, visible)
    keys = _visible_counts(weights, visible).to(rows.dtype)
    return mean_over_rows(rows / keys.clamp(min=2).log(), weights, visible, least_keys=2)


def without_padding(states: Tensor, tokens: Tensor | None) -> Tensor:
    """Returns the states with zeros in place of padding, so that it does not affect norms, sums or singular values."""
    return states if tokens is None else torch.where(tokens.unsqueeze(-1), states, 0.0)


def mean_token(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns the mean over the tokens that are not padding: … × 1 × C."""
    if tokens is None:
        return states.mean(dim=-2, keepdim=True)
    return without_padding(states, tokens).sum(dim=-2, keepdim=True) / tokens.sum(dim=-1)[..., None, None]


def composite_norm(matrix: Tensor) -> Tensor:
    """Returns sqrt(‖X‖₁ ‖X‖_∞), the largest column sum and the largest row sum of |X| (Dong et al. 2021, sec. 2)."""
    magnitude = matrix.abs()
    return (magnitude.sum(dim=-2).amax(dim=-1) * magnitude.sum(dim=-1).amax(dim=-1)).sqrt()


@metric("residual norm", "‖X − 1xᵀ‖, ‖·‖ = sqrt(‖·‖₁·‖·‖_∞), x the mean token", DONG, logarithmic=True)
def residual_norm(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns how far the tokens are from their mean token, in the composite norm."""
    return composite_norm(without_padding(states - mean_token(states, tokens), tokens))


@metric("residual ratio (mean token)", "‖X − 1xᵀ‖ / ‖X‖, ‖·‖ = sqrt(‖·‖₁·‖·‖_∞), x the mean token", DONG)
def residual_ratio(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns the residual norm relative to the states' own norm: 0 where all tokens are equal.

    The paper minimises over x; its code, like this function, uses the mean token.
    """
    return residual_norm(states, tokens) / composite_norm(without_padding(states, tokens))
