"""Cards of the kept runs, and what was expected of them before the first run (examples/studies/cards)."""

import functools
from dataclasses import dataclass
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
RELATIONS = {
    "above": lambda scores, others: min(scores) > max(others),
    "below": lambda scores, others: max(scores) < min(others),
    "not apart from": lambda scores, others: max(scores) >= min(others) and min(scores) <= max(others),
    "0.99 or more": lambda scores, _: min(scores) >= 0.99,
    "not 0.99 or more in every seed": lambda scores, _: min(scores) < 0.99,
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


@dataclass(frozen=True)
class Finding:
    """An expectation, the scores that decide it, and whether it holds."""

    test: str
    expected: str
    ranges: str
    holds: bool


def findings() -> tuple[list[Finding], list[str]]:
    """Returns every expectation that has its cards, and the names of the mechanisms that lack one."""
    scores = {
        (card.arm.mechanism, column.label): card.scores(column)
        for card in whole_cards()
        for column in cards.COLUMNS
        if column.task == card.task
    }
    decided, missing = [], []
    for test, relation, name, other in EXPECTED:
        needed = [(each, test) for each in (name, other) if each]
        if absent := [each for each, _ in needed if (each, test) not in scores]:
            missing += absent
            continue
        ranges = [f"`{each}` {min(scores[each, test]):.3f} to {max(scores[each, test]):.3f}" for each, _ in needed]
        holds = RELATIONS[relation](*(scores.get((each, test), []) for each in (name, other)))
        expected = f"`{name}` {relation} {f'`{other}`' if other else ''}".strip()
        decided.append(Finding(test, expected, "; ".join(ranges), holds))
    return decided, sorted(set(missing))


def table(name: str, page: Path, repository: Path) -> tuple[str, dict[Path, str]]:
    """Returns what stands below a marker `cards`: the expectations, with what was found."""
    decided, missing = findings()
    rows = [[each.test, each.expected, each.ranges, "yes" if each.holds else "**no**"] for each in decided]
    text = sections.markdown_table(("test", "expected", "least and greatest of five seeds", "found"), rows)
    lacking = f"\n\nNot run yet: {', '.join(f'`{each}`' for each in missing)}." if missing else ""
    return text + lacking, {}


def sentences() -> str:
    """Returns in words which expectations were confirmed, and which were not."""
    parts = []
    for holds, title in ((True, "Expected and found"), (False, "Expected and not found")):
        lines = [f"- {each.test}: {each.expected} ({each.ranges})" for each in findings()[0] if each.holds == holds]
        parts += ["\n".join([f"{title}:", "", *lines])] if lines else []
    return "\n\n".join(parts)
