"""Reads fairseq's logs, scores hypotheses, and keeps and shows the results of runs.

``table RUN...`` prints runs as a Markdown table, ``report RUN... --out FOLDER`` writes that table, the JSON and the
learning curves, ``keep RUN...`` adds results to ``examples/results``, and ``tables`` rebuilds the tables of README.md
and examples/ from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_gpam.recipes.subwords import MosesDetokenize, split_compounds, write_lines
from fairseq_gpam.recipes.subwords import read_lines as iterate_lines

RECORD = re.compile(r"\| INFO \| (train_inner|train|valid) \| (\{.*\})$", re.MULTILINE)
PARAMETERS = re.compile(r"num\. (shared|expert) model params: ([\d,]+)")
TRANSLATED = re.compile(
    r"Translated ([\d,]+) sentences \(([\d,]+) tokens\) in ([\d.]+)s "
    r"\([\d.]+ sentences/s, ([\d.]+) tokens/s\)"
)
EVALUATED = re.compile(r"Evaluated ([\d,]+) tokens in ([\d.]+)s \(([\d.]+) tokens/s\)")
LOSS_BASE_2 = re.compile(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)")
SACREBLEU = (("bleu", "BLEU"), ("chrf", "chrF"))
HYPOTHESIS = re.compile(r"^H-(\d+)\t[^\t]*\t(.*)$", re.MULTILINE)


class CountMismatchError(ValueError):
    """Hypotheses and references differ in number."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either its old or its whole new content."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def read(folder: Path) -> dict[str, Any]:
    """Return the run's recorded results, empty if no stage has ended yet."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def update(folder: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """Add ``entries`` to the run's ``results.json`` and return all of it."""
    recorded = {**read(folder), **entries}
    write_atomically(folder / "results.json", json.dumps(recorded, indent=2) + "\n")
    return recorded


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def parse_training_log(log: str) -> dict[str, Any]:
    """Return parameters, losses and speed from a log with ``--log-format json``.

    An update that an interrupted run reached twice counts once, as it was last written. Losses are
    as fairseq prints them (base 2), speed is target tokens per second over all intervals.
    Raises ``ValueError`` if the log holds no validation.
    """
    train: dict[int, dict[str, str]] = {}
    valid: dict[int, dict[str, str]] = {}
    for name, record in RECORD.findall(log):
        values = json.loads(record)
        if name == "train_inner":
            train[int(values["num_updates"])] = values
        elif name == "valid":
            valid[int(values["valid_num_updates"])] = values
    if not valid:
        raise ValueError("the training log holds no validation; was --log-format json given?")
    tokens = [float(record["wpb"]) for record in train.values()]
    seconds = [float(record["wpb"]) / float(record["wps"]) for record in train.values() if float(record["wps"]) > 0]
    losses = {number: float(record["valid_loss"]) for number, record in valid.items()}
    best = min(losses, key=lambda number: losses[number])
    return {
        "parameters": sum({kind: _number(n) for kind, n in PARAMETERS.findall(log)}.values()),
        "updates": max(losses),
        "valid_loss": losses[best],
        "valid_nll_loss": float(valid[best].get("valid_nll_loss", losses[best])),
        "best_update": best,
        "tokens_per_second": sum(tokens) / sum(seconds) if seconds else None,
        "curve": {
            "train": [[number, float(train[number]["loss"])] for number in sorted(train)],
            "valid": [[number, losses[number]] for number in sorted(losses)],
        },
    }


def parse_hypotheses(output: str) -> list[str]:
    """Return the best hypotheses of fairseq-generate's output in the test set's order."""
    hypotheses: dict[int, str] = {}
    for number, text in HYPOTHESIS.findall(output):
        hypotheses.setdefault(int(number), text.strip())
    return [hypotheses[number] for number in sorted(hypotheses)]


def parse_generation_log(log: str) -> dict[str, Any]:
    """Return the number of sentences and tokens generated and the tokens per second.

    Raises ``ValueError`` if fairseq-generate's closing line is missing.
    """
    match = TRANSLATED.search(log)
    if not match:
        raise ValueError("the output of fairseq-generate has no line 'Translated … sentences'")
    return {
        "sentences": _number(match[1]),
        "tokens": _number(match[2]),
        "seconds": float(match[3]),
        "tokens_per_second": float(match[4]),
    }


def parse_evaluation_log(log: str) -> dict[str, Any]:
    """Return loss (bits per subword), tokens and speed from fairseq-eval-lm's log.

    Raises ``ValueError`` if its closing lines are missing.
    """
    evaluated, loss = EVALUATED.search(log), LOSS_BASE_2.search(log)
    if not evaluated or not loss:
        raise ValueError("the log of fairseq-eval-lm has no lines 'Evaluated …' and 'Loss …'")
    return {
        "tokens": _number(evaluated[1]),
        "seconds": float(evaluated[2]),
        "tokens_per_second": float(evaluated[3]),
        "bits_per_subword": float(loss[1]),
    }


def count_tokens(path: Path) -> int:
    """Count the whitespace-separated tokens of a text, one more per line for its end."""
    with path.open(encoding="utf-8") as lines:
        return sum(len(line.split()) + 1 for line in lines)


def _check_tokens(evaluation: dict[str, Any], subwords: int) -> None:
    if evaluation["tokens"] != subwords:
        raise CountMismatchError(f"{evaluation['tokens']} tokens evaluated, but the test text has {subwords}")


def bits_per_character(evaluation: dict[str, Any], characters: int, tokens: int) -> dict[str, Any]:
    """Add the bits per character, which is a byte: all bits of the text over its ``characters``.

    Raises ``CountMismatchError`` if the number of evaluated tokens is not ``tokens``.
    """
    _check_tokens(evaluation, tokens)
    bits = evaluation["bits_per_subword"] * tokens / characters
    return {**evaluation, "characters": characters, "bits_per_character": bits}


def perplexities(evaluation: dict[str, Any], words: int, subwords: int) -> dict[str, Any]:
    """Add the perplexity per subword and per word, both counting one end-of-line symbol a line.

    Raises ``CountMismatchError`` if the number of evaluated tokens is not ``subwords``.
    """
    _check_tokens(evaluation, subwords)
    bits = evaluation["bits_per_subword"]
    return {
        **evaluation,
        "words": words,
        "perplexity_subword": 2**bits,
        "perplexity_word": 2 ** (bits * subwords / words),
    }


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text, split at line feeds only."""
    return list(iterate_lines(path))


def check_counts(hypotheses: Sequence[str], references: Sequence[str], where: object = "") -> None:
    """Raise ``CountMismatchError`` with both counts if they differ."""
    if len(hypotheses) != len(references):
        suffix = f" ({where})" if where else ""
        raise CountMismatchError(f"{len(hypotheses)} hypotheses but {len(references)} references{suffix}")


def corpus_scores(hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False) -> dict[str, Any]:
    """Return sacreBLEU's BLEU and chrF of detokenised text, each with its signature.

    ``lowercase``: of lower-cased text.

    Raises ``CountMismatchError`` if hypotheses and references differ in number.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_counts(hypotheses, references)
    scores: dict[str, Any] = {"sentences": len(hypotheses)}
    for name, metric in (("bleu", BLEU(lowercase=lowercase)), ("chrf", CHRF(lowercase=lowercase))):
        scores[name] = metric.corpus_score(hypotheses, [references]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def tokenized_scores(hypotheses: Sequence[str], references: Sequence[str], compounds: bool = False) -> dict[str, Any]:
    """Return BLEU of tokenised text as it is, without smoothing, as older papers report it.

    Its value depends on the tokenisation: compare it with nothing else. ``compounds`` splits words at
    hyphens first. Raises ``CountMismatchError`` if hypotheses and references differ in number.
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


@dataclass(frozen=True)
class References:
    """A test set's raw references and, where the task's text is tokenised, how to get to them.

    ``detokenize`` is the language of Moses's detokenisation, ``tokenized`` the tokenised references.
    """

    raw: Path
    lowercase: bool = False
    detokenize: str | None = None
    tokenized: Path | None = None
    compounds: bool = False

    def plain(self, folder: Path) -> list[str]:
        """Return the run's hypotheses, detokenised where they are tokenised.

        Raises ``CountMismatchError`` if there are not as many as references.
        """
        hypotheses = read_lines(folder / "hypotheses.txt")
        check_counts(hypotheses, read_lines(self.raw), folder)
        return list(map(MosesDetokenize(self.detokenize), hypotheses)) if self.detokenize else hypotheses


def score(folder: Path, test: References) -> dict[str, Any]:
    """Score the run's ``hypotheses.txt`` and record the scores; keep what was detokenised."""
    plain = test.plain(folder)
    scores = corpus_scores(plain, read_lines(test.raw), test.lowercase)
    if test.detokenize:
        write_lines(folder / "hypotheses.detok.txt", plain)
    if test.tokenized:
        hypotheses, references = read_lines(folder / "hypotheses.txt"), read_lines(test.tokenized)
        scores |= tokenized_scores(hypotheses, references, test.compounds)
    update(folder, {"score": scores})
    return scores


def score_lines(scores: dict[str, Any]) -> list[str]:
    """Return the scores as they are printed, each with its signature."""
    lines = [f"{title} = {scores[name]:.2f}  {scores[f'{name}_signature']}" for name, title in SACREBLEU]
    if "tokenized_bleu" in scores:
        split = ", compounds split" if scores["tokenized_bleu_compounds_split"] else ""
        lines.append(
            f"tokenised BLEU (not comparable with the above{split}) = {scores['tokenized_bleu']:.2f}  "
            f"{scores['tokenized_bleu_signature']}"
        )
    return lines


def paired_bootstrap(
    first: Path, second: Path, test: References, samples: int = 1000
) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """Returns sacreBLEU's paired bootstrap of two runs' BLEU and chrF2 by metric, and the signatures.

    The first run is the baseline, whose p is None.
    """
    from sacrebleu.metrics import BLEU, CHRF
    from sacrebleu.metrics.base import Metric
    from sacrebleu.significance import PairedTest

    systems: list[tuple[str, Sequence[str]]] = [(str(folder), test.plain(folder)) for folder in (first, second)]
    metrics: dict[str, Metric] = {"BLEU": BLEU(lowercase=test.lowercase), "chrF2": CHRF(lowercase=test.lowercase)}
    references = [read_lines(test.raw)]
    signatures, measured = PairedTest(systems, metrics, references, test_type="bs", n_samples=samples)()
    return {metric: (measured[metric][0], measured[metric][1]) for metric in metrics}, {
        name: str(one) for name, one in signatures.items()
    }


def compare(first: Path, second: Path, test: References, samples: int = 1000) -> str:
    """Return sacreBLEU's paired bootstrap test of two runs, the first being the baseline."""
    measured, signatures = paired_bootstrap(first, second, test, samples)
    lines = []
    for metric, values in measured.items():
        for folder, value in zip((first, second), values, strict=True):
            p_value = "baseline" if value.p_value is None else f"p = {value.p_value:.4f}"
            lines.append(
                f"{metric}: {value.score:.2f} (bootstrap {value.mean:.2f} ± {value.ci:.2f}, {p_value})  {folder}"
            )
    lines.extend(f"{metric}: {signature}" for metric, signature in signatures.items())
    return "\n".join(lines)


Column = tuple[str, Callable[[dict[str, Any]], Any], str]

COMMON: list[Column] = [
    ("mechanism", lambda run: run["name"], ""),
    ("seed", lambda run: run["seed"], ""),
    ("parameters", lambda run: run["train"]["parameters"], ","),
    ("updates", lambda run: run["train"]["updates"], ","),
    ("valid loss", lambda run: run["train"]["valid_loss"], ".3f"),
]
TRAINING_SPEED: Column = (
    "training tokens/s",
    lambda run: run["train"]["tokens_per_second"],
    ",.0f",
)
TRANSLATION: list[Column] = [
    *COMMON,
    ("BLEU", lambda run: run["score"]["bleu"], ".1f"),
    ("chrF", lambda run: run["score"]["chrf"], ".1f"),
    ("tokenised BLEU", lambda run: run["score"]["tokenized_bleu"], ".1f"),
    TRAINING_SPEED,
    ("decoding tokens/s", lambda run: run["generate"]["tokens_per_second"], ",.0f"),
]
LANGUAGE_MODEL: list[Column] = [
    *COMMON,
    ("perplexity per subword", lambda run: run["eval-lm"]["perplexity_subword"], ".2f"),
    ("perplexity per word", lambda run: run["eval-lm"]["perplexity_word"], ".2f"),
    TRAINING_SPEED,
    ("evaluation tokens/s", lambda run: run["eval-lm"]["tokens_per_second"], ",.0f"),
]


CHARACTERS: list[Column] = [
    *COMMON,
    ("bits per character", lambda run: run["eval-lm"]["bits_per_character"], ".3f"),
    *LANGUAGE_MODEL[-2:],
]
COLUMNS = {"translation": TRANSLATION, "words": LANGUAGE_MODEL, "characters": CHARACTERS}
OPTIONAL = frozenset({"tokenised BLEU"})
"""Columns that a table shows only if a run has them."""


def kind_of(run: dict[str, Any]) -> str:
    """Return which of ``COLUMNS`` shows the run."""
    if "bits_per_character" in run.get("eval-lm", ()):
        return "characters"
    return "words" if "eval-lm" in run else "translation"


def table(runs: Sequence[dict[str, Any]], kind: str | None = None) -> str:
    """Return runs as a Markdown table; what was not run says so.

    Runs of different kinds cannot share a table: raises ``ValueError``.
    """
    from tabulate import tabulate

    kinds = {kind} if kind else {kind_of(run) for run in runs}
    if len(kinds) != 1:
        raise ValueError("a table shows either translation runs or language models of one kind, at least one")
    columns = COLUMNS[kinds.pop()]
    rows = [[_cell(run, value, form) for _, value, form in columns] for run in runs]
    shown = [
        number
        for number, (name, value, _) in enumerate(columns)
        if name not in OPTIONAL or any(has(run, value) for run in runs)
    ]
    return tabulate(
        [[row[n] for n in shown] for row in rows],
        headers=[columns[n][0] for n in shown],
        tablefmt="github",
        colalign=["left"] + ["right"] * (len(shown) - 1),
        disable_numparse=True,
    )


def has(run: dict[str, Any], value: Callable[[dict[str, Any]], Any]) -> bool:
    """Tell whether the run recorded the value."""
    try:
        value(run)
    except KeyError:
        return False
    return True


def _cell(run: dict[str, Any], value: Callable[[dict[str, Any]], Any], form: str) -> str:
    if not has(run, value):
        return "–" if run.get("published") else "not run"
    number = value(run)
    if isinstance(number, str):
        return number
    return "not measured" if number is None else format(number, form)


def footnotes(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the score signatures, machines and versions behind a table, each once."""
    notes: dict[str, None] = {}
    for run in runs:
        for name in ("bleu", "chrf"):
            if "score" in run:
                notes[f"{name}: {run['score'][f'{name}_signature']}"] = None
        environment = run["train"]["environment"]
        machine = environment["machine"]
        device = ", ".join(machine["accelerators"]) or machine["cpu"]
        notes[f"machine: {device}, {machine['cores']} cores, {machine['threads']} thread(s)"] = None
        notes["versions: " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items())] = None
        notes[f"commit: {environment['commit']}"] = None
    return list(notes)


def report(runs: Sequence[dict[str, Any]], out: Path) -> str:
    """Write ``table.md``, ``results.json`` and ``learning-curves.png``; return the table."""
    from fairseq_gpam.experiments.plots import learning_curves

    out.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    notes = "".join(f"- {note}\n" for note in footnotes(runs))
    write_atomically(out / "table.md", f"{text}\n\n{notes}")
    write_atomically(out / "results.json", json.dumps(list(runs), indent=2) + "\n")
    learning_curves(runs, out / "learning-curves.png")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="results_command", required=True, metavar="COMMAND")
    command = commands.add_parser("table", help="Markdown table of runs")
    command.add_argument("runs", type=Path, nargs="+")
    command = commands.add_parser("report", help="table, JSON and learning curves of runs")
    command.add_argument("runs", type=Path, nargs="+")
    command.add_argument("--out", type=Path, required=True)
    command = commands.add_parser(
        "keep", help="add runs' results, without training curves and paths, to examples/results"
    )
    command.add_argument("runs", type=Path, nargs="+")
    command.add_argument("--repository", type=Path, default=Path())
    command = commands.add_parser("tables", help="rebuild the results tables of README.md and examples/")
    command.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    command.add_argument("--repository", type=Path, default=Path())


def run(args: argparse.Namespace) -> int:
    # Some of fairseq's modules set the root logger to DEBUG when imported.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        if args.results_command == "table":
            print(table([read(run) for run in args.runs]))
        elif args.results_command == "report":
            print(report([read(run) for run in args.runs], args.out))
        else:
            _tables(args)
    except (CountMismatchError, FileNotFoundError) as error:
        sys.exit(str(error))
    return 0


def _tables(args: argparse.Namespace) -> None:
    from fairseq_gpam.experiments import tables

    if args.results_command == "keep":
        print(*tables.keep(args.runs, args.repository), sep="\n")
        return
    changed = tables.rebuild(args.repository, write=not args.check)
    for path in changed:
        print(f"out of date: {path}" if args.check else path)
    if args.check and changed:
        sys.exit("run: python -m fairseq_gpam results tables")
