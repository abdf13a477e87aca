"""Induction heads: scores that find them in attention maps, and sequences of random n-gram sources to learn them on."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def previous_token_score(weights: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean weight of a query on the token before it, over the queries that see it (arXiv 2209.11895).

    Shapes: weights … × T × T; visible bool, broadcastable to them. The result has the leading shape; NaN where no query
    sees the token before it.
    """
    wanted = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril(-1).triu(-1)
    return _mean_weight(weights, wanted, visible)


def induction_score(weights: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
    """Returns the mean weight of a query on the tokens that followed earlier occurrences of its own token.

    Olsson et al. 2022, arXiv 2209.11895. Shapes: weights B × H × T × T, tokens B × T (numbers of the vocabulary),
    visible bool, broadcastable to the weights; result B × H, NaN where no token occurs twice.
    """
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    # Column j + 1 follows an occurrence at j; the query itself counts where its token stands twice in a row.
    follows = torch.nn.functional.pad(same, (1, -1))[:, None]
    return _mean_weight(weights, follows, visible)


def _mean_weight(weights: Tensor, wanted: Tensor, visible: Tensor | None) -> Tensor:
    """Averages the total weight on wanted, visible keys over the rows that have such a key."""
    chosen = (wanted if visible is None else wanted & visible).expand(weights.shape)
    rows = chosen.any(dim=-1)
    return torch.where(chosen, weights, 0.0).sum(dim=(-2, -1)) / rows.sum(dim=-1)


def copying_score(
    value_weight: Tensor, output_weight: Tensor, embedding: Tensor, unembedding: Tensor, num_heads: int
) -> Tensor:
    """Returns Σ Re μ / Σ |μ| of each head, μ the eigenvalues of the map from token to logit, W_U W_O W_V W_E.

    Near 1 a head raises the logits of the tokens it attends to, near −1 it lowers them (Elhage et al. 2021,
    transformer-circuits.pub/2021/framework). Computed by the head's D × D product. Shapes: value_weight (H·D) × C,
    output_weight C × (H·D), embedding and unembedding V × C; result H.
    """
    values = value_weight.unflatten(0, (num_heads, -1))
    outputs = output_weight.unflatten(1, (num_heads, -1)).transpose(0, 1)
    eigenvalues = torch.linalg.eigvals(values @ (embedding.T @ unembedding) @ outputs)
    return eigenvalues.real.sum(dim=-1) / eigenvalues.abs().sum(dim=-1)


def markov_sequences(
    order: int, vocabulary: int, count: int, length: int, concentration: float = 1.0, seed: int = 1
) -> np.ndarray:
    """Returns `count` sequences, each of its own random Markov source of `order` tokens: count × length integers.

    Each context of a source has its next-token distribution from Dirichlet(concentration, …), drawn afresh for each
    sequence, so that only the sequence itself can teach them (n-gram task of arXiv 2409.10559). The first `order`
    tokens are uniform. Raises ValueError for numbers below 1 or a length that is not above the order.
    """
    if min(order, vocabulary, count) < 1 or concentration <= 0 or length <= order:
        raise ValueError(
            f"order {order}, vocabulary {vocabulary}, count {count}, length {length}, concentration {concentration} "
            "are not allowed; allowed: numbers above 0, and a length above the order"
        )
    generator = np.random.default_rng(seed)
    places = vocabulary ** np.arange(order)
    sequences = np.empty((count, length), dtype=np.int64)
    for sequence in sequences:
        cumulated = generator.dirichlet([concentration] * vocabulary, size=vocabulary**order).cumsum(axis=1)
        sequence[:order] = generator.integers(vocabulary, size=order)
        for position, draw in enumerate(generator.random(length - order), start=order):
            context = int(sequence[position - order : position] @ places)
            # The last sum may fall short of 1 by rounding.
            sequence[position] = min(int(np.searchsorted(cumulated[context], draw, side="right")), vocabulary - 1)
    return sequences


SPLITS = ("train", "valid", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train, valid and test text")
    parser.add_argument("--order", type=int, default=1, help="tokens that decide on the next one (default: 1)")
    parser.add_argument("--vocabulary", type=int, default=8, metavar="N", help="different tokens (default: 8)")
    parser.add_argument("--length", type=int, default=64, metavar="N", help="tokens of a sequence (default: 64)")
    parser.add_argument("--train", type=int, default=8000, metavar="N", help="sequences (default: 8000)")
    parser.add_argument("--valid", type=int, default=200, metavar="N", help="sequences (default: 200)")
    parser.add_argument("--test", type=int, default=200, metavar="N", help="sequences (default: 200)")
    parser.add_argument("--concentration", type=float, default=0.3, help="of the Dirichlet prior (default: 0.3)")
    parser.add_argument("--seed", type=int, default=1, help="default: 1; each split takes its own")


def run(arguments: argparse.Namespace) -> int:
    """Writes one sequence a line, tokens `t0`, `t1`, …, to DIR/train.txt, DIR/valid.txt and DIR/test.txt."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(SPLITS):
        sequences = markov_sequences(
            arguments.order,
            arguments.vocabulary,
            getattr(arguments, split),
            arguments.length,
            arguments.concentration,
            seed=len(SPLITS) * arguments.seed + number,
        )
        lines = (" ".join(f"t{token}" for token in sequence) for sequence in sequences)
        (arguments.out / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0
