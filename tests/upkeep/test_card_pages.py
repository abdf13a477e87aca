"""The expectations of the study of cards: what counts as found."""

import math
import random

import pytest

import card_pages


@pytest.mark.parametrize("seed", range(20))
def test_above_and_below_mean_every_seed_and_exclude_each_other(seed):
    numbers = random.Random(seed)
    first, second = ([numbers.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(5)] for _ in range(2))
    holds = {name: card_pages.RELATIONS[name](first, second) for name in ("above", "below", "not apart from")}
    assert holds["above"] == all(a > b for a in first for b in second)
    assert holds["below"] == all(a < b for a in first for b in second)
    assert sum(holds.values()) == 1


def test_nearly_all_means_every_seed():
    for scores in ([1.0, 0.98, 1.0], [0.99, 1.0, 1.0]):
        everywhere = all(value >= 0.99 for value in scores)
        assert card_pages.RELATIONS["0.99 or more"](scores, []) == everywhere
        assert card_pages.RELATIONS["not 0.99 or more in every seed"](scores, []) == (not everywhere)


@pytest.mark.parametrize("seed", range(20))
def test_what_each_test_sets_apart(seed, monkeypatch):
    numbers = random.Random(seed)
    choices = [0.2, 0.94, 0.95, 1.0, math.nan]
    names, tests = ("a", "b", "softmax"), [column.label for column in card_pages.cards.COLUMNS]
    scores = {(name, test): [numbers.choice(choices) for _ in range(2)] for name in names for test in tests}
    monkeypatch.setattr(card_pages, "scores", lambda: scores)
    rows = [line.strip("| ").split(" | ") for line in card_pages.separations().splitlines()[2:]]
    assert [row[0] for row in rows] == tests
    for test, above, below, every in rows:
        of_softmax = scores["softmax", test]
        for name in names:
            values = scores[name, test]
            assert (f"`{name}`" in above) == all(one > other for one in values for other in of_softmax)
            assert (f"`{name}`" in below) == all(one < other for one in values for other in of_softmax)
            assert (f"`{name}`" in every) == all(value in (0.95, 1.0) for value in values)
