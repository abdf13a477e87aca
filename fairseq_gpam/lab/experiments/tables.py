"""Tables of runs as Markdown, and the report of a few runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.recipes import run_folder, stage_results, tasks

Column = tuple[str, Callable[[dict[str, Any]], Any], str]

COMMON: list[Column] = [
    ("mechanism", lambda run: run["name"], ""),
    ("seed", lambda run: run["seed"], ""),
    ("parameters", lambda run: run["train"]["parameters"], ","),
    ("updates", lambda run: run["train"]["updates"], ","),
    ("valid loss (bits)", lambda run: run["train"]["valid_loss"], ".3f"),
]
TRAINING_SPEED: Column = (
    "training tokens/s",
    lambda run: run["train"]["tokens_per_second"],
    ",.0f",
)
TRANSLATION: list[Column] = [
    *COMMON[:-1],
    ("valid loss (bits, label-smoothed)", *COMMON[-1][1:]),
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


def kind_of(runs: Sequence[dict[str, Any]]) -> str:
    """Returns the key of `COLUMNS` for the runs, according to the recipe of their task.

    Raises `ValueError` for runs of different kinds, which cannot share a table.
    """
    kinds = {_kind(run) for run in runs}
    if len(kinds) != 1:
        raise ValueError("a table shows either translation runs or language models of one kind, at least one")
    return kinds.pop()


def _kind(run: dict[str, Any]) -> str:
    """Returns the kind of a run's results by what was measured, or else by the recipe of its task."""
    if "generate" in run:
        return "translation"
    if "eval-lm" in run:
        return "characters" if "bits_per_character" in run["eval-lm"] else "words"
    return tasks.of_runs(run["task"]).result_kind


def table(runs: Sequence[dict[str, Any]], kind: str | None = None) -> str:
    """Returns runs as a Markdown table, in which missing runs are marked as not run.

    Raises `ValueError` for runs of different kinds, which cannot share a table.
    """
    from tabulate import tabulate

    columns = COLUMNS[kind or kind_of(runs)]
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
    """Returns whether the run recorded the value."""
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
    """Returns notes on daGPAM's kind of W_Q⁻, and on score signatures, machines and versions, each once."""
    notes: dict[str, None] = dict.fromkeys(negative_projections(runs))
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


def negative_projections(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a sentence on the kind of W_Q⁻ of each daGPAM run, from its command line; none without daGPAM runs."""
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        flags = run_folder.flags_of(shlex.split(run["train"].get("command", "")))
        chosen = " ".join(words[0] for flag, words in flags.items() if flag.endswith("mechanism") and words)
        if "dagpam" not in re.findall(r"\w+", chosen):
            continue
        if flags.get("--gpam-negative-source") == ["input"]:
            kind = "from the layer's input to all heads"
        elif flags.get("--gpam-negative-projection") == ["shared"]:
            kind = "shared by the heads of a layer"
        else:
            kind = "one for each head"
        names.setdefault(kind, {})[run["name"]] = None
    return ["W_Q⁻: " + "; ".join(f"{kind}: {', '.join(own)}" for kind, own in names.items())] if names else []


def report(runs: Sequence[dict[str, Any]], out: Path) -> str:
    """Writes `table.md`, `results.json` and `learning-curves.png`; returns the table."""
    from fairseq_gpam.analysis import embed
    from fairseq_gpam.lab.experiments.plots import learning_curves

    out.mkdir(parents=True, exist_ok=True)
    text = table(runs)
    notes = "".join(f"- {note}\n" for note in footnotes(runs))
    stage_results.write_atomically(out / "table.md", f"{text}\n\n{notes}")
    stage_results.write_atomically(out / "results.json", json.dumps(list(runs), indent=2) + "\n")
    embed.write(learning_curves(runs), out / "learning-curves.png")
    return text
