"""The arms of the studies that are said to have equal parameters have them, counted on the models of the recipes."""

import re
from pathlib import Path

import pytest
from quick import first

from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.recipes import tasks
from fairseq_gpam.parameters import STOCK, Model, build, count


def arms_of_studies():
    """Every study's arms, with each task they are trained on."""
    for study in sorted(path.parent.name for path in STUDIES.glob("*/grid.toml")):
        chosen = grid.load(STUDIES / study / "grid.toml")
        for name in chosen.arms:
            yield from ((study, name, task) for task in chosen.arm(name).tasks or chosen.tasks)


STUDIES = Path(__file__).parents[2] / "examples/studies"
TASKS = {"": "bible-de-en", "-lm": "shakespeare-lm"}
CHEAP = "cheap-differential"
BASELINE = "dagpam"
MATCHED = [
    ("what-does-the-work", "wider-ffn", "dagpam"),
    ("what-does-the-work", "more-heads", "stock"),
    (CHEAP, "number-from-input-matched", BASELINE),
    (CHEAP, "token-from-query-matched", BASELINE),
    (CHEAP, "token-from-input-matched", BASELINE),
]


def size(study, name, task, *flags):
    """The parameters of an arm's model, with further flags."""
    arm = grid.load(STUDIES / study / "grid.toml").arm(name)
    assert not arm.tasks or task in arm.tasks
    recipe = tasks.load(task)
    arch, words = recipe.arch, (*recipe.train, *arm.flags.split(), *flags)
    if arm.mechanism != grid.STOCK:
        arch = next(ours for ours, stock in STOCK.items() if stock == arch)
        words = (*words, "--gpam-mechanism", arm.mechanism)
    return count(build(Model(arch, words, recipe.data.vocabulary or 100)))


@pytest.mark.parametrize("suffix", first(1, TASKS))
@pytest.mark.parametrize(("study", "name", "as_large_as"), MATCHED)
def test_an_arm_that_is_matched_differs_by_less_than_one_channel_of_a_feed_forward_network(
    study, name, as_large_as, suffix
):
    task = TASKS[suffix]
    wanted = size(study, as_large_as, task)
    channel = size(study, as_large_as, task, "--decoder-ffn-embed-dim", "11") - size(
        study, as_large_as, task, "--decoder-ffn-embed-dim", "10"
    )
    assert 2 * abs(size(study, name + suffix, task) - wanted) <= channel


def test_the_readme_of_the_differential_study_has_the_parameters_of_its_arms():
    text = (STUDIES / CHEAP / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`.*?\| ([\d,]+) \|(.*?)\| ([\d,]+) \|(.*?)\|$", text, re.MULTILINE)
    arms = {name for name in grid.load(STUDIES / CHEAP / "grid.toml").arms if not name.endswith("-lm")}
    assert {name for name, *_ in rows} == arms
    baseline = {suffix: size(CHEAP, BASELINE, task) for suffix, task in TASKS.items()}
    for name, translation, translation_difference, language_model, language_model_difference in rows:
        for suffix, printed, difference in (
            ("", translation, translation_difference),
            ("-lm", language_model, language_model_difference),
        ):
            found = size(CHEAP, name + (suffix if name.endswith("-matched") else ""), TASKS[suffix])
            assert int(printed.replace(",", "")) == found
            if name != BASELINE:
                signed = f"{found - baseline[suffix]:+,}".replace("-", "−")
                assert difference.split()[0] == signed


@pytest.mark.slow
@pytest.mark.parametrize(("study", "name", "task"), arms_of_studies())
def test_every_arm_of_every_study_can_be_built(study, name, task):
    assert size(study, name, task) > 0
