"""The expectations of the study of cards: what counts as found."""

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
