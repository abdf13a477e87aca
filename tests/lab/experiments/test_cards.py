"""Cards: which rate is chosen, what counts as a score, and the command from its data to its page."""

import math
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from machine import wait_for
from msgspec import structs

from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.lab.experiments import card_pictures, cards, make_cards, run_results
from fairseq_gpam.lab.experiments.cards import Arm
from fairseq_gpam.lab.experiments.records import Costs, Loss, Run, Score, Training
from fairseq_gpam.lab.recipes import run_folder, stage_results, tasks
from fairseq_gpam.lab.recipes.run_folder import RunError

TEMPERED = Path(__file__).parents[3] / "examples" / "your-own-mechanism" / "tempered.py"


def a_run(task="flip-flop", seed=1, valid=1.0, accuracy=0.5, seconds=10.0, **changes):
    training = Training(command="", parameters=9, updates=100, **changes)
    scores = tuple(Score(metric="accuracy", value=accuracy, test_set=name) for name in ("test", "test1"))
    losses = (Loss(split="valid", value=valid), Loss(split="test", value=valid))
    return Run(
        task=task,
        arm="x",
        mechanism="softmax",
        seed=seed,
        training=training,
        losses=losses,
        scores=scores,
        costs=Costs(processor_seconds=seconds),
    )


def test_every_mechanism_with_a_language_model_has_a_card():
    names = [arm.mechanism for arm in cards.known_arms()]
    assert len(set(names)) == len(names)
    assert {name for name, mechanism in REGISTRY.items() if "decoder" in mechanism.sites} <= {*names}


@pytest.mark.parametrize("best", cards.RATES)
def test_the_rate_with_the_lower_validation_loss_is_chosen_by_a_seed_that_is_not_shown(best):
    asked = []

    def find(run):
        asked.append((run.seed, run.learning_rate))
        return a_run(seed=run.seed, valid=0.1 if run.learning_rate == best else 0.2)

    card = cards.card(Arm("softmax"), "flip-flop", cards.SEEDS, find)
    assert card.rate == best
    assert asked == [(11, rate) for rate in cards.RATES] + [(seed, best) for seed in cards.SEEDS]
    assert [run.seed for run in card.runs] == [*cards.SEEDS]


def test_a_rate_at_which_training_diverged_is_not_chosen():
    low, high = cards.RATES
    assert cards.chosen_rate({low: math.nan, high: 5.0}) == high
    assert cards.chosen_rate({low: 5.0, high: math.nan}) == low


def test_a_rate_at_which_the_task_is_learned_wholly_is_chosen():
    high = max(cards.RATES)

    def find(run):
        return a_run(seed=run.seed, valid=0.0 if run.learning_rate == high else 0.001)

    assert cards.card(Arm("softmax"), "key-lookup", cards.SEEDS, find).rate == high


def test_there_is_no_card_without_the_runs_that_choose():
    assert cards.card(Arm("softmax"), "flip-flop", (1,), lambda run: a_run() if run.seed == 1 else None) is None
    assert cards.card(Arm("softmax"), "flip-flop", (1,), lambda run: a_run() if run.seed != 1 else None) is None


def test_bigrams_score_0_for_a_guess_and_1_for_the_best_predictor():
    options = tasks.load("in-context-bigrams").data.options
    counts = dict.fromkeys(("valid", "test"), 0.0)
    for split in counts:
        # The Bayes predictor by its definition: Dirichlet(0.2) prior, counts of the line so far, a certain end.
        data = cards.synthetic.lines("bigrams", options, split)[:100]
        bits = []
        for line in data:
            seen = np.full((6, 6), 0.2)
            symbols = [int(word[1:]) for word in line]
            losses = [math.log2(6)]
            for before, after in pairwise(symbols):
                losses.append(-math.log2(seen[before, after] / seen[before].sum()))
                seen[before, after] += 1
            bits.append(sum(losses) / (len(line) + 1))
        assert cards.share_of_the_way("in-context-bigrams", split, statistics.mean(bits)) == pytest.approx(1, abs=0.1)
        assert cards.share_of_the_way("in-context-bigrams", split, math.log2(6) * 48 / 49) == pytest.approx(0)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=5, max_size=5), st.randoms())
def test_a_training_that_diverged_is_below_every_other_in_whatever_order(scores, random):
    shuffled = random.sample(scores, len(scores))
    expected = sorted(scores, key=lambda score: -1 if math.isnan(score) else score)[2]
    assert cards.median(shuffled) == pytest.approx(expected, nan_ok=True)


def test_updates_to_learn_are_the_first_at_95_per_cent():
    assert cards.updates_to_learn(a_run(accuracy=1.0)) is None
    curve = ((50, 0.3), (100, 0.95), (150, 0.2), (200, 1.0))
    run = a_run()
    assert cards.updates_to_learn(replace_training(run, accuracy=curve)) == 100
    assert cards.updates_to_learn(replace_training(run, accuracy=curve[:1])) is None
    best = cards.synthetic.best_bits_of_bigrams(tasks.load("in-context-bigrams").data.options, "valid")
    bigrams = replace_training(a_run("in-context-bigrams"), valid=((100, 2.5), (200, best)))
    assert cards.updates_to_learn(bigrams) == 200


def replace_training(run, **changes):
    return structs.replace(run, training=structs.replace(run.training, **changes))


def test_processor_time_is_a_ratio_of_medians_and_not_made_up():
    def of(*seconds):
        return cards.Card(Arm("x"), "flip-flop", 0.01, tuple(a_run(seconds=value) for value in seconds))

    assert cards.processor_time(of(3.0, 9.0, 4.0), of(2.0, 1.0, 100.0)) == 2.0
    assert cards.processor_time(of(3.0), None) is None
    assert cards.processor_time(of(3.0), of(None)) is None


@pytest.mark.parametrize(
    ("arm", "row_sum"),
    [
        (Arm("softmax"), "1.00"),
        (Arm("dagpam", ("--gpam-lambda-plus", "1", "--gpam-lambda-minus", "0.25")), "1.75"),
        (Arm("signed_dual"), "0.00"),
    ],
)
def test_a_card_tells_the_decoding_state_and_the_row_sum_of_its_flags(arm, row_sum):
    told = cards.layer_costs(arm, "flip-flop")
    assert "keeps 64 a token" in told
    assert told.endswith(f"is {row_sum}.")


def test_what_belongs_to_a_task_stands_once_in_its_rows():
    runs = (replace_training(a_run(accuracy=1.0), parameters=7),)
    shown = cards.section([cards.Card(Arm("softmax"), "filler-lookup", 0.01, runs)], {})
    assert [bool(row[-2]) for row in shown.rows] == [True, False, False, False]
    assert [bool(row[-1]) for row in shown.rows] == [True, False, False, False]


def test_similar_rows_stand_beside_each_other_and_every_score_in_its_place():
    names, labels = ["a", "b", "c", "d"], ["first", "second"]
    values = [[1.0, 0.1], [0.2, 1.0], [0.98, math.nan], [0.25, 0.97]]
    figure = card_pictures.overview(names, labels, values)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert {frozenset(rows[:2]), frozenset(rows[2:])} == {frozenset("ac"), frozenset("bd")}
    shown = np.ma.filled(axes.images[0].get_array(), math.nan)
    np.testing.assert_array_equal(shown, [values[names.index(name)] for name in rows])


def test_a_card_draws_every_seed():
    figure = card_pictures.points("x", [("one", [0.1, 0.2], [0.3]), ("two", [0.4], [])])
    drawn = [tuple(line.get_xdata()) for line in figure.axes[0].lines]
    assert sorted(drawn) == [(0.1, 0.2, 0.4), (0.3,)]


def test_a_mechanism_of_ones_own_is_named_by_file_and_name():
    arm = make_cards.read_arm(f"{TEMPERED}:tempered --gpam-tempered-tau 2")
    assert (arm.mechanism, arm.flags, arm.file) == ("tempered", ("--gpam-tempered-tau", "2"), str(TEMPERED))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nowhere.py:tempered", "no such file: nowhere.py"),
        (f"{TEMPERED}:", "names no mechanism"),
        ("", "names no mechanism"),
        ("sofmax", "did you mean 'softmax'"),
        ("dnas", "has no language model"),
    ],
)
def test_what_is_no_mechanism_is_refused_before_anything_runs(text, why):
    with pytest.raises(RunError, match=why):
        make_cards.read_arm(text)


SHORT = ("--seeds", "1", "--jobs", "2", "--", "--max-update", "20", "--validate-interval-updates", "10")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a card of the outside example beside softmax's, which were stopped once on the way."""
    out = tmp_path_factory.mktemp("cards")
    words = ["cards", "--mechanism", f"{TEMPERED}:tempered", "--task", "set-difference", "--out", str(out), *SHORT]
    command = [sys.executable, "-m", "fairseq_gpam", *words]
    log = out / "said"
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        wait_for(lambda: "seed 11" in log.read_text(), process, 300)
        process.send_signal(signal.SIGTERM)
        process.wait()
    subprocess.run(command, check=True)
    return out


@pytest.mark.slow
def test_the_card_of_the_outside_example_stands_beside_softmax(made):
    text = (made / "cards/cards.md").read_text()
    assert "## softmax" in text
    assert "## tempered" in text
    # Keys and values of a token in 32 channels, for either mechanism.
    assert text.count("keeps 64 a token") == 2
    assert "tempered" in (made / "cards/cards.html").read_text()


@pytest.mark.slow
def test_a_forked_run_equals_one_of_the_command_line(made, monkeypatch):
    (folder,) = (made / "runs/set-difference").glob("softmax_lr*/1")
    forked = run_results.read(folder)
    command = stage_results.read_command(folder / "train.command")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [str(made / "again") if word == str(folder / "checkpoints") else word for word in command]
    run_folder.execute(words, made / "again.log")
    measured = run_folder.logs.parse_training_log((made / "again.log").read_text())
    assert tuple(tuple(point) for point in measured["curve"]["valid"]) == forked.training.valid
    assert tuple(tuple(point) for point in measured["curve"]["accuracy"]) == forked.training.accuracy


def test_arms_differ_in_the_name_of_their_runs():
    arm = Arm("dagpam", ("--gpam-lambda-tied",), name="dagpam-2")
    run = arm.run("flip-flop", 3, 0.005, Path("out"))
    assert (run.arm, run.name, run.extra) == ("dagpam-2", "dagpam-2_lr0.005", ("--gpam-lambda-tied",))
    assert replace(arm, file="mine.py").run("flip-flop", 3, 0.005, Path("out")).extra[:2] == (
        "--gpam-import",
        "mine.py",
    )
