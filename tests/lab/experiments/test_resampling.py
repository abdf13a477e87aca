"""The bootstrap of sentences nested in seeds, against sacreBLEU's scores of the texts that a sample stands for."""

import numpy as np
import pytest
from runs import made_run, write_run
from sacrebleu.metrics import BLEU, CHRF

from fairseq_gpam.lab.experiments import run_results
from fairseq_gpam.lab.experiments.resampling import nested_bootstrap, of_arms

WORDS = ("a", "cat", "dog", "sat", "on", "the", "mat", "ran", "away")


def texts(random, sentences):
    return [" ".join(random.choice(WORDS, random.integers(4, 12))) for _ in range(sentences)]


def worse(random, lines, share):
    """Returns lines in which a share of the words is another one."""
    return [
        " ".join(random.choice(WORDS) if random.random() < share else word for word in line.split()) for line in lines
    ]


def test_samples_are_scored_as_the_sentences_drawn():
    random = np.random.default_rng(3)
    references = texts(random, 12)
    pairs = [(worse(random, references, 0.5), worse(random, references, 0.3)) for _ in range(3)]
    measured = nested_bootstrap(pairs, references, samples=40)
    draws = np.random.default_rng(0)
    seeds = draws.integers(3, size=(40, 3))
    times = draws.multinomial(12, np.full(12, 1 / 12), size=(40, 3))
    for name, metric in (("BLEU", BLEU()), ("chrF2", CHRF())):

        def gain(seed, drawn, metric=metric):
            chosen = [index for index, count in enumerate(drawn) for _ in range(count)]
            first, second = (
                metric.corpus_score([arm[index] for index in chosen], [[references[index] for index in chosen]]).score
                for arm in pairs[seed]
            )
            return second - first

        observed = np.mean([gain(seed, np.ones(12, dtype=int)) for seed in range(3)])
        drawn = [
            np.mean([gain(*of_seed) for of_seed in zip(*sample, strict=True)])
            for sample in zip(seeds, times, strict=True)
        ]
        expected = (observed, *np.percentile(drawn, (2.5, 97.5)))
        assert measured[name] == pytest.approx(expected, abs=1e-9)


def test_runs_without_their_test_set_have_no_bootstrap(tmp_path):
    by_arm = {}
    for arm in ("stock", "dagpam"):
        folder = write_run(tmp_path / f"runs/bible-de-en/{arm}/1", made_run(arm, task="bible-de-en"))
        (folder / "hypotheses.txt").write_text("a cat\na dog\n")
        by_arm[arm] = [run_results.read(folder)]
    assert of_arms("bible-de-en", by_arm, "stock") == []
    (tmp_path / "data/bible-de-en").mkdir(parents=True)
    (tmp_path / "data/bible-de-en/test.en").write_text("a cat\na dog\n")
    assert {entry["metric"] for entry in of_arms("bible-de-en", by_arm, "stock")} == {"BLEU", "chrF2"}


def test_identical_translations_differ_by_nothing():
    references = texts(np.random.default_rng(5), 8)
    for lines in (references, [""] * 8):
        assert set(nested_bootstrap([(lines, lines)] * 2, references, samples=20).values()) == {(0.0, 0.0, 0.0)}


@pytest.mark.slow
def test_the_interval_holds_the_seeds_and_the_sentences():
    """Equal arms are told apart in about one of twenty comparisons, although single seeds differ more often."""
    random = np.random.default_rng(7)
    outside = 0
    for _ in range(30):
        references = texts(random, 20)
        pairs = [tuple(worse(random, references, random.uniform(0.2, 0.6)) for _ in range(2)) for _ in range(6)]
        _, low, high = nested_bootstrap(pairs, references, samples=100)["BLEU"]
        outside += not low <= 0 <= high
    assert outside <= 6
