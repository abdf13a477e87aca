"""Finished runs as their folders hold them: what the stages recorded, and what lies beside it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from fairseq_gpam.recipes import logs, recorded

COLLAPSE = (
    *("residual_ratio", "mean_cosine", "effective_rank", "attention_output_residual_ratio"),
    *("attention_output_mean_cosine", "attention_output_effective_rank", "entropy_normalised", "negative_mass"),
)
LAMBDA = re.compile(r"gpam_(\w+?_lambda\w*)")


def read(folder: Path) -> dict[str, Any]:
    """Returns what the stages of a run in ``OUT/runs/TASK/NAME/SEED`` recorded, its λ over training and its collapse.

    Both only where they were logged or analyze measured them. Raises ``FileNotFoundError`` if the training has not
    ended.
    """
    run = recorded.read(folder)
    if "train" not in run:
        raise FileNotFoundError(f"{folder} holds no results of a finished training")
    run["task"] = folder.resolve().parents[1].name
    log, analysis = folder / "train.log", folder / "analysis/results.json"
    lambdas = lambda_history(log.read_text(encoding="utf-8")) if log.exists() else {}
    if lambdas:
        run["lambdas"] = lambdas
    if analysis.exists():
        run["collapse"] = collapse_measures(json.loads(analysis.read_text(encoding="utf-8")))
    return run


def read_with_benchmark(folder: Path) -> dict[str, Any]:
    """Returns the run with the workflow engine's benchmark of its training and its folder.

    Raises ``FileNotFoundError`` if the training has not ended.
    """
    run = {**read(folder), "folder": str(folder)}
    benchmark = folder / "train.benchmark.tsv"
    if benchmark.exists():
        with benchmark.open(encoding="utf-8") as rows:
            row = next(csv.DictReader(rows, delimiter="\t"))
        run["benchmark"] = {name: float(row[name]) for name in ("s", "max_rss") if row[name] not in ("-", "NA")}
    return run


def lambda_history(log: str) -> dict[str, list[list[float]]]:
    """Returns [update, value] of every λ in a log written with --gpam-log-attention.

    An interval of the log in which no λ was recorded holds null, which is left out.
    """
    history: dict[str, dict[int, float]] = {}
    for record in logs.records(log, "train_inner"):
        for name, value in record.items():
            if (match := LAMBDA.fullmatch(name)) and value is not None:
                history.setdefault(match[1], {})[int(record["num_updates"])] = float(value)
    return {name: [[update, points[update]] for update in sorted(points)] for name, points in history.items()}


def place_of(name: str) -> tuple[str, int, str]:
    """Returns the site, the layer and the sign ("plus", "minus", or "") of a λ such as ``encoder1_lambda_plus``."""
    place = name.partition("_")[0]
    site = place.rstrip("0123456789")
    sign = next((sign for sign in ("plus", "minus") if sign in name), "")
    return site, int(place[len(site) :] or 1), sign


def collapse_measures(analysis: dict[str, Any]) -> dict[str, float]:
    """Returns each collapse measure of analyze's results in the last layer of each stack, of the whole model."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for record in analysis["records"]:
        key = record["metric"], record["site"]
        whole = record["variant"] == analysis["runs"][0]["variant"] and record["head"] is None
        deeper = key not in last or record["layer"] > last[key]["layer"]
        if key[0] in COLLAPSE and whole and record["mean"] is not None and deeper:
            last[key] = record
    return {f"{metric}, {site}": record["mean"] for (metric, site), record in last.items()}
