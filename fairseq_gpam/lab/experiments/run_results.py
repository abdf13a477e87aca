"""Reads the folders of finished runs: the results that the stages recorded, and other files."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec.structs import replace

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments.records import Lambda, Measure, Run, Site, Training
from fairseq_gpam.lab.recipes import logs, run_folder, stage_results

LAST_LAYER = (
    *("residual_ratio", "mean_cosine", "effective_rank", "attention_output_residual_ratio"),
    *("attention_output_mean_cosine", "attention_output_effective_rank", "entropy_normalised", "negative_mass"),
)
"""The measures of collapse that are compared with performance, in the last layer of each stack."""
BY_LAYER = ("residual_norm", "residual_ratio", "mean_cosine", "query_gradient")
"""The measures of arXiv 2410.15578, Figure 4, and the residual norm over that of the states, in every layer."""
COUNTS = ("sentences", "tokens", "words", "characters")
SCORES = (
    *("bleu", "chrf", "length_ratio", "brevity_penalty", "tokenized_bleu"),
    *("perplexity_subword", "perplexity_word", "bits_per_character"),
)


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


def read(folder: Path) -> Run:
    """Returns a run in `OUT/runs/TASK/NAME/SEED` with its λ over training, measures and costs, if they are there.

    Raises `FileNotFoundError` if the training has not ended, `SchemaError` if what was recorded is not a run.
    """
    stages = stage_results.read(folder)
    if "train" not in stages:
        raise FileNotFoundError(f"{folder} holds no results of a finished training")
    analysis = folder / "analysis/results.json"
    schema.check(stages, stage_results.Trained, str(folder / stage_results.RESULTS))
    try:
        values = from_stages(stages)
    except ValueError as error:
        raise schema.SchemaError(f"{folder / 'results.json'}: train.command is damaged ({error})") from error
    if folder.resolve().parents[1].name == f"{values['task']}-full":
        values["budget"] = "full"
    values["costs"] |= training_cost(folder, stages["train"].get("seconds"))
    run = schema.check(values, Run, str(folder / "results.json"))
    lambdas = lambda_history(logs.read(folder / run_folder.TRAIN_LOG))
    measured = measures(schema.read_json(analysis, Analysis)) if analysis.exists() else []
    return replace(run, folder=str(folder), lambdas=tuple(lambdas), measures=tuple(measured))


def from_stages(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a run from what its stages recorded; `records.Run` has their meaning."""
    train = stages["train"]
    evaluated = stages.get("generate") or stages.get("eval-lm") or {}
    scored = {**evaluated, **stages.get("score", {})}
    command = shlex.split(train["command"])
    smoothing = float(run_folder.last_flag(command, "--label-smoothing") or 0)
    losses = [{"split": "valid", "value": train["valid_loss"], "smoothing": smoothing}]
    if smoothing and "valid_nll_loss" in train:
        losses.append({"split": "valid", "value": train["valid_nll_loss"]})
    if "bits_per_subword" in evaluated:
        losses.append({"split": "test", "value": evaluated["bits_per_subword"]})
    run: dict[str, Any] = {
        "task": stages["task"],
        "arm": stages.get("arm", stages["name"]),
        "mechanism": run_folder.last_flag(command, "--gpam-mechanism") or "stock",
        "seed": stages["seed"],
        "learning_rate": stages.get("learning_rate"),
        "initial_weights": train.get("initial_weights"),
        "training": {**{key: train[key] for key in Training.__struct_fields__ if key in train}, **train["curve"]},
        "costs": {
            "training_tokens_per_second": train.get("tokens_per_second"),
            "processor_seconds": train.get("processor_seconds"),
            "evaluation_seconds": evaluated.get("seconds"),
            "evaluation_tokens_per_second": evaluated.get("tokens_per_second"),
        },
        "losses": losses,
        "scores": [
            {"metric": metric, "value": scored[metric], "signature": signature(scored, metric)}
            for metric in SCORES
            if metric in scored
        ],
    }
    if evaluated:
        counts = {key: evaluated[key] for key in COUNTS if key in evaluated}
        run["evaluation"] = {"command": evaluated["command"], "counts": counts}
        run["evaluation"]["environment"] = evaluated.get("environment")
    for test_set, answered in scored.get("answers", {}).items():
        losses.append({"split": "test", "value": answered["loss"], "unit": "answer", "test_set": test_set})
        run["scores"].append({"metric": "accuracy", "value": answered["accuracy"], "test_set": test_set})
    return run


def signature(scored: Mapping[str, Any], metric: str) -> str:
    """Returns a score's signature, which also says whether compounds were split."""
    written = scored.get(f"{metric}_signature", "")
    return f"{written}|compounds:split" if scored.get(f"{metric}_compounds_split") else written


def training_cost(folder: Path, trained: float | None) -> dict[str, float]:
    """Returns `training_seconds` and `peak_memory_mib` of a training, as measured by Snakemake.

    Empty if they were not measured, or if the measured job was shorter than the `trained` seconds of an uninterrupted
    training: Snakemake measures only the last attempt, which may find a training that began or ended before.
    """
    row = logs.measured(folder / "train.benchmark.tsv")
    if trained is None or not row.get("s", 0.0) >= trained:
        return {}
    columns = {"training_seconds": "s", "peak_memory_mib": "max_rss"}
    return {name: row[column] for name, column in columns.items() if column in row}


def lambda_history(log: str) -> list[Lambda]:
    """Returns every λ in fairseq's log of a training with --gpam-log-attention; intervals without one are left out."""
    history: dict[tuple[Any, int, Any], dict[int, float]] = {}
    for record in logs.records(log, "train_inner"):
        for name, value in record.items():
            place, is_lambda, sign = name.removeprefix("gpam_").partition("_lambda")
            site = place.rstrip("0123456789")
            if is_lambda and site in get_args(Site) and logs.is_number(value):
                key = (site, int(place[len(site) :] or 0), sign[1:] if sign in ("_plus", "_minus") else "")
                history.setdefault(key, {})[int(record["num_updates"])] = float(value)
    return [
        Lambda(site, layer, sign, tuple((update, points[update]) for update in sorted(points)))
        for (site, layer, sign), points in history.items()
    ]


def measures(analysis: Analysis) -> list[Measure]:
    """Returns the measures of `BY_LAYER`, and the last ones of `LAST_LAYER`, from analyze's results, full model."""
    points: dict[tuple[str, Any], dict[int, float]] = {}
    for record in analysis.records:
        whole = record.variant == analysis.runs[0].variant and record.head is None
        if record.metric in (*LAST_LAYER, *BY_LAYER) and whole and record.mean is not None:
            points.setdefault((record.metric, record.site), {})[record.layer] = record.mean
    return [
        Measure(site, layer, metric, by_layer[layer])
        for (metric, site), by_layer in points.items()
        for layer in (sorted(by_layer) if metric in BY_LAYER else [max(by_layer)])
    ]


def in_last_layer(run: Run) -> dict[tuple[str, str], float]:
    """Returns each measure of a run, by metric and site, in the last layer that has it."""
    last: dict[tuple[str, str], float] = {(measure.metric, measure.site): math.nan for measure in run.measures}
    for measure in sorted(run.measures, key=lambda measure: measure.layer):
        last[measure.metric, measure.site] = measure.value
    return last
