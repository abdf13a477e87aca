"""Reads losses, speeds, hypotheses and perplexities from fairseq's logs and outputs."""

import contextlib
import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq_gpam.errors import read_lines

RECORD = re.compile(r"\| INFO \| (train_inner|valid|test\d?) \| (\{.*\})$", re.MULTILINE)
PARAMETERS = re.compile(r"num\. (shared|expert) model params: ([\d,]+)")
RESUMED = re.compile(r"Loaded checkpoint .* @ [1-9][0-9]* updates\)")
NOT_FINITE = re.compile(r"^FloatingPointError: (?!Fatal error: gradients are inconsistent)(.*?)\.?$", re.MULTILINE)
INITIAL_WEIGHTS = re.compile(r"\| initial weights: ([0-9a-f]{16})$", re.MULTILINE)
TRANSLATED = re.compile(
    r"Translated ([\d,]+) sentences \(([\d,]+) tokens\) in ([\d.]+)s \([\d.]+ sentences/s, ([\d.]+) tokens/s\)"
)
EVALUATED = re.compile(r"Evaluated ([\d,]+) tokens in ([\d.]+)s \(([\d.]+) tokens/s\)")
LOSS_BASE_2 = re.compile(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)")
UPDATE = {"train_inner": "num_updates", "valid": "valid_num_updates"}
"""What a record must have, by its kind."""
HYPOTHESIS = re.compile(r"^H-(\d+)\t[^\t]*\t(.*)$", re.MULTILINE)


class CountMismatchError(ValueError):
    """The numbers of hypotheses and references, or of evaluated tokens and tokens of the text, differ."""


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def read(path: Path) -> str:
    """Returns the text of a log, empty if there is none; bytes that are not UTF-8 do not make the rest unreadable."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def measured(path: Path) -> dict[str, float]:
    """Returns what Snakemake's `benchmark:` measured, by the names of its columns; empty if it left no number."""
    row: dict[str, Any] = next(csv.DictReader(read(path).splitlines(), delimiter="\t"), {})
    return {name: float(value) for name, value in row.items() if is_number(value)}


def records(log: str, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the values of a training log's records of a kind: "train_inner" or "valid".

    A line that is damaged, as a full disk leaves it, is left out: it is no record, or lacks a number.
    """
    for name, values in RECORD.findall(log):
        if name == kind:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(values)
                if isinstance(record, dict) and is_number(record.get(UPDATE[kind])):
                    yield record


def _by_update(log: str, kind: str, *numbers: str) -> dict[int, dict[str, Any]]:
    """Returns the records of a kind that have these numbers, by their update; of a repeated one the last."""
    whole = (record for record in records(log, kind) if all(is_number(record.get(name)) for name in numbers))
    return {int(float(record[UPDATE[kind]])): record for record in whole}


def is_number(value: Any) -> bool:
    """Returns whether a value of fairseq's log, which prints numbers as text, is a number; NaN and infinity are."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def resumed(log: str) -> bool:
    """Returns whether a training went on from a checkpoint after its first update."""
    return RESUMED.search(log) is not None


def divergence(log: str, ended_badly: bool = False) -> dict[str, Any]:
    """Returns the `update` and the `reason` if a training has diverged, else nothing.

    It has if its last training or validation loss is not finite, or, if it `ended_badly`, if fairseq found gradients
    that are not, or scaled a loss down too often. At that point fairseq looks for the module where it began, which may
    fail with a StopIteration.
    """
    last = {kind: record for kind in ("train_inner", "valid") for record in records(log, kind)}
    update = int(last.get("train_inner", {}).get("num_updates", 0))
    crash = NOT_FINITE.search(log[log.rfind("| INFO | train_inner |") :]) if ended_badly else None
    if crash:
        return {"update": update, "reason": crash[1]}
    for kind, key, what in (("train_inner", "loss", "training"), ("valid", "valid_loss", "validation")):
        if kind in last and is_number(last[kind].get(key)) and not math.isfinite(float(last[kind][key])):
            return {"update": update, "reason": f"the {what} loss is {last[kind][key]}"}
    return {}


def parse_training_log(log: str, diverged: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns parameters, losses, speed and the digest of the initial weights from a log with `--log-format json`.

    If a resumed run repeated an update, its last record counts. Losses are as fairseq prints them
    (base 2), NaN for a training that `diverged`, which is recorded, and curves have the finite ones; speed is target
    tokens per second over all intervals. Raises `ValueError` if the log contains no validation of a training that has
    not diverged.
    """
    train = _by_update(log, "train_inner", "loss", "wpb", "wps")
    valid = _by_update(log, "valid", "valid_loss")
    if not valid and not diverged:
        raise ValueError("the training log holds no validation; was --log-format json given, or is the log damaged?")
    tokens = [float(record["wpb"]) for record in train.values()]
    seconds = [float(record["wpb"]) / float(record["wps"]) for record in train.values() if float(record["wps"]) > 0]
    losses = {number: float(record["valid_loss"]) for number, record in valid.items()}
    finite = {number: loss for number, loss in losses.items() if math.isfinite(loss)}
    best = min(finite, key=lambda number: finite[number], default=0)
    best_loss = math.nan if diverged else losses[best]
    trained = {number: float(train[number]["loss"]) for number in sorted(train)}
    answered = {n: float(record["valid_accuracy"]) for n, record in valid.items() if "valid_accuracy" in record}
    return {
        "parameters": sum({kind: _number(n) for kind, n in PARAMETERS.findall(log)}.values()),
        "updates": max(losses) if losses else max(train, default=0),
        "valid_loss": best_loss,
        "valid_nll_loss": best_loss if diverged else float(valid[best].get("valid_nll_loss", best_loss)),
        "best_update": best,
        "tokens_per_second": sum(tokens) / sum(seconds) if seconds else None,
        "curve": {
            "train": [[number, loss] for number, loss in trained.items() if math.isfinite(loss)],
            "valid": [[number, finite[number]] for number in sorted(finite)],
            **({"accuracy": [[number, answered[number]] for number in sorted(answered)]} if answered else {}),
        },
        **({"initial_weights": built[1]} if (built := INITIAL_WEIGHTS.search(log)) else {}),
        **({"diverged": dict(diverged)} if diverged else {}),
    }


def parse_hypotheses(output: str) -> list[str]:
    """Returns the best hypotheses from fairseq-generate's output, in the test set's order."""
    hypotheses: dict[int, str] = {}
    for number, text in HYPOTHESIS.findall(output):
        hypotheses.setdefault(int(number), text.strip())
    return [hypotheses[number] for number in sorted(hypotheses)]


def parse_generation_log(log: str) -> dict[str, Any]:
    """Returns the number of sentences and tokens generated and the tokens per second.

    Raises `ValueError` if fairseq-generate's closing line is missing.
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
    """Returns loss (bits per subword), tokens and speed from fairseq-eval-lm's log.

    Raises `ValueError` if its closing lines are missing.
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


def parse_answers(log: str) -> dict[str, dict[str, float]]:
    """Returns the loss (bits an answer) and the accuracy on each test set from fairseq-validate's log, by its name.

    Raises `ValueError` if the log has none.
    """
    answers = {}
    for name, text in RECORD.findall(log):
        if name.startswith("test"):
            values = json.loads(text)
            answers[name] = {key: float(values[f"{name}_{key}"]) for key in ("loss", "accuracy")}
    if not answers:
        raise ValueError("the log of fairseq-validate has no line of a test set")
    return answers


def count_tokens(path: Path) -> int:
    """Returns the number of whitespace-separated tokens of a text, counting one end-of-line symbol per line."""
    return sum(len(line.split()) + 1 for line in read_lines(path))


def of_text(evaluation: dict[str, Any], text: Path, subword: Path, by_bytes: bool = False) -> dict[str, Any]:
    """Adds the perplexity per subword and per word of `text`, encoded in `subword`, both with an end for each line.

    With `by_bytes`, where tokens are bytes, it adds the bits per character (a byte here) instead: the total bits of the
    text divided by its size. Raises `CountMismatchError` if not all of the text was evaluated.
    """
    tokens, bits = count_tokens(subword), evaluation["bits_per_subword"]
    if evaluation["tokens"] == 0:
        raise CountMismatchError(
            f"fairseq-eval-lm evaluated 0 of {tokens:,} tokens: its blocks are longer than the model's; "
            "pass the --tokens-per-sample of the training"
        )
    if evaluation["tokens"] != tokens:
        raise CountMismatchError(f"{evaluation['tokens']} tokens evaluated, but the test text has {tokens}")
    if by_bytes:
        characters = text.stat().st_size
        return {**evaluation, "characters": characters, "bits_per_character": bits * tokens / characters}
    words = count_tokens(text)
    perplexities = {"perplexity_subword": 2**bits, "perplexity_word": 2 ** (bits * tokens / words)}
    return {**evaluation, "words": words, **perplexities}
