"""Scores that find induction heads in attention maps."""

import torch
from torch import Tensor

from fairseq_gpam.attention.core.measures import metric

OLSSON = "Olsson et al. 2022, arXiv 2209.11895"
ELHAGE = "Elhage et al. 2021, transformer-circuits.pub/2021/framework"


@metric("previous-token score", "mean weight of a query on the token before it", OLSSON)
def previous_token_score(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean over the queries to which the preceding token is visible.

    Shapes: weights … × T × T; visible bool, broadcastable to them. The result has the shape of the leading dimensions;
    NaN if there is no such query.
    """
    wanted = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril(-1).triu(-1)
    return _mean_weight(weights, wanted, visible)


@metric(
    "induction score", "mean weight of a query on the tokens that followed earlier occurrences of its own token", OLSSON
)
def induction_score(weights: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean over the queries whose token occurred before.

    Shapes: weights B × H × T × T, tokens B × T (numbers of the vocabulary),
    visible bool, broadcastable to the weights; result B × H, NaN where no token occurs twice.
    """
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    # Column j + 1 follows an occurrence at j; it is the query's own if its token occurs twice in a row.
    follows = torch.nn.functional.pad(same, (1, -1))[:, None]
    return _mean_weight(weights, follows, visible)


def _mean_weight(weights: Tensor, wanted: Tensor, visible: Tensor | None) -> Tensor:
    """Returns the total weight on wanted, visible keys, averaged over the rows that have such a key."""
    chosen = (wanted if visible is None else wanted & visible).expand(weights.shape)
    rows = chosen.any(dim=-1)
    return torch.where(chosen, weights, 0.0).sum(dim=(-2, -1)) / rows.sum(dim=-1)


@metric(
    "copying score",
    "Σ Re μ / Σ |μ| over the eigenvalues μ of W_U W_O W_V W_E of a head; layer norms left out, W_U centred over words",
    ELHAGE,
)
def copying_score(
    value_weight: Tensor, output_weight: Tensor, embedding: Tensor, unembedding: Tensor, num_heads: int
) -> Tensor:
    """Returns how positive the eigenvalues of each head's map from token to logit are, from its D × D product.

    Near 1 a head raises the logits of the tokens that it attends to; near −1 it lowers them. Shapes: value_weight
    (H·D) × C, output_weight C × (H·D), embedding and unembedding V × C; result H.
    """
    values = value_weight.unflatten(0, (num_heads, -1))
    outputs = output_weight.unflatten(1, (num_heads, -1)).transpose(0, 1)
    # Centred, because a shift of all logits changes no probability but would add an eigenvalue.
    unembedding = unembedding - unembedding.mean(dim=0)
    eigenvalues = torch.linalg.eigvals(values @ (embedding.T @ unembedding) @ outputs)
    return eigenvalues.real.sum(dim=-1) / eigenvalues.abs().sum(dim=-1)
