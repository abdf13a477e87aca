"""Scores the translations of a run with sacreBLEU, or tests two runs for a significant difference.

BLEU and chrF on detokenised text, each with its signature, and BLEU's length ratio (the translations' tokens by the
references') and brevity penalty are added to the run's results.json. For a task with tokenised text the hypotheses are
detokenised first (hypotheses.detok.txt), and the tokenised BLEU of older papers is printed too, labelled as such. With
two runs, prints sacreBLEU's paired bootstrap test of the second against the first. Stops if hypotheses and references
differ in number.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fairseq_gpam.lab.recipes import stage_results, stages
from fairseq_gpam.lab.recipes.logs import CountMismatchError
from fairseq_gpam.lab.recipes.run_folder import HYPOTHESES, RunError, exclusive
from fairseq_gpam.lab.recipes.subwords import detokenize, read_lines, split_compounds, write_lines

SACREBLEU = (("bleu", "BLEU"), ("chrf", "chrF"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; at most two")
    parser.add_argument("--references", type=Path, metavar="FILE", help="raw text (default: the task's test set)")
    parser.add_argument("--split-compounds", action="store_true", help="tokenised BLEU: split words at hyphens first")


def run(arguments: argparse.Namespace) -> int:
    if len(arguments.runs) > 2:
        raise RunError("expected one or two run folders; see --help")
    for folder in arguments.runs:
        if not (folder / HYPOTHESES).is_file():
            raise RunError(f"no {folder / HYPOTHESES}; first run: fairseq-gpam generate")
    tests = [references(folder, arguments.references, arguments.split_compounds) for folder in arguments.runs]
    if len(tests) == 1:
        print(*score_lines(score(arguments.runs[0], tests[0])), sep="\n")
    else:
        print(compare(*arguments.runs, *tests))
    return 0


@dataclass(frozen=True)
class References:
    """A test set's raw references and, if the task's text is tokenised, what is needed to detokenise hypotheses.

    `detokenize` is the language of the Moses detokeniser, `tokenized` the tokenised references.
    """

    raw: Path
    lowercase: bool = False
    detokenize: str | None = None
    tokenized: Path | None = None
    compounds: bool = False

    def plain(self, folder: Path) -> list[str]:
        """Returns the run's hypotheses, detokenised if they are tokenised.

        Raises `CountMismatchError` if their number differs from that of the references.
        """
        hypotheses = list(read_lines(folder / HYPOTHESES))
        check_counts(hypotheses, list(read_lines(self.raw)), folder)
        return detokenize(hypotheses, self.detokenize) if self.detokenize else hypotheses


def references(folder: Path, raw: Path | None = None, compounds: bool = False) -> References:
    """Returns the references of a run's test set."""
    out, task = stages.run_of(folder)
    text, moses = task.text(out), task.data.tokenizer == "moses"
    return References(
        raw=raw or text / f"test.{task.target}",
        lowercase=task.data.lowercase,
        detokenize=task.target if moses else None,
        tokenized=text / f"input/test.{task.target}" if moses else None,
        compounds=compounds,
    )


def check_counts(hypotheses: Sequence[str], references: Sequence[str], where: object = "") -> None:
    """Raises `CountMismatchError` with both counts if they differ."""
    if len(hypotheses) != len(references):
        suffix = f" ({where})" if where else ""
        raise CountMismatchError(f"{len(hypotheses)} hypotheses but {len(references)} references{suffix}")


def tokenized_scores(hypotheses: Sequence[str], references: Sequence[str], compounds: bool = False) -> dict[str, Any]:
    """Returns BLEU of the tokenised text, without smoothing, as older papers report it.

    It is comparable only for the same tokenisation. `compounds` splits words at hyphens first. Raises
    `CountMismatchError` if hypotheses and references differ in number.
    """
    from sacrebleu.metrics import BLEU

    check_counts(hypotheses, references)
    if compounds:
        hypotheses, references = list(map(split_compounds, hypotheses)), list(map(split_compounds, references))
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return {
        "tokenized_bleu": metric.corpus_score(hypotheses, [references]).score,
        "tokenized_bleu_signature": str(metric.get_signature()),
        "tokenized_bleu_compounds_split": compounds,
    }


def score(folder: Path, test: References) -> dict[str, Any]:
    """Scores the run's `hypotheses.txt` and records the scores, each with its signature; keeps the detokenised text.

    Raises `CountMismatchError` if hypotheses and references differ in number.
    """
    from sacrebleu.metrics import BLEU, CHRF

    raw = list(read_lines(test.raw))
    tokenized = list(read_lines(test.tokenized)) if test.tokenized else []
    with exclusive(folder):
        plain = test.plain(folder)
        scores: dict[str, Any] = {"sentences": len(plain)}
        bleu, chrf = BLEU(lowercase=test.lowercase), CHRF(lowercase=test.lowercase)
        measured = bleu.corpus_score(plain, [raw])
        for name, metric, value in (("bleu", bleu, measured), ("chrf", chrf, chrf.corpus_score(plain, [raw]))):
            scores[name] = value.score
            scores[f"{name}_signature"] = str(metric.get_signature())
        scores |= {"length_ratio": measured.ratio, "brevity_penalty": measured.bp}
        if test.detokenize:
            write_lines(folder / "hypotheses.detok.txt", plain)
        if test.tokenized:
            scores |= tokenized_scores(list(read_lines(folder / HYPOTHESES)), tokenized, test.compounds)
        stage_results.update(folder, {"score": scores})
    return scores


def score_lines(scores: dict[str, Any]) -> list[str]:
    """Returns the scores as they are printed, each with its signature."""
    lines = [f"{title} = {scores[name]:.2f}  {scores[f'{name}_signature']}" for name, title in SACREBLEU]
    lines.append(f"length ratio = {scores['length_ratio']:.3f}, brevity penalty = {scores['brevity_penalty']:.3f}")
    if "tokenized_bleu" in scores:
        split = ", compounds split" if scores["tokenized_bleu_compounds_split"] else ""
        lines.append(
            f"tokenised BLEU (not comparable with the above{split}) = {scores['tokenized_bleu']:.2f}  "
            f"{scores['tokenized_bleu_signature']}"
        )
    return lines


def compare(first: Path, second: Path, test: References, second_test: References, samples: int = 1000) -> str:
    """Returns sacreBLEU's paired bootstrap test of two runs' BLEU and chrF2, the first being the baseline.

    Where resampling says nothing, p is 1: if the scores are equal, or if there are not two different sentences. Raises
    RunError if the runs' references or their cases differ.
    """
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.metrics.base import Metric
    from sacrebleu.significance import PairedTest, Result

    raw = list(read_lines(test.raw))
    if raw != list(read_lines(second_test.raw)) or test.lowercase != second_test.lowercase:
        raise RunError(f"{first} and {second} have different references; allowed: runs with the same test set and case")
    systems: list[tuple[str, Sequence[str]]] = [
        (str(first), test.plain(first)),
        (str(second), second_test.plain(second)),
    ]
    metrics: dict[str, Metric] = {"BLEU": BLEU(lowercase=test.lowercase), "chrF2": CHRF(lowercase=test.lowercase)}
    references = [raw]
    # sacreBLEU logs each step to standard error.
    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    signatures, measured = PairedTest(systems, metrics, references, test_type="bs", n_samples=samples)()
    different = len(set(zip(systems[0][1], systems[1][1], references[0], strict=True)))
    lines = []
    for metric in metrics:
        baseline, other = (cast(Result, score) for score in measured[metric])
        # sacreBLEU counts resamples that differ more than the observed scores, of which there are none in these cases.
        if different < 2 or baseline.score == other.score:
            other.p_value = 1.0
        for folder, value in ((first, baseline), (second, other)):
            p_value = "baseline" if value.p_value is None else f"p = {value.p_value:.4f}"
            lines.append(
                f"{metric}: {value.score:.2f} (bootstrap {value.mean:.2f} ± {value.ci:.2f}, {p_value})  {folder}"
            )
    lines.extend(f"{metric}: {signature}" for metric, signature in signatures.items())
    return "\n".join(lines)
