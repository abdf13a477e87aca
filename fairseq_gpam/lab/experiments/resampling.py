"""How sure a difference in BLEU and chrF is: a bootstrap of the test set's sentences, nested in that of the seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.recipes import run_folder, score
from fairseq_gpam.lab.recipes.subwords import read_lines


def nested_bootstrap(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
    references: Sequence[str],
    lowercase: bool = False,
    samples: int = 1000,
) -> dict[str, tuple[float, float, float]]:
    """Returns the mean difference of BLEU and chrF2 over seeds, second − first, and its 95 % percentile interval.

    `pairs` holds two arms' translations of the test set, for each seed. Each sample draws seeds, and sentences for each
    of them, with replacement and alike for both arms, whose runs are paired.
    """
    from sacrebleu.metrics import BLEU, CHRF

    random, sentences = np.random.default_rng(0), len(references)
    seeds = random.integers(len(pairs), size=(samples, len(pairs)))
    times_drawn = random.multinomial(sentences, np.full(sentences, 1 / sentences), size=seeds.shape)
    result = {}
    for name, metric in (("BLEU", BLEU(lowercase=lowercase)), ("chrF2", CHRF(lowercase=lowercase))):
        # sacreBLEU's counts of n-grams and lengths, which are summed over the sentences.
        counts = np.array([[metric._extract_corpus_statistics(arm, [references]) for arm in pair] for pair in pairs])

        def difference(seed: int, times: np.ndarray, metric: Any = metric, counts: np.ndarray = counts) -> float:
            first, second = (metric._compute_score_from_stats(sums).score for sums in (times @ counts[seed]).tolist())
            return float(second - first)

        observed = np.mean([difference(seed, np.ones(sentences, dtype=int)) for seed in range(len(pairs))])
        drawn = [np.mean(list(map(difference, row, times))) for row, times in zip(seeds, times_drawn, strict=True)]
        low, high = np.percentile(drawn, (2.5, 97.5))
        result[name] = (float(observed), float(low), float(high))
    return result


def of_arms(group: str, by_arm: Mapping[str, Sequence[Run]], baseline: str) -> list[dict[str, Any]]:
    """Returns each arm's difference to the baseline, over the seeds whose translations, and references, are at hand."""

    def at_hand(runs: Sequence[Run]) -> dict[int, Path]:
        folders = {run.seed: Path(run.folder) for run in runs if run.folder}
        return {seed: folder for seed, folder in folders.items() if (folder / run_folder.HYPOTHESES).exists()}

    base, entries = at_hand(by_arm.get(baseline, ())), []
    for arm, runs in by_arm.items():
        others = at_hand(runs)
        common = [seed for seed in base if seed in others]
        if arm != baseline and common:
            test = score.references(base[common[0]])
            if not test.raw.exists():
                continue
            pairs = [(test.plain(base[seed]), test.plain(others[seed])) for seed in common]
            measured = nested_bootstrap(pairs, list(read_lines(test.raw)), test.lowercase)
            for metric, (difference, low, high) in measured.items():
                entry = {"group": group, "arm": arm, "seeds": common, "metric": metric, "difference": difference}
                entries.append({**entry, "low": low, "high": high})
    return entries
