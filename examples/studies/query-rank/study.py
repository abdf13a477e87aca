"""Trains one layer of attention to give the nearest key: rank of the queries against number of heads.

`python examples/studies/query-rank/study.py` trains all cells and writes results.jsonl beside this file;
`python scripts/upkeep/pages.py` makes the README's table from it.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_gpam import options
from fairseq_gpam.attention import Site, build_mechanism
from fairseq_gpam.lab.experiments.synthetic_studies import write_results
from fairseq_gpam.modules import GPAMMultiheadAttention

WIDTH, KEYS = 8, 8
RANKS, HEADS, SEEDS = (1, 2, 4, 8), (1, 2, 8), (1, 2, 3)


def points(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns points drawn uniformly from the unit sphere, along the last dimension."""
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries B × C, keys B × N × C and, as the target, the key nearest to the query, B × C."""
    queries, keys = points(generator, size, WIDTH), points(generator, size, KEYS, WIDTH)
    nearest = torch.cdist(queries.unsqueeze(1), keys).squeeze(1).argmin(dim=-1)
    return queries, keys, keys[torch.arange(size), nearest]


class Layer(nn.Module):
    """Σ_h O_h V_h K softmax(K W_hᵀ q/√r), W_h of rank r, with values as wide as the points in every head."""

    def __init__(self, rank: int, heads: int, mechanism: str = "softmax") -> None:
        super().__init__()
        embed_dim = heads * WIDTH
        settings = options.resolve(argparse.Namespace(gpam_mechanism=mechanism, gpam_query_rank=rank))
        site = Site("cross", 0, 1, embed_dim, heads, WIDTH, query_rank=rank)
        self.attention = GPAMMultiheadAttention(
            *(embed_dim, heads, build_mechanism(mechanism, site, settings)),
            kdim=WIDTH,
            vdim=WIDTH,
            encoder_decoder_attention=True,
        )

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        # The layer's queries are as wide as all its heads: the points' other channels are 0.
        wide = F.pad(queries, (0, self.attention.embed_dim - WIDTH)).unsqueeze(0)
        return self.attention(wide, keys.transpose(0, 1), None)[0][0, :, :WIDTH]


def error(layer: Layer, generator: torch.Generator, size: int = 4096) -> float:
    """Returns the mean squared distance to the nearest key, on new points; 1 is the error of answering 0."""
    with torch.no_grad():
        queries, keys, target = batch(size, generator)
        return (layer(queries, keys) - target).square().sum(dim=-1).mean().item()


def train(rank: int, heads: int, seed: int, updates: int = 1000, size: int = 128) -> dict[str, Any]:
    """Trains one cell by Adam, learning rate 0.01 falling to 0; returns its result."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    layer = Layer(rank, heads)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=updates)
    for _ in range(updates):
        queries, keys, target = batch(size, generator)
        optimiser.zero_grad()
        (layer(queries, keys) - target).square().sum(dim=-1).mean().backward()
        optimiser.step()
        schedule.step()
    result = error(layer, torch.Generator().manual_seed(0))
    projections = heads * rank * 2 * WIDTH
    return {
        **{"rank": rank, "heads": heads, "seed": seed, "updates": updates},
        **{"query_key_weights": projections, "error": round(result, 4)},
    }


def main() -> None:
    torch.set_num_threads(1)
    write_results(Path(__file__).parent, (train(*cell) for cell in itertools.product(RANKS, HEADS, SEEDS)))


if __name__ == "__main__":
    main()
