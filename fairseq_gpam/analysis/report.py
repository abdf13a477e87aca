"""Writes the measurements: results.json, CSV tables, PNG pictures, and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from fairseq_gpam.analysis import pictures
from fairseq_gpam.analysis.collect import Measurement, SampleMaps, slopes
from fairseq_gpam.analysis.definitions import GROUPS, describe

GROUPS_FOR_EVERY_SETTING = (
    "Rank of the hidden states",
    "Rank of the attention's output",
    "Shape of the attention weights",
    "Softmax Jacobian",
    "Gradients",
)
MAP_TOKENS = 24
"""How many tokens of a sequence a map shows; the data file holds all."""


def write_report(
    measurements: Sequence[Measurement], out: Path, settings: dict[str, Any], history: pd.DataFrame | None = None
) -> Path:
    """Writes the whole report into the folder `out` and returns the path of report.html.

    `settings` are shown and saved unchanged; `history` holds λ by update (columns of `lambda_rows`).
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    results = collect_results(measurements, settings)
    records = pd.DataFrame(results["records"])
    with open(out / "results.json", "w", encoding="utf-8") as file:
        json.dump(results, file, ensure_ascii=False, indent=1, allow_nan=False)
    records.to_csv(out / "records.csv", index=False)
    if results["paths"]:
        pd.DataFrame(results["paths"]).to_csv(out / "paths.csv", index=False)
    write_maps(measurements, out / "maps.npz")

    # JSON has no infinite numbers; null values are not drawn.
    checkpoints = list(dict.fromkeys(measurement.loaded.name for measurement in measurements))
    drawn = records.astype({name: float for name in ("mean", "std", "low", "median", "high")})
    page = {
        "title": "Attention report: " + ", ".join(checkpoints),
        "results": results,
        "figure_4": figure_4(drawn, folder, checkpoints),
        "curves": all_curves(drawn, folder, checkpoints),
        "log_log": collapse_picture(results["slopes"], folder, checkpoints),
        "path_picture": path_picture(results["paths"], folder, checkpoints),
        "path_losses": path_loss_picture(results["path_losses"], folder, checkpoints),
        "token_maps": token_map_pictures(measurements, folder),
        "maps": map_pictures(measurements, folder),
        "histories": history_picture(history, folder, out),
        "tables": tables(results["records"]),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairseq_gpam.analysis", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["format_number"] = format_number
    target = out / "report.html"
    target.write_text(environment.get_template("report.html.j2").render(page), encoding="utf-8")
    return target


def format_number(value: float | int | None) -> str:
    """Returns a number as text: whole numbers with thousands separators, others with four significant digits."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def collect_results(measurements: Sequence[Measurement], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that results.json holds; undefined and infinite numbers are None."""
    records = [record for measurement in measurements for record in measurement.records()]
    used = dict.fromkeys(record["metric"] for record in records)
    return _without_non_finite(
        {
            "settings": settings,
            "runs": [
                {
                    "checkpoint": measurement.loaded.name,
                    "variant": measurement.variant,
                    "origin": measurement.loaded.origin,
                    "arch": measurement.loaded.arch,
                    "updates": measurement.loaded.updates,
                    "parameters": sum(parameter.numel() for parameter in measurement.loaded.model.parameters()),
                    "loss": measurement.loss,
                    "loss_unit": "nats per sentence" if measurement.loaded.loss_is_per_sentence else "nats per token",
                    "samples": measurement.num_samples,
                }
                for measurement in measurements
            ],
            "definitions": {name: dataclasses.asdict(describe(name)) for name in used},
            "records": records,
            "slopes": [entry for measurement in measurements for entry in slopes(measurement)],
            "paths": [row for measurement in measurements for row in measurement.paths],
            "path_losses": [row for measurement in measurements for row in measurement.path_losses],
            "deletions": [row for measurement in measurements for row in measurement.deletions],
            "token_maps": [row for run, one in enumerate(measurements, start=1) for row in token_map_rows(run, one)],
            "refusals": [
                {"checkpoint": measurement.loaded.name, "option": f"--{option}", "reason": reason}
                for measurement in measurements
                for option, reason in measurement.refusals.items()
            ],
        }
    )


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def tables(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for every checkpoint, setting and group of metrics, a table of record indices by site and layer."""
    index: dict[tuple[Any, ...], int] = {}
    for number, record in enumerate(records):
        if record["head"] is None:
            index[tuple(record[key] for key in ("checkpoint", "variant", "metric", "site", "layer"))] = number
    grouped = {metric for chosen in GROUPS.values() for metric in chosen}
    metrics_found = dict.fromkeys(key[2] for key in index)
    groups = {**GROUPS, "Others": tuple(name for name in metrics_found if name not in grouped)}
    found = []
    for checkpoint, variant in dict.fromkeys(key[:2] for key in index):
        for title, chosen in groups.items():
            columns = [name for name in chosen if any(key[:3] == (checkpoint, variant, name) for key in index)]
            places = sorted(
                {key[3:] for key in index if key[:2] == (checkpoint, variant) and key[2] in columns},
                key=lambda place: (list(pictures.SITES).index(place[0]), place[1]),
            )
            if columns:
                found.append(
                    {
                        "title": f"{checkpoint}, {variant}: {title}",
                        "columns": [describe(name).label for name in columns],
                        "rows": [
                            {
                                "site": site,
                                "layer": layer,
                                "records": [index.get((checkpoint, variant, name, site, layer)) for name in columns],
                            }
                            for site, layer in places
                        ],
                    }
                )
    return found


def _image(path: Path, alt: str, caption: str) -> dict[str, Any]:
    with Image.open(path) as image:
        width, height = image.size
    data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    return {"data": data, "alt": alt, "caption": caption, "width": width, "height": height}


def _describe_curves(records: pd.DataFrame, chosen: Sequence[str]) -> str:
    """Describes a picture of curves in words: the first and last value of every line, for each metric and site."""
    sentences = []
    lines = records[records.metric.isin(chosen) & records["head"].isna()]
    for (metric, site), group in lines.groupby(["metric", "site"], sort=False):
        ends = []
        for (checkpoint, variant), line in group.groupby(["checkpoint", "variant"], sort=False):
            line = line.sort_values("layer")
            first, last = line.iloc[0], line.iloc[-1]
            ends.append(f"{checkpoint} ({variant}) {first['mean']:.3g} to {last['mean']:.3g}")
        sentences.append(f"{describe(str(metric)).label}, {site}, first to last layer: " + "; ".join(ends) + ".")
    return " ".join(sentences)


def figure_4(records: pd.DataFrame, folder: Path, checkpoints: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Draws residual norm, cosine and query gradient of the self-attention stacks, once for each setting."""
    found = []
    caption = "Residual norm and gradient on logarithmic axes; gradients are those of the whole sample, unclipped."
    for number, (variant, chosen) in enumerate(records[records.site != "cross"].groupby("variant", sort=False)):
        path = folder / f"figure4-{number + 1}.png"
        pictures.curves(chosen, pictures.FIGURE_4, path, checkpoints)
        found.append((str(variant), _image(path, _describe_curves(chosen, pictures.FIGURE_4), caption)))
    return found


def all_curves(
    records: pd.DataFrame, folder: Path, checkpoints: list[str]
) -> list[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Draws every group of metrics for the first setting, and for the others the groups that switches change most."""
    found = []
    for number, (variant, chosen) in enumerate(records.groupby("variant", sort=False)):
        known = dict.fromkeys(chosen.metric)
        groups = {**GROUPS, "λ by layer": tuple(name for name in known if "lambda" in name)}
        drawn = []
        for title, group in groups.items():
            names = [name for name in group if name in known]
            if names and (number == 0 or title in GROUPS_FOR_EVERY_SETTING):
                path = folder / f"{_slug(title)}-{number + 1}.png"
                pictures.curves(chosen, names, path, checkpoints)
                caption = " · ".join(f"{describe(name).label}: {describe(name).definition}" for name in names)
                drawn.append((title, _image(path, _describe_curves(chosen, names), caption)))
        found.append((str(variant), drawn))
    return found


def collapse_picture(rows: Sequence[dict[str, Any]], folder: Path, checkpoints: list[str]) -> dict[str, Any] | None:
    if not rows:
        return None
    path = folder / "collapse.png"
    pictures.log_log(rows, path, checkpoints)
    words = "; ".join(
        f"{row['checkpoint']}, {row['variant']}, {row['site']}: residual ratio {row['ratios'][0]:.3g} to "
        f"{row['ratios'][-1]:.3g}, slope {format_number(row['slope'])}"
        for row in rows
    )
    return _image(path, f"Residual ratio and its log-log against depth. {words}.", "Left: mean over the samples.")


def path_picture(rows: Sequence[dict[str, Any]], folder: Path, checkpoints: list[str]) -> dict[str, Any] | None:
    if not rows:
        return None
    path = folder / "paths.png"
    pictures.paths(rows, path, checkpoints)
    words = "; ".join(
        f"{row['checkpoint']}, {row['variant']}, {row['site']}, length {row['length']}: {row['median']:.3g}"
        for row in rows
        if row["length"] == 1 or row["length"] == max(r["length"] for r in rows)
    )
    return _image(
        path, f"Median residual of sampled paths. {words}.", "Lines: median; bands: 10 % to 90 % of the paths."
    )


def path_loss_picture(rows: Sequence[dict[str, Any]], folder: Path, checkpoints: list[str]) -> dict[str, Any] | None:
    if not rows:
        return None
    path = folder / "path-losses.png"
    pictures.path_losses(rows, path, checkpoints)
    words = "; ".join(f"{row['checkpoint']}, at most {row['length']}: {row['loss']:.3g} nats" for row in rows)
    return _image(path, f"Loss when only short paths are kept. {words}.", "Mean over the samples.")


def token_map_pictures(measurements: Sequence[Measurement], folder: Path) -> list[dict[str, Any]]:
    """Draws the relevance and the operators of every drawn sample, side by side."""
    images = []
    for run, measurement in enumerate(measurements, start=1):
        for sample in measurement.sample_maps:
            for kind, values, outputs, given in sample.token_maps():
                path = folder / f"{_slug(kind)}-{run}-{sample.number}.png"
                title = f"{measurement.loaded.name}, {measurement.variant}, sample {sample.number}: {kind}"
                pictures.token_map(values.numpy(), outputs, given, title, path)
                strongest = "; ".join(
                    f"{output} ← {given[int(row.argmax())]}" for output, row in zip(outputs, values, strict=True)
                )
                images.append(_image(path, f"Map of {title}. Largest given token: {strongest}.", title))
    return images


def token_map_rows(run: int, measurement: Measurement) -> list[dict[str, Any]]:
    """Returns, for each map that covers all layers, its array in maps.npz and each output's most important input token.

    Tokens are counted from 0.
    """
    return [
        {
            "checkpoint": measurement.loaded.name,
            "sample": sample.number,
            "map": name,
            "array": f"{run}/{sample.number}/{_slug(name)}",
            "largest": values.argmax(dim=1).tolist(),
        }
        for sample in measurement.sample_maps
        for name, values, _, _ in sample.token_maps()
    ]


def map_pictures(measurements: Sequence[Measurement], folder: Path) -> list[dict[str, Any]]:
    """Draws the maps of the first setting of every checkpoint, one picture for each layer and site."""
    first: dict[str, tuple[int, Measurement]] = {}
    for run, measurement in enumerate(measurements, start=1):
        first.setdefault(measurement.loaded.name, (run, measurement))
    total = sum(len(sample.maps) for _, measurement in first.values() for sample in measurement.sample_maps)
    # The page stays under 20 MB: a picture of eight heads is about 60 kB at 90 dots per inch.
    dpi = 110 if total <= 24 else 90 if total <= 90 else 72
    blocks = []
    for run, measurement in first.values():
        for sample in measurement.sample_maps:
            layers: dict[int, list[dict[str, Any]]] = {}
            for (site, layer), weights in sample.maps.items():
                layers.setdefault(layer, []).append(
                    _map_picture(measurement, sample, site, layer, weights, run, dpi, folder)
                )
            blocks.append(
                {
                    "title": f"{measurement.loaded.name}, {measurement.variant}, sample {sample.number}",
                    "layers": [{"number": number, "images": images} for number, images in sorted(layers.items())],
                }
            )
    return blocks


def _map_picture(
    measurement: Measurement, sample: SampleMaps, site: str, layer: int, weights: Any, run: int, dpi: int, folder: Path
) -> dict[str, Any]:
    queries, keys = sample.axes(site)
    cropped = weights[:, :MAP_TOKENS, :MAP_TOKENS].numpy()
    path = folder / f"maps-{run}-{sample.number}-{site}-{layer}.png"
    title = f"{pictures.SITES[site]}, layer {layer}"
    # Keys that belong to no token (bias_kv, zero_attn) come last.
    keys = [*keys, *["+"] * (weights.shape[-1] - len(keys))]
    pictures.attention_maps(cropped, queries[:MAP_TOKENS], keys[:MAP_TOKENS], path, dpi)
    negative = float(np.clip(-cropped, 0, None).sum() / np.abs(cropped).sum())
    alt = (
        f"Attention maps of {len(cropped)} heads of {measurement.loaded.name}, {title}, sample {sample.number}; "
        f"weights from {cropped.min():.3g} to {cropped.max():.3g}, {negative:.1%} of their mass negative."
    )
    caption = title
    if len(queries) > MAP_TOKENS or len(keys) > MAP_TOKENS:
        caption += f": the first {min(MAP_TOKENS, len(queries))} of {len(queries)} queries"
        caption += f" and {min(MAP_TOKENS, len(keys))} of {len(keys)} keys"
    return _image(path, alt, caption)


def history_picture(history: pd.DataFrame | None, folder: Path, out: Path) -> dict[str, Any] | None:
    if history is None or history.empty:
        return None
    history.to_csv(out / "lambda.csv", index=False)
    path = folder / "lambda.png"
    pictures.lambda_history(history, path)
    ends = history.sort_values("updates").groupby(["group", "metric", "site", "layer"], sort=False)["mean"]
    words = "; ".join(
        f"{' '.join(map(str, key))}: {values.iloc[0]:.3g} to {values.iloc[-1]:.3g}" for key, values in ends
    )
    return _image(path, f"λ over training. {words}.", "Mean over the heads; bands: least to greatest head.")


def lambda_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Returns λ by update for checkpoints of one run: those in the same folder, if there are at least two."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for measurement in measurements:
        if measurement.loaded.updates is None:
            continue
        for (metric, site, layer, head), values in measurement.values.items():
            if "lambda" in metric and head is None:
                heads = [
                    value[0]
                    for (name, place, number, single), value in measurement.values.items()
                    if (name, place, number) == (metric, site, layer) and single is not None
                ]
                key = (measurement.loaded.group, metric, site, layer, measurement.loaded.updates)
                rows[key] = {
                    "group": measurement.loaded.group,
                    "metric": metric,
                    "site": site,
                    "layer": layer,
                    "updates": measurement.loaded.updates,
                    "mean": values[0],
                    "least": min(heads or values),
                    "greatest": max(heads or values),
                }
    updates: dict[str, set[int]] = {}
    for row in rows.values():
        updates.setdefault(row["group"], set()).add(row["updates"])
    kept = [row for row in rows.values() if len(updates[row["group"]]) > 1]
    for row in kept:
        row["group"] = "/".join(Path(row["group"]).parts[-2:])
    return kept


def write_maps(measurements: Sequence[Measurement], path: Path) -> None:
    """Saves every map in full: attention as `run/sample/site/layer`, others as `run/sample/relevance`."""
    arrays = {}
    for run, measurement in enumerate(measurements, start=1):
        for sample in measurement.sample_maps:
            for (site, layer), weights in sample.maps.items():
                arrays[f"{run}/{sample.number}/{site}/{layer}"] = weights.numpy()
            for name, values, _, _ in sample.token_maps():
                arrays[f"{run}/{sample.number}/{_slug(name)}"] = values.numpy()
    if arrays:
        np.savez_compressed(path, **arrays)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("λ", "lambda")).strip("-")
