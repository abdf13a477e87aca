"""Cards of the kept runs, and what was expected of them before the first run (examples/studies/cards)."""

import functools
from pathlib import Path

import keep
import study
from fairseq_gpam.lab.experiments import cards, sections
from fairseq_gpam.lab.experiments.cards import Card
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.experiments.sections import Section
from fairseq_gpam.lab.recipes import stages

EXPECTED = (
    *(("in-context bigrams", "above", name, "softmax") for name in ("forgetting",)),
    *(("in-context bigrams", "below", name, "softmax") for name in ("centered", "sigmoid", "linear")),
    *(("in-context bigrams", "not apart from", name, "softmax") for name in ("dagpam", "differential_v2")),
    *(("flip-flop, sparse", "0.99 or more", name, "") for name in ("selective", "forgetting", "gated_linear")),
    ("flip-flop, sparse", "not 0.99 or more in every seed", "softmax", ""),
    *(("key lookup", "0.99 or more", name, "") for name in ("softmax", "sigmoid")),
    *(("key lookup", "below", name, "softmax") for name in ("forgetting", "linear")),
    *(("set difference", "above", name, "softmax") for name in ("differential_v2", "sigmoid", "linear")),
)
"""Test, relation, mechanism, and the other one: the expectations of the study's page."""
ON_TASK_PAGES = ("softmax", "dagpam", "forgetting", "linear")


def above(scores: list[float], others: list[float]) -> bool:
    """Returns whether each score is above each of the others; a diverged run, NaN, is neither above nor below."""
    return all(score > other for score in scores for other in others)


RELATIONS = {
    "above": above,
    "below": lambda scores, others: above(others, scores),
    "not apart from": lambda scores, others: not above(scores, others) and not above(others, scores),
    "0.99 or more": lambda scores, _: all(score >= 0.99 for score in scores),
    "not 0.99 or more in every seed": lambda scores, _: not all(score >= 0.99 for score in scores),
}


@functools.cache
def whole_cards() -> list[Card]:
    """Returns the cards of the kept runs: of a mechanism those of all tasks with all seeds, or none."""
    repository = Path(__file__).parents[2]
    kept = {
        (run.task, run.arm, run.learning_rate, run.seed): run
        for task in cards.TASKS
        for run in keep.read_task(task, repository)
        if run.replicate == 1
    }

    def find(run: stages.RunSettings) -> Run | None:
        there = kept.get((run.task.name, run.arm, run.learning_rate, run.seed))
        return None if there is None or study.differences(there, run) else there

    shown = []
    for arm in cards.known_arms():
        of_arm = [cards.card(arm, task, cards.SEEDS, find) for task in cards.TASKS]
        there = [card for card in of_arm if card and len(card.runs) == len(cards.SEEDS)]
        shown += there if len(there) == len(of_arm) else []
    return shown


@functools.cache
def kept_cards() -> dict[str, Section]:
    """Returns the overview of all cards and each mechanism's, by the names of their pictures."""
    shown = cards.sections_of(whole_cards())
    names = ["cards", *(f"{section.title}.card" for section in shown[1:])]
    # One mechanism alone has no overview.
    return dict(zip(names, shown, strict=True)) if len(shown) > 2 else {}


def scores() -> dict[tuple[str, str], list[float]]:
    """Returns the score of each seed, by mechanism and test."""
    return {
        (card.arm.mechanism, column.label): card.scores(column)
        for card in whole_cards()
        for column in cards.columns_of(card.task)
    }


def table(name: str, page: Path, repository: Path) -> tuple[str, dict[Path, str]]:
    """Returns what stands below a marker `cards`: a task's rows of some cards, or what was expected and found."""
    if name in cards.TASKS:
        labels = [column.label for column in cards.columns_of(name)]
        by_arm = {arm: kept_cards()[f"{arm}.card"].rows for arm in ON_TASK_PAGES}
        shown = [[f"`{arm}`", *row] for arm, of_arm in by_arm.items() for row in of_arm if row[0] in labels]
        return sections.markdown_table(("mechanism", *cards.HEAD), shown), {}
    known, rows = scores(), []
    for test, relation, arm, other in EXPECTED:
        needed = [each for each in (arm, other) if each]
        ranges = [f"`{each}` {min(known[each, test]):.3f} to {max(known[each, test]):.3f}" for each in needed]
        holds = RELATIONS[relation](known[arm, test], known.get((other, test), []))
        expected = f"`{arm}` {relation} {f'`{other}`' if other else ''}".strip()
        rows.append([test, expected, "; ".join(ranges), "yes" if holds else "**no**"])
    return sections.markdown_table(("test", "expected", "least and greatest of five seeds", "found"), rows), {}


def separations() -> str:
    """Returns as a table which mechanisms each test sets apart from softmax, and which learned it in every seed."""
    known, rows = scores(), []
    for column in cards.COLUMNS:
        of_test = {name: values for (name, test), values in known.items() if test == column.label}
        found = [
            [name for name, values in of_test.items() if RELATIONS[relation](values, of_test["softmax"])]
            for relation in ("above", "below")
        ]
        found.append([name for name, values in of_test.items() if all(value >= cards.LEARNED for value in values)])
        rows.append([column.label, *(", ".join(f"`{name}`" for name in sorted(names)) or "–" for names in found)])
    head = ("test", "above softmax", "below softmax", f"{cards.LEARNED} or more in every seed")
    return sections.markdown_table(head, rows)
