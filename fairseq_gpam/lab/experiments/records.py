"""A run as the laboratory knows it: what was trained, with what result, at what cost, where.

A kept run is one JSON line of this form; `run_results` makes the same record of a run's folder. Layers count from 0;
states have a layer −1, the input of the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Literal

import msgspec

from fairseq_gpam.lab.recipes.stages import rate_text
from fairseq_gpam.lab.schema import Strict

Point = tuple[int, float]
Site = Literal["encoder", "decoder", "cross"]


class Machine(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What a stage ran on; `threads` is OMP_NUM_THREADS."""

    cpu: str
    cores: int | None
    threads: str
    accelerators: tuple[str, ...] = ()
    system: str = ""


class Environment(Strict, frozen=True, kw_only=True):
    """What a result depends on besides its command."""

    versions: dict[str, str]
    machine: Machine
    commit: str


class Divergence(Strict, frozen=True, kw_only=True):
    """Where and why a training diverged."""

    update: int
    reason: str


class Training(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A finished training; the curves are [update, loss] in bits, with label smoothing if any.

    `accuracy` is [update, share of right answers in the validation set] of a text with questions.
    """

    command: str
    parameters: int
    updates: int
    best_update: int | None = None
    valid: tuple[Point, ...] = ()
    train: tuple[Point, ...] = ()
    accuracy: tuple[Point, ...] = ()
    diverged: Divergence | None = None
    environment: Environment | None = None


class Evaluation(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A finished decoding or evaluation of the test set, and how many sentences, tokens or words it had."""

    command: str
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    environment: Environment | None = None


class Loss(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A loss of the best checkpoint in bits per `unit`, with this label smoothing."""

    split: Literal["valid", "test"]
    value: float
    unit: Literal["subword", "answer"] = "subword"
    smoothing: float = 0.0
    test_set: str = "test"


class Score(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A score on a test set, with sacreBLEU's signature if it has one."""

    metric: str
    value: float
    signature: str = ""
    test_set: str = "test"


class Costs(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What a run cost, None if it was not measured; the peak memory is that of all processes of the training.

    `processor_seconds` are of the training, which other work on the machine lengthens less than `training_seconds`.
    """

    training_seconds: float | None = None
    processor_seconds: float | None = None
    peak_memory_mib: float | None = None
    training_tokens_per_second: float | None = None
    evaluation_seconds: float | None = None
    evaluation_tokens_per_second: float | None = None


class Lambda(Strict, frozen=True, array_like=True):
    """λ of one attention over training, [update, value]; the sign is empty for a λ that is the only one."""

    site: Site
    layer: int
    sign: Literal["plus", "minus", ""]
    points: tuple[Point, ...]


class Measure(Strict, frozen=True, array_like=True):
    """A measure that `analyze` took in the best checkpoint, the mean over the samples."""

    site: Site
    layer: int
    metric: str
    value: float


class Run(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A finished run. Without a `learning_rate` it has the recipe's.

    `replicate` counts runs of the same task, budget, arm, learning rate and seed that gave other numbers;
    `initial_weights` is the hash of the weights before the first update, under stock's names. `folder` is where the run
    was read, empty for a kept one.
    """

    task: str
    arm: str
    mechanism: str
    seed: int
    training: Training
    budget: Literal["default", "full"] = "default"
    learning_rate: float | None = None
    replicate: int = 1
    evaluation: Evaluation | None = None
    losses: tuple[Loss, ...] = ()
    scores: tuple[Score, ...] = ()
    costs: Costs = Costs()
    lambdas: tuple[Lambda, ...] = ()
    measures: tuple[Measure, ...] = ()
    initial_weights: str | None = None
    note: str = ""
    folder: str = ""

    @property
    def group(self) -> str:
        """Returns the task's name in folders and titles, which has a suffix for the full budget."""
        return f"{self.task}-full" if self.budget == "full" else self.task

    @property
    def name(self) -> str:
        """Returns the arm, with the learning rate if it is not the recipe's."""
        return self.arm if self.learning_rate is None else f"{self.arm}_lr{rate_text(self.learning_rate)}"

    @property
    def label(self) -> str:
        """Returns arm and seed, and the replicate if it is not the first."""
        return f"{self.arm} seed {self.seed}" + (f" (replicate {self.replicate})" if self.replicate > 1 else "")

    def loss(self, split: str, smoothed: bool = False) -> float | None:
        """Returns a loss in bits per subword, None if it was not measured; smoothed, that which training minimises."""
        losses = [loss for loss in self.losses if loss.split == split and loss.unit == "subword"]
        chosen = sorted(losses, key=lambda loss: loss.smoothing, reverse=smoothed)
        return chosen[0].value if chosen else None

    def score(self, metric: str, test_set: str = "test") -> float | None:
        """Returns a score on a test set, None if it was not measured."""
        found = (score.value for score in self.scores if (score.metric, score.test_set) == (metric, test_set))
        return next(found, None)

    def repeats(self, other: Run) -> bool:
        """Tells whether this is `other` measured again: the same training, and no result of both differs."""
        results = [
            {(loss.split, loss.unit, loss.smoothing, loss.test_set): loss.value for loss in run.losses}
            | {(score.metric, score.signature, score.test_set): score.value for score in run.scores}
            for run in (self, other)
        ]
        pairs = [[result[key] for result in results] for key in results[0].keys() & results[1].keys()]
        same = all(first == second or (math.isnan(first) and math.isnan(second)) for first, second in pairs)
        return same and self.training.valid == other.training.valid


COSTS: tuple[tuple[str, str, Callable[[Run], float | None]], ...] = (
    ("parameters", "parameters", lambda run: run.training.parameters),
    ("training_seconds", "training (s)", lambda run: run.costs.training_seconds),
    ("peak_memory_mib", "peak memory (MiB)", lambda run: run.costs.peak_memory_mib),
    ("training_tokens_per_second", "training tokens/s", lambda run: run.costs.training_tokens_per_second),
    ("test_tokens_per_second", "test tokens/s", lambda run: run.costs.evaluation_tokens_per_second),
)
"""The costs of a run: key, label, and where a run has it."""


def to_line(run: Run) -> str:
    """Returns a run as one line of JSON."""
    return json.dumps(msgspec.to_builtins(run), ensure_ascii=False)
