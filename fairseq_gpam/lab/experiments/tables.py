"""Shows the results of runs.

`table RUN...` prints runs as a Markdown table; `report RUN... --out FOLDER` writes that table, the JSON and the
learning curves.
"""

import argparse
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, methodcaller
from pathlib import Path

import msgspec

from fairseq_gpam.lab.experiments import run_results
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.recipes import run_folder, stage_results, stages, synthetic, tasks


@dataclass(frozen=True)
class Row:
    """A row of a table: a run, one that was not made, or one that was published with some values as text."""

    name: str
    seed: str
    run: Run | None = None
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column: its key and heading, what it reads, what must have been run, and the number's format."""

    key: str
    title: str
    read: Callable[[Run], float | None]
    form: str
    stage: Callable[[Run], object] = attrgetter("training")


ACCURACIES = max(map(synthetic.test_sets, synthetic.GENERATORS), key=len)
"""The test sets that a task with questions may have."""


def bits_above_optimum(run: Run) -> float | None:
    """Returns how far the test loss is above the best possible predictor's, None for a task without a known one."""
    loss, data = run.loss("test"), tasks.load(run.task).data if run.task in tasks.names() else None
    if loss is None or data is None or data.corpus != "bigrams":
        return None
    return loss - synthetic.best_bits_of_bigrams(data.options, "test")


def _score(metric: str, title: str, form: str, test_set: str = "test") -> Column:
    key = metric if test_set == "test" else f"{metric}_{test_set}"
    return Column(key, title, methodcaller("score", metric, test_set), form, attrgetter("scores"))


def _columns(loss: str, *scores: Column, speed: str = "evaluation") -> tuple[Column, ...]:
    """Returns the columns of a kind of runs, those of its scores among them."""
    speeds = (
        ("training", "training_tokens_per_second", "training tokens/s"),
        ("evaluation", "evaluation_tokens_per_second", f"{speed} tokens/s"),
    )
    return (
        Column("parameters", "parameters", attrgetter("training.parameters"), ","),
        Column("updates", "updates", attrgetter("training.updates"), ","),
        Column("valid_loss", loss, lambda run: run.loss("valid", smoothed=True), ".3f"),
        Column("above_optimum", "test loss above the optimum (bits)", bits_above_optimum, ".4f"),
        *scores,
        *(Column(key, title, attrgetter(f"costs.{key}"), ",.0f", attrgetter(stage)) for stage, key, title in speeds),
    )


COLUMNS = {
    "translation": _columns(
        "valid loss (bits, label-smoothed)",
        _score("bleu", "BLEU", ".1f"),
        _score("chrf", "chrF", ".1f"),
        _score("length_ratio", "length ratio", ".3f"),
        _score("brevity_penalty", "brevity penalty", ".3f"),
        _score("tokenized_bleu", "tokenised BLEU", ".1f"),
        speed="decoding",
    ),
    "words": _columns(
        "valid loss (bits)",
        _score("perplexity_subword", "perplexity per subword", ".2f"),
        _score("perplexity_word", "perplexity per word", ".2f"),
    ),
    "characters": _columns("valid loss (bits)", _score("bits_per_character", "bits per character", ".3f")),
    "answers": _columns(
        "valid loss (bits an answer)",
        *(_score("accuracy", f"right answers, {name}", ".4f", name) for name in ACCURACIES),
    ),
}
OPTIONAL = (
    *("length_ratio", "brevity_penalty", "tokenized_bleu", "above_optimum"),
    *(f"accuracy_{name}" for name in ACCURACIES[1:]),
)
"""The columns that a table shows only if a run has them."""


def row_of(run: Run) -> Row:
    """Returns the row of a run."""
    return Row(run.name, str(run.seed) + (f" (replicate {run.replicate})" if run.replicate > 1 else ""), run)


def kind_of(runs: Sequence[Run]) -> str:
    """Returns the key of `COLUMNS` for the runs; raises `ValueError` if they are of several tasks, or none."""
    groups = sorted({run.group for run in runs})
    if len(groups) != 1:
        raise ValueError(f"the runs are of {len(groups)} tasks ({', '.join(groups)}); allowed: runs of one task")
    kinds = {_kind(run) for run in runs}
    if len(kinds) != 1:
        raise ValueError(f"the runs of {groups[0]} have results of {' and '.join(sorted(kinds))}; allowed: one kind")
    return kinds.pop()


def _kind(run: Run) -> str:
    """Returns the kind of a run's results by what was measured, or else by the recipe of its task."""
    for kind, metric in (("characters", "bits_per_character"), ("answers", "accuracy")):
        if run.score(metric) is not None:
            return kind
    if run.evaluation:
        return "words" if run.loss("test") is not None else "translation"
    return (stages.run_of(Path(run.folder))[1] if run.folder else tasks.load(run.task)).result_kind


def table(rows: Sequence[Row], kind: str) -> str:
    """Returns runs as a Markdown table that marks missing runs as not run and leaves out what no run has."""
    from tabulate import tabulate

    columns = {column.title: [_cell(row, column) for row in rows] for column in COLUMNS[kind] if _shown(column, rows)}
    return tabulate(
        {"mechanism": [row.name for row in rows], "seed": [row.seed for row in rows], **columns},
        headers="keys",
        tablefmt="github",
        colalign=["left"] + ["right"] * (len(columns) + 1),
        disable_numparse=True,
    )


def _shown(column: Column, rows: Sequence[Row]) -> bool:
    some = any(_cell(row, column) not in ("not run", "not measured", "–") for row in rows)
    return some or (column.key not in OPTIONAL and not any(row.run for row in rows))


def _cell(row: Row, column: Column) -> str:
    if row.published:
        return row.published.get(column.key, "–")
    if row.run is None or not column.stage(row.run):
        return "not run"
    value = column.read(row.run)
    return "not measured" if value is None else format(value, column.form)


def footnotes(runs: Sequence[Run]) -> list[str]:
    """Returns notes on daGPAM's kind of W_Q⁻, and on score signatures, machines and versions, each once."""
    notes = negative_projections(runs)
    for run in runs:
        scores = (score for score in run.scores if score.metric in ("bleu", "chrf") and score.signature)
        notes += [f"{score.metric}: {score.signature}" for score in scores]
        if (environment := run.training.environment) is not None:
            machine = environment.machine
            device = ", ".join(machine.accelerators) or machine.cpu
            notes.append(f"machine: {device}, {machine.cores} cores, {machine.threads} thread(s)")
            versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
            notes += [f"versions: {versions}", f"commit: {environment.commit}"]
    return list(dict.fromkeys(notes))


def negative_projections(runs: Sequence[Run]) -> list[str]:
    """Returns a sentence on the kind of W_Q⁻ of each daGPAM run, from its command line; none without daGPAM runs."""
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        flags = run_folder.flags_of(shlex.split(run.training.command))
        chosen = [words[0] for flag, words in flags.items() if flag.endswith("mechanism") and words]
        if not any("dagpam" in stages.mechanism_names(spec) for spec in chosen):
            continue
        if flags.get("--gpam-negative-source") == ["input"]:
            kind = "from the layer's input to all heads"
        elif flags.get("--gpam-negative-projection") == ["shared"]:
            kind = "shared by the heads of a layer"
        else:
            kind = "one for each head"
        names.setdefault(kind, {})[run.name] = None
    return ["W_Q⁻: " + "; ".join(f"{kind}: {', '.join(runs)}" for kind, runs in names.items())] if names else []


def table_of_runs(runs: Sequence[Run]) -> str:
    """Returns finished runs as a Markdown table; raises `ValueError` for runs of different kinds."""
    return table([row_of(run) for run in runs], kind_of(runs))


def report(runs: Sequence[Run], out: Path) -> str:
    """Writes `table.md`, `results.json` and `learning-curves.png`; returns the table."""
    from fairseq_gpam.analysis import embed
    from fairseq_gpam.lab.experiments.plots import learning_curves

    out.mkdir(parents=True, exist_ok=True)
    text = table_of_runs(runs)
    notes = "".join(f"- {note}\n" for note in footnotes(runs))
    stage_results.write_atomically(out / "table.md", f"{text}\n\n{notes}")
    stage_results.write_atomically(out / "results.json", json.dumps(msgspec.to_builtins(list(runs)), indent=2) + "\n")
    embed.write(learning_curves(runs), out / "learning-curves.png")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="results_command", required=True, metavar="COMMAND")
    for name, summary in (("table", "Markdown table of runs"), ("report", "table, JSON and learning curves of runs")):
        command = commands.add_parser(name, help=summary)
        command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")


def run(arguments: argparse.Namespace) -> int:
    # Some of fairseq's modules set the root logger to DEBUG when imported.
    logging.getLogger().setLevel(logging.WARNING)
    runs = [run_results.read(folder) for folder in arguments.runs]
    print(report(runs, arguments.out) if arguments.results_command == "report" else table_of_runs(runs))
    return 0
