"""Measures of an attention matrix and of the states it mixes, cheap enough to be logged during training.

Shapes: weights … × T × S, signed; visible bool, broadcastable to them, True = this query is a token and sees this key;
states … × T × C; tokens bool … × T, True = not padding. None means that all are True. Results have the
leading shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.lambda_sources import TokenLambda
from fairseq_gpam.attention.lambdas import Lambda
from fairseq_gpam.attention.masks import AttentionMask

Module = TypeVar("Module", bound=nn.Module)


def lambdas(attention: nn.Module) -> dict[str, Tensor]:
    """Returns the values of every λ that is a number, or one for each head, under its name, such as `lambda_plus`.

    In a group of mixed heads the name begins with that of the mechanism; a tied λ stands under both its names.
    """
    return {
        name: torch.as_tensor(module(), dtype=torch.float64).detach().flatten()
        for name, module in _named_lambdas(attention, Lambda)
    }


def token_lambdas(attention: nn.Module) -> dict[str, TokenLambda]:
    """Returns the modules that make a λ for each token, named as `lambdas` names its values."""
    return dict(_named_lambdas(attention, TokenLambda))


def mean_lambda(values: Tensor, tokens: Tensor) -> Tensor:
    """Returns the mean of a λ per token, B × H × T × 1, over the tokens (bool B × T): B × H, NaN if there is none."""
    kept = tokens[:, None, :, None]
    return torch.where(kept, values.double(), 0.0).sum(dim=(2, 3)) / kept.sum(dim=(2, 3))


def _named_lambdas(attention: nn.Module, kind: type[Module]) -> Iterator[tuple[str, Module]]:
    for path, module in attention.named_modules(remove_duplicate=False):
        if isinstance(module, kind):
            yield path.removeprefix("mechanism.").removeprefix("groups.").replace(".", "_"), module


def visible_to_tokens(mask: AttentionMask, tokens: Tensor, num_keys: int) -> Tensor:
    """Returns which keys each query that is a token sees, none for padding: bool B × 1 × T × S, or B × H × T × S.

    tokens is bool B × T.
    """
    hidden = mask.hidden_keys(tokens.size(1), num_keys, tokens.device)
    visible = tokens[:, None, :, None].expand(-1, 1, -1, num_keys)
    return visible if hidden is None else visible & ~hidden


def with_constant_keys(visible: Tensor, num_keys: int) -> Tensor:
    """Returns `visible` (… × S) widened to `num_keys`: learned and zero keys come last, and all tokens see them."""
    extra = num_keys - visible.size(-1)
    return torch.cat([visible, visible.any(dim=-1, keepdim=True).expand(*visible.shape[:-1], extra)], dim=-1)


def unpadded_tokens(query: Tensor, padding: Tensor | None) -> Tensor:
    """Returns which queries (T × B × C) are tokens, bool B × T; `padding` is that of self-attention's keys, B × S.

    With --cross-self-attention the source stands before the target among the keys, so the last T are the queries.
    """
    length, batch = query.shape[:2]
    if padding is None:
        return torch.ones(batch, length, dtype=torch.bool, device=query.device)
    return ~padding.bool()[:, -length:]


def mean_over_rows(values: Tensor, weights: Tensor, visible: Tensor | None, least_keys: int = 1) -> Tensor:
    """Averages values (… × T) over the rows that see at least `least_keys` keys; NaN if there is no such row."""
    if visible is None:
        keys = torch.full_like(values, weights.size(-1), dtype=torch.long)
    else:
        keys = visible.expand(weights.shape).sum(dim=-1)
    counted = keys >= least_keys
    return torch.where(counted, values, 0.0).sum(dim=-1) / counted.sum(dim=-1)


def zero_unseen(weights: Tensor, visible: Tensor | None) -> Tensor:
    """Returns the weights with zeros where nothing is seen."""
    return weights if visible is None else torch.where(visible, weights, 0.0)


def row_sum(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns Σ_j P_ij, the mean over the rows; 1 + λ⁺ − λ⁻ for daGPAM (arXiv 2410.15578)."""
    return mean_over_rows(zero_unseen(weights, visible).sum(dim=-1), weights, visible)


def negative_mass(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns Σ max(−P, 0) / Σ |P| over the whole matrix: 0 for probabilities, at most 1."""
    weights = zero_unseen(weights, visible)
    return weights.clamp(max=0).abs().sum(dim=(-2, -1)) / weights.abs().sum(dim=(-2, -1))


def entropy(weights: Tensor, visible: Tensor | None = None, normalised: bool = False) -> Tensor:
    """Returns −Σ_j a log a in nats with a = |P| / Σ_j |P|, the mean over the rows (Zhai et al. 2023, arXiv 2303.06296).

    `normalised` divides each row by log n, n the keys it sees, and leaves out the rows with one key: 0 … 1.
    """
    magnitude = zero_unseen(weights, visible).abs()
    total = magnitude.sum(dim=-1, keepdim=True)
    shares = torch.where(total > 0, magnitude / total, 0.0)
    rows = torch.special.entr(shares).sum(dim=-1)
    if not normalised:
        return mean_over_rows(rows, weights, visible)
    if visible is None:
        keys = torch.full_like(rows, weights.size(-1))
    else:
        keys = visible.expand(weights.shape).sum(dim=-1).to(rows.dtype)
    return mean_over_rows(rows / keys.clamp(min=2).log(), weights, visible, least_keys=2)


def without_padding(states: Tensor, tokens: Tensor | None) -> Tensor:
    """Returns the states with zero rows for padding, which no norm, sum or singular value sees."""
    return states if tokens is None else torch.where(tokens.unsqueeze(-1), states, 0.0)


def mean_token(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns the mean of the unpadded tokens: … × 1 × C."""
    if tokens is None:
        return states.mean(dim=-2, keepdim=True)
    return without_padding(states, tokens).sum(dim=-2, keepdim=True) / tokens.sum(dim=-1)[..., None, None]


def composite_norm(matrix: Tensor) -> Tensor:
    """Returns sqrt(‖X‖₁ ‖X‖_∞), the largest column sum and the largest row sum of |X| (Dong et al. 2021, sec. 2)."""
    magnitude = matrix.abs()
    return (magnitude.sum(dim=-2).amax(dim=-1) * magnitude.sum(dim=-1).amax(dim=-1)).sqrt()


def residual_norm(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns ‖X − 1xᵀ‖ in the composite norm, x the mean token (Dong et al. 2021, arXiv 2103.03404)."""
    return composite_norm(without_padding(states - mean_token(states, tokens), tokens))


def residual_ratio(states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Returns ‖X − 1xᵀ‖ / ‖X‖ in the composite norm, x the mean token: 0 where all tokens are equal.

    Dong et al. 2021 (arXiv 2103.03404) take the best x; their code, and this, the mean token.
    """
    return residual_norm(states, tokens) / composite_norm(without_padding(states, tokens))
