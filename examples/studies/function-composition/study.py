"""Trains small decoders to compose functions that they read as tables: full attention against hybrids of its depth.

`python examples/studies/function-composition/study.py` trains all cells and writes results.jsonl beside this file;
`python scripts/upkeep/pages.py` makes the README's table from it.
"""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from fairseq_gpam.lab.experiments.synthetic_studies import write_results
from fairseq_gpam.parameters import Model, count, parse

STEPS = 2
ELEMENTS = 8
ARMS = {
    "3 full": "softmax",
    "2 full, 1 linear": "softmax@0-1;linear@2",
    "1 full, 2 linear": "softmax@0;linear@1-2",
    "2 linear, 1 full": "linear@0-1;softmax@2",
    "3 linear": "linear",
}
SEEDS = (1, 2)
FLAGS = shlex.split(
    "--decoder-layers 3 --decoder-embed-dim 32 --decoder-input-dim 32 --decoder-output-dim 32 --decoder-ffn-embed-dim "
    "64 --decoder-attention-heads 2 --decoder-normalize-before --decoder-learned-pos --dropout 0 "
    "--max-target-positions 64"
)


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns sentences, B × (L·n + n), and the answers to their last n tokens, B × n.

    A sentence lists the values f_1(0) … f_1(n−1), …, f_L(0) … f_L(n−1) of L random functions of n elements, and then
    the elements x in a random order; the answer to x is f_L(…f_1(x)). Elements and values are different tokens.
    """
    tables = torch.randint(ELEMENTS, (size, STEPS, ELEMENTS), generator=generator)
    questions = torch.rand(size, ELEMENTS, generator=generator).argsort(dim=-1)
    answers = questions
    for step in range(STEPS):
        answers = tables[:, step].gather(1, answers)
    return torch.cat([tables.flatten(1), questions + ELEMENTS], dim=1), answers


def build(mechanism: str) -> nn.Module:
    """Builds this package's language model; token t of a sentence is entry t of the dictionary after its symbols."""
    words = Dictionary()
    for number in range(2 * ELEMENTS):
        words.add_symbol(f"t{number}")
    arch = "transformer_lm_gpam"
    settings = parse(Model(arch, (*FLAGS, "--gpam-mechanism", mechanism), len(words)))
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    return ARCH_MODEL_REGISTRY[arch].build_model(settings, task)


def scores(model: nn.Module, tokens: Tensor) -> Tensor:
    """Returns the scores of the n elements as answers to the last n tokens: B × n × n."""
    first = 4
    return model(tokens + first)[0][:, -ELEMENTS:, first : first + ELEMENTS]


def train(arm: str, seed: int, updates: int = 1000, size: int = 64) -> dict[str, Any]:
    """Trains one cell by Adam, learning rate 0.003 falling to 0; returns its accuracy on 1,024 new sentences."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build(ARMS[arm]).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=updates)
    for _ in range(updates):
        tokens, answers = batch(size, generator)
        optimiser.zero_grad()
        F.cross_entropy(scores(model, tokens).flatten(0, 1), answers.flatten()).backward()
        optimiser.step()
        schedule.step()
    model.eval()
    tokens, answers = batch(1024, torch.Generator().manual_seed(0))
    with torch.no_grad():
        accuracy = (scores(model, tokens).argmax(dim=-1) == answers).double().mean().item()
    return {
        **{"arm": arm, "steps": STEPS, "seed": seed, "updates": updates, "parameters": count(model)},
        "accuracy": round(accuracy, 4),
    }


def main() -> None:
    torch.set_num_threads(1)
    write_results(Path(__file__).parent, (train(*cell) for cell in itertools.product(ARMS, SEEDS)))


if __name__ == "__main__":
    main()
