"""Reads the folders of finished runs: the results that the stages recorded, and other files."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.recipes import logs, run_folder, stage_results

COLLAPSE = (
    *("residual_ratio", "mean_cosine", "effective_rank", "attention_output_residual_ratio"),
    *("attention_output_mean_cosine", "attention_output_effective_rank", "entropy_normalised", "negative_mass"),
)
BY_LAYER = ("residual_norm", "residual_ratio", "mean_cosine", "query_gradient")
"""The measures of arXiv 2410.15578, Figure 4, and the residual norm over that of the states."""
COSTS = (
    ("parameters", "parameters", ("train", "parameters")),
    ("training_seconds", "training (s)", ("benchmark", "seconds")),
    ("peak_memory_mib", "peak memory (MiB)", ("benchmark", "peak_memory_mib")),
    ("training_tokens_per_second", "training tokens/s", ("train", "tokens_per_second")),
    ("decoding_tokens_per_second", "decoding tokens/s", ("generate", "tokens_per_second")),
)
"""The costs of a run: key, label, and where a run has it: stage and entry."""
ATTEMPT = re.compile(r"^\[[^]]*\] (training; all|training had ended|trained already)", re.MULTILINE)
RESUMED = re.compile(r"Loaded checkpoint .* @ [1-9][0-9]* updates\)")
LAMBDA = re.compile(r"gpam_(\w+?_lambda\w*)")


class Measured(msgspec.Struct, frozen=True):
    """One measurement of analyze; `head` is None for a mean over the heads."""

    variant: str
    metric: str
    site: str
    layer: int
    head: int | None
    mean: float | None


class Variant(msgspec.Struct, frozen=True):
    """One measured model, or a part of it."""

    variant: str


class Analysis(msgspec.Struct, frozen=True):
    """What is read of analyze's results.json; the full model comes first."""

    runs: Annotated[list[Variant], msgspec.Meta(min_length=1)]
    records: list[Measured]


def read(folder: Path) -> dict[str, Any]:
    """Returns what the stages of a run in `OUT/runs/TASK/NAME/SEED` recorded, with data from other files there.

    These are λ over training, collapse measures, also by layer, and the cost of training, each only if it was
    recorded. Raises `FileNotFoundError` if the training has not ended.
    """
    run = stage_results.read(folder)
    if "train" not in run:
        raise FileNotFoundError(f"{folder} holds no results of a finished training")
    run["task"] = folder.resolve().parents[1].name
    log, analysis = folder / run_folder.TRAIN_LOG, folder / "analysis/results.json"
    lambdas = lambda_history(logs.read(log))
    if lambdas:
        run["lambdas"] = lambdas
    if analysis.exists():
        measured = schema.read_json(analysis, Analysis)
        run["collapse"], run["by_layer"] = collapse_measures(measured), measures_by_layer(measured)
    cost = training_cost(folder)
    if cost:
        run["benchmark"] = cost
    return run


def training_cost(folder: Path) -> dict[str, float]:
    """Returns `seconds` and `peak_memory_mib` of a training, as measured by Snakemake.

    Empty if they were not measured, or if the measured job did not train from update 0 to the end: Snakemake measures
    only the last attempt, which may find a training that began or ended before.
    """
    benchmark, said, log = (folder / name for name in ("train.benchmark.tsv", "train.job.log", run_folder.TRAIN_LOG))
    attempts, logged = map(logs.read, (said, log))
    if not benchmark.exists() or ATTEMPT.findall(attempts) != ["training; all"] or RESUMED.search(logged):
        return {}
    row: dict[str, Any] = next(csv.DictReader(logs.read(benchmark).splitlines(), delimiter="\t"), {})
    columns = {"seconds": "s", "peak_memory_mib": "max_rss"}
    return {name: float(row[column]) for name, column in columns.items() if logs.is_number(row.get(column))}


def lambda_history(log: str) -> dict[str, list[list[float]]]:
    """Returns [update, value] of every λ in a log written with --gpam-log-attention.

    Log intervals without a recorded λ are left out.
    """
    history: dict[str, dict[int, float]] = {}
    for record in logs.records(log, "train_inner"):
        for name, value in record.items():
            if (match := LAMBDA.fullmatch(name)) and logs.is_number(value):
                history.setdefault(match[1], {})[int(record["num_updates"])] = float(value)
    return {name: [[update, points[update]] for update in sorted(points)] for name, points in history.items()}


def place_of(name: str) -> tuple[str, int, str]:
    """Returns the site, the layer and the sign ("plus", "minus", or "") of a λ such as `encoder1_lambda_plus`."""
    place = name.partition("_")[0]
    site = place.rstrip("0123456789")
    sign = next((sign for sign in ("plus", "minus") if sign in name), "")
    return site, int(place[len(site) :] or 1), sign


def collapse_measures(analysis: Analysis) -> dict[str, float]:
    """Returns each collapse measure in the last layer of each stack, from analyze's results for the full model."""
    return {name: points[-1][1] for name, points in _points(analysis, COLLAPSE)}


def measures_by_layer(analysis: Analysis) -> dict[str, list[list[float]]]:
    """Returns [layer, value] of each measure of `BY_LAYER`, from analyze's results for the full model."""
    return dict(_points(analysis, BY_LAYER))


def _points(analysis: Analysis, metrics: tuple[str, ...]) -> Iterator[tuple[str, list[list[float]]]]:
    """Yields "METRIC, SITE" with its defined [layer, value], in the order of layers; no single heads or variants."""
    series: dict[str, list[list[float]]] = {}
    for record in analysis.records:
        whole = record.variant == analysis.runs[0].variant and record.head is None
        if record.metric in metrics and whole and record.mean is not None:
            series.setdefault(f"{record.metric}, {record.site}", []).append([record.layer, record.mean])
    yield from ((name, sorted(points)) for name, points in series.items())
