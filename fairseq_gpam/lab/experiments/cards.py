"""Cards: what a mechanism learns in five small tasks, beside softmax attention, from finished runs."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fairseq_gpam
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.attention.core.presets import PRESETS
from fairseq_gpam.lab.experiments import card_pictures
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.sections import Picture, Section
from fairseq_gpam.lab.recipes import stages, synthetic, tasks
from fairseq_gpam.plugins import IMPORT_FLAG

REFERENCE = "softmax"
RATES = (0.005, 0.01)
CHOOSING_SEED = 11
SEEDS = (1, 2, 3, 4, 5)
LEARNED = 0.95
"""The score at which a task counts as learned."""
MOST_WANTED = (
    *("softmax", "dagpam", "differential_v2", "centered", "scaled_softmax", "gated", "sigmoid", "linear", "forgetting"),
    *("selective", "laser", "affine_scaled", "zeros", "threshold_differential", "elastic_softmax", "gated_deltanet"),
    *("signed_dual", "gated_linear", "softpick"),
)
"""The mechanisms whose cards are made first."""
FLAGS = {"cog": ("--gpam-cog-everywhere",)}
"""Flags without which a mechanism would be softmax in a model of two layers."""
NOTES = {
    "local": "In `set-difference`, which has fewer words than its window, it is softmax.",
    "cog": "With `--gpam-cog-everywhere`, because both layers of this model would be softmax without it.",
    "neutreno": "Acts only in the second of the two layers.",
    "value_residual": "Acts only in the second of the two layers.",
}


@dataclass(frozen=True)
class Column:
    """A score: the share of right answers in a test set, or of the way from guessing to the best predictor."""

    label: str
    task: str
    test_set: str = ""


COLUMNS = (
    Column("in-context bigrams", "in-context-bigrams"),
    Column("flip-flop, sparse", "flip-flop", "test1"),
    Column("key lookup", "key-lookup", "test"),
    Column("set difference", "set-difference", "test"),
    *(
        Column(f"lookup in {words:,} words", "filler-lookup", test_set)
        for words, test_set in ((128, "test"), (256, "test1"), (512, "test2"), (1024, "test3"))
    ),
)
TASKS = tuple(dict.fromkeys(column.task for column in COLUMNS))


def columns_of(task: str) -> list[Column]:
    """Returns the scores that a task has."""
    return [column for column in COLUMNS if column.task == task]


@dataclass(frozen=True)
class Arm:
    """A mechanism with flags of its own; a `file` defines it if the package does not."""

    mechanism: str
    flags: tuple[str, ...] = ()
    file: str = ""
    name: str = ""

    def imported(self) -> tuple[str, ...]:
        return (IMPORT_FLAG, self.file) if self.file else ()

    def run(self, task: str, seed: int, rate: float, out: Path, extra: Sequence[str] = ()) -> stages.RunSettings:
        """Returns a run of this arm."""
        name = self.name or self.mechanism
        return stages.RunSettings(
            task=tasks.load(task),
            mechanism=self.mechanism,
            seed=seed,
            out=out,
            name=f"{name}_lr{stages.rate_text(rate)}",
            extra=(*self.imported(), *self.flags, *extra),
            arm=name,
            learning_rate=rate,
        )


Find = Callable[[stages.RunSettings], Run | None]


@dataclass(frozen=True)
class Card:
    """What was measured of an arm in a task: the runs at the chosen rate."""

    arm: Arm
    task: str
    rate: float
    runs: tuple[Run, ...]

    def scores(self, column: Column) -> list[float]:
        """Returns the score of each seed, NaN if the training diverged."""
        return [score(run, column) for run in self.runs]


def known_arms() -> list[Arm]:
    """Returns all mechanisms that have a language model, the most wanted first."""
    names = [name for name, mechanism in REGISTRY.items() if "decoder" in mechanism.sites]
    first = [*MOST_WANTED, *sorted({*names, *PRESETS} - {*MOST_WANTED})]
    return [Arm(name, FLAGS.get(name, ())) for name in first]


def score(run: Run, column: Column) -> float:
    """Returns a score between 0 (for bigrams possibly below) and 1, NaN if there is none."""
    if column.test_set:
        accuracy = run.score("accuracy", column.test_set)
        return math.nan if accuracy is None else accuracy
    loss = run.loss("test")
    return math.nan if loss is None else share_of_the_way(column.task, "test", loss)


def share_of_the_way(task: str, split: str, loss: float) -> float:
    """Returns how far a loss (bits a token) has come from guessing (0) to the best possible predictor's (1)."""
    options = tasks.load(task).data.options
    # The end of the line, which is certain, counts as a token.
    guess = math.log2(options["symbols"]) * options["length"] / (options["length"] + 1)
    return (guess - loss) / (guess - synthetic.best_bits_of_bigrams(options, split))


def updates_to_learn(run: Run) -> int | None:
    """Returns after how many updates the validation score was LEARNED for the first time, None if it never was."""
    curve = run.training.accuracy
    if not tasks.load(run.task).has_questions:
        curve = tuple((update, share_of_the_way(run.task, "valid", loss)) for update, loss in run.training.valid)
    return next((update for update, value in curve if value >= LEARNED), None)


def chosen_rate(losses: dict[float, float]) -> float:
    """Returns the rate with the lowest validation loss; that of a training that diverged is NaN."""
    return min(losses, key=lambda rate: math.inf if math.isnan(losses[rate]) else losses[rate])


def card(arm: Arm, task: str, seeds: Sequence[int], find: Find, extra: Sequence[str] = ()) -> Card | None:
    """Returns a card of runs `find` has or makes, None if one that chooses the rate, or every other, is missing."""
    losses = {}
    for rate in RATES:
        if (run := find(arm.run(task, CHOOSING_SEED, rate, Path("out"), extra))) is None:
            return None
        loss = run.loss("valid")
        # A task that is learned wholly may have a loss of 0.
        losses[rate] = math.nan if loss is None else loss
    rate = chosen_rate(losses)
    runs = [find(arm.run(task, seed, rate, Path("out"), extra)) for seed in seeds]
    return Card(arm, task, rate, there) if (there := tuple(run for run in runs if run)) else None


def processor_time(card: Card, reference: Card | None) -> float | None:
    """Returns the median processor time of a card's trainings relative to the reference's; None if not measured."""
    times = [
        [run.costs.processor_seconds for run in each.runs if run.costs.processor_seconds is not None]
        for each in (card, reference)
        if each is not None
    ]
    return statistics.median(times[0]) / statistics.median(times[1]) if len(times) == 2 and all(times) else None


def layer_costs(arm: Arm, task: str) -> str:
    """Returns in words what a layer of an arm keeps in decoding, and the row sums of its weights before training."""
    fairseq_gpam.register()
    # Only here, because they import fairseq.
    from fairseq_gpam import costs, info, options, parameters

    recipe = tasks.load(task)
    flags = ("--gpam-mechanism", arm.mechanism, *arm.imported(), *arm.flags)
    parsed = parameters.parse(parameters.Model("transformer_lm_gpam", (*recipe.train, *flags), info.VOCABULARY))
    width, heads = parsed.decoder_embed_dim, parsed.decoder_attention_heads
    measured = costs.measure(arm.mechanism, options.resolve(parsed), width, heads, info.LENGTH)
    return (
        f"In decoding a layer keeps {measured.state()}. "
        f"Before training the sum of a row of weights is {measured.start()}."
    )


HEAD = (
    "task",
    "learning rate",
    "score of each seed",
    "softmax's median",
    "updates to 95 % in validation",
    "processor time",
)


def section(cards: Sequence[Card], references: dict[str, Card]) -> Section:
    """Returns the card of one arm over all tasks, beside the reference's scores."""
    rows, points = [], []
    for card in cards:
        reference = references.get(card.task)
        ratio = processor_time(card, reference)
        learned = " ".join("–" if update is None else f"{update:,}" for update in map(updates_to_learn, card.runs))
        of_task = [learned, "–" if ratio is None else f"{ratio:.2f}×"]
        for column in columns_of(card.task):
            scores = card.scores(column)
            others = reference.scores(column) if reference else []
            points.append((column.label, scores, others))
            rows.append(
                [
                    column.label,
                    stages.rate_text(card.rate),
                    " ".join(share_text(value) for value in scores),
                    share_text(median(others)) if others else "–",
                    *of_task,
                ]
            )
            of_task = ["", ""]
    arm = cards[0].arm
    name = arm.name or arm.mechanism
    parameters = cards[0].runs[0].training.parameters
    note = (
        f"The model has {parameters:,} parameters in `{cards[0].task}`. {layer_costs(arm, cards[0].task)} "
        f"{NOTES.get(name, '')}"
    ).strip()
    words = f"{name}: the score of each seed in each task, and softmax's"
    return Section(name, HEAD, rows, note, Picture(lambda: card_pictures.points(name, points), words, ".card.svg"))


def overview(cards: Sequence[Card]) -> Section:
    """Returns the map of all arms and scores, similar arms beside each other."""
    names = list(dict.fromkeys(card.arm.name or card.arm.mechanism for card in cards))
    values = {
        (card.arm.name or card.arm.mechanism, column.label): median(card.scores(column))
        for card in cards
        for column in columns_of(card.task)
    }
    labels = [column.label for column in COLUMNS]
    grid = [[values.get((name, label), math.nan) for label in labels] for name in names]
    words = f"Median scores of {len(names)} mechanisms in {len(labels)} tests, similar mechanisms beside each other."
    picture = Picture(lambda: card_pictures.overview(names, labels, grid), words, ".overview.svg")
    return Section("All mechanisms", note=SCORES, picture=picture)


SCORES = (
    "Scores: the share of right answers; for in-context bigrams, the share of the way from guessing (0) to the best "
    "possible predictor (1). The learning rate of each mechanism and task is the better one of "
    f"{' and '.join(map(stages.rate_text, RATES))} for seed {CHOOSING_SEED}, which is not shown. “–”: a validation "
    "score of 95 % was never reached."
)


def median(scores: Sequence[float]) -> float:
    """Returns the median of scores, in which a training that diverged, NaN, is below every other."""
    middle = statistics.median(-math.inf if math.isnan(score) else score for score in scores)
    return middle if math.isfinite(middle) else math.nan


def share_text(value: float) -> str:
    return "diverged" if math.isnan(value) else f"{value:.3f}"


def sections_of(cards: Sequence[Card]) -> list[Section]:
    """Returns the overview, if there are several arms, and each arm's card."""
    by_arm: dict[Arm, list[Card]] = {}
    for each in cards:
        by_arm.setdefault(each.arm, []).append(each)
    references = {each.task: each for each in cards if each.arm == Arm(REFERENCE)}
    shown = [overview(cards)] if len(by_arm) > 1 else []
    return shown + [section(of_arm, references) for of_arm in by_arm.values()]
