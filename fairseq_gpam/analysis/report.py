"""Writes the measurements: results.json, CSV tables, SVG pictures, and one self-contained HTML page."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from fairseq_gpam.analysis import drawing, embed, pictures
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


def write_report(measurements: Sequence[Measurement], out: Path, settings: dict[str, Any]) -> Path:
    """Writes the whole report into the folder `out` and returns the path of report.html; `settings` are shown."""
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    results = collect_results(measurements, settings)
    records = pd.DataFrame(results["records"])
    text = json.dumps(results, ensure_ascii=False, indent=1, allow_nan=False)
    (out / "results.json").write_text(text, encoding="utf-8")
    records.to_csv(out / "records.csv", index=False)
    if results["paths"]:
        pd.DataFrame(results["paths"]).to_csv(out / "paths.csv", index=False)
    write_maps(measurements, out / "maps.npz")

    # JSON has no infinite numbers; null values are not drawn.
    checkpoints = list(dict.fromkeys(measurement.loaded.name for measurement in measurements))
    drawn = records.astype({name: float for name in ("mean", "std", "low", "median", "high")})
    history = lambda_history(measurements)
    if not history.empty:
        history.to_csv(out / "lambda.csv", index=False)
    draw = Gallery(folder, checkpoints)
    page = {
        "title": "Attention report: " + ", ".join(checkpoints),
        "format_number": format_number,
        "results": results,
        "figure_4": draw.figure_4(drawn),
        "curves": draw.curves(drawn),
        "log_log": results["slopes"] and draw.collapse(results["slopes"]),
        "path_picture": results["paths"] and draw.paths(results["paths"]),
        "path_losses": results["path_losses"] and draw.path_losses(results["path_losses"]),
        "token_maps": draw.token_maps(measurements),
        "maps": draw.maps(measurements),
        "histories": "" if history.empty else draw.history(history),
        "tables": tables(records),
    }
    target = out / "report.html"
    target.write_text(embed.render("fairseq_gpam.analysis", "report.html.j2", **page), encoding="utf-8")
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
    results: dict[str, Any] = {
        "settings": settings,
        "runs": [
            {
                **measurement.model_and_setting,
                "origin": measurement.loaded.origin,
                "arch": measurement.loaded.arch,
                "updates": measurement.loaded.updates,
                "parameters": sum(parameter.numel() for parameter in measurement.loaded.model.parameters()),
                "loss": measurement.loss,
                "loss_unit": "nats per sentence"
                if getattr(measurement.loaded.criterion, "sentence_avg", False)
                else "nats per token",
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
        "token_maps": token_map_rows(measurements),
        "refusals": [
            {"checkpoint": measurement.loaded.name, "option": option, "reason": reason}
            for measurement in measurements
            for option, reason in measurement.refusals.items()
        ],
    }
    return json.loads(json.dumps(results), parse_constant=lambda name: None)


def tables(records: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns, for every checkpoint, setting and group of metrics, a table of record indices by site and layer."""
    means = records[records["head"].isna()]
    means = means.assign(record=means.index, site=pd.Categorical(means.site, list(pictures.SITES)))
    grouped = {metric for chosen in GROUPS.values() for metric in chosen}
    others = tuple(name for name in dict.fromkeys(means.metric) if name not in grouped)
    shown = []
    for model, of_model in means.groupby(["checkpoint", "variant"], sort=False):
        numbers = of_model.pivot(index=["site", "layer"], columns="metric", values="record").sort_index()
        for title, chosen in {**GROUPS, "Others": others}.items():
            columns = [name for name in chosen if name in numbers]
            rows = [
                {"site": site, "layer": layer, "records": [None if np.isnan(number) else int(number) for number in row]}
                for (site, layer), *row in numbers[columns].dropna(how="all").itertuples(name=None)
            ]
            if columns:
                labels = [describe(name).label for name in columns]
                shown.append({"title": f"{', '.join(model)}: {title}", "columns": labels, "rows": rows})
    return shown


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


class Gallery:
    """Draws the pictures of a report as parts of its page, and as SVG files into `folder`."""

    def __init__(self, folder: Path, checkpoints: Sequence[str]) -> None:
        self.folder, self.checkpoints = folder, checkpoints

    def _show(self, figure: Figure, name: str, alt: str, caption: str = "") -> str:
        return embed.html_figure(figure, name, alt, caption, self.folder / f"{name}.svg")

    def figure_4(self, records: pd.DataFrame) -> list[tuple[str, str]]:
        """Draws residual norm, cosine and query gradient of the self-attention stacks, once for each setting."""
        caption = "Residual norm and gradient on logarithmic axes; gradients are those of the whole sample, unclipped."
        shown = []
        for number, (variant, chosen) in enumerate(records[records.site != "cross"].groupby("variant", sort=False), 1):
            figure = pictures.curves(chosen, pictures.FIGURE_4, self.checkpoints)
            words = _describe_curves(chosen, pictures.FIGURE_4)
            shown.append((str(variant), self._show(figure, f"figure4-{number}", words, caption)))
        return shown

    def curves(self, records: pd.DataFrame) -> list[tuple[str, list[tuple[str, str]]]]:
        """Draws every group of metrics for the first setting, and for the others those that switches change most."""
        shown = []
        for number, (variant, chosen) in enumerate(records.groupby("variant", sort=False), start=1):
            known = dict.fromkeys(chosen.metric)
            groups = {**GROUPS, "λ by layer": tuple(name for name in known if "lambda" in name)}
            drawn = []
            for title, group in groups.items():
                names = [name for name in group if name in known]
                if names and (number == 1 or title in GROUPS_FOR_EVERY_SETTING):
                    figure = pictures.curves(chosen, names, self.checkpoints)
                    caption = " · ".join(f"{describe(name).label}: {describe(name).definition}" for name in names)
                    words = _describe_curves(chosen, names)
                    drawn.append((title, self._show(figure, f"{_slug(title)}-{number}", words, caption)))
            shown.append((str(variant), drawn))
        return shown

    def collapse(self, rows: Sequence[dict[str, Any]]) -> str:
        words = "; ".join(
            f"{row['checkpoint']}, {row['variant']}, {row['site']}: residual ratio {format_number(row['ratios'][0])} "
            f"to {format_number(row['ratios'][-1])}, slope {format_number(row['slope'])}"
            for row in rows
        )
        words = f"Residual ratio and its log-log against depth. {words}."
        return self._show(pictures.log_log(rows, self.checkpoints), "collapse", words, "Left: mean over the samples.")

    def paths(self, rows: Sequence[dict[str, Any]]) -> str:
        longest = max(row["length"] for row in rows)
        words = "; ".join(
            f"{row['checkpoint']}, {row['variant']}, {row['site']}, length {row['length']}: {row['median']:.3g}"
            for row in rows
            if row["length"] in (1, longest)
        )
        words = f"Median residual of sampled paths. {words}."
        caption = "Lines: median; bands: 10 % to 90 % of the paths."
        return self._show(pictures.paths(rows, self.checkpoints), "paths", words, caption)

    def path_losses(self, rows: Sequence[dict[str, Any]]) -> str:
        words = "; ".join(f"{row['checkpoint']}, at most {row['length']}: {row['loss']:.3g} nats" for row in rows)
        words = f"Loss when only short paths are kept. {words}."
        return self._show(pictures.path_losses(rows, self.checkpoints), "path-losses", words, "Mean over the samples.")

    def history(self, history: pd.DataFrame) -> str:
        ends = history.sort_values("updates").groupby(["group", "metric", "site", "layer"], sort=False)["mean"]
        words = "; ".join(
            f"{' '.join(map(str, key))}: {values.iloc[0]:.3g} to {values.iloc[-1]:.3g}" for key, values in ends
        )
        caption = "Mean over the heads; bands: least to greatest head."
        return self._show(pictures.lambda_history(history), "lambda", f"λ over training. {words}.", caption)

    def token_maps(self, measurements: Sequence[Measurement]) -> list[str]:
        """Draws the relevance and the operators of every drawn sample, side by side."""
        shown = []
        for run, measurement in enumerate(measurements, start=1):
            for sample in measurement.sample_maps:
                for kind, values, outputs, given in sample.token_maps():
                    title = f"{measurement.loaded.name}, {measurement.variant}, sample {sample.number}: {kind}"
                    strongest = "; ".join(
                        f"{output} ← {given[int(row.argmax())]}" for output, row in zip(outputs, values, strict=True)
                    )
                    words = f"Map of {title}. Largest given token: {strongest}."
                    figure = pictures.token_map(values.numpy(), outputs, given, kind)
                    shown.append(self._show(figure, f"{_slug(kind)}-{run}-{sample.number}", words, title))
        return shown

    def maps(self, measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
        """Draws the maps of the first setting of every checkpoint, one picture for each layer and site."""
        first: dict[str, tuple[int, Measurement]] = {}
        for run, measurement in enumerate(measurements, start=1):
            first.setdefault(measurement.loaded.name, (run, measurement))
        blocks = []
        for run, measurement in first.values():
            for sample in measurement.sample_maps:
                layers: dict[int, list[str]] = {}
                bounds = {site: _bound(sample, site) for site in pictures.SITES}
                for site, layer in sample.maps:
                    shown = self._maps_of(measurement.loaded.name, sample, (site, layer), bounds[site], run)
                    layers.setdefault(layer, []).append(shown)
                title = f"{measurement.loaded.name}, {measurement.variant}, sample {sample.number}"
                blocks.append({"title": title, "layers": sorted(layers.items())})
        return blocks

    def _maps_of(self, checkpoint: str, sample: SampleMaps, place: tuple[str, int], bound: float, run: int) -> str:
        site, layer = place
        weights, visible = (_cropped(part[place]) for part in (sample.maps, sample.visible))
        queries, keys = sample.axes(site)
        # Keys that belong to no token (bias_kv, zero_attn) come last.
        keys = [*keys, *["+"] * (sample.maps[place].shape[-1] - len(keys))]
        figure = pictures.attention_maps(weights, visible, queries[:MAP_TOKENS], keys[:MAP_TOKENS], bound)
        negative = float(np.clip(-weights, 0, None).sum() / np.abs(weights).sum())
        title = f"{pictures.SITES[site]}, layer {layer}"
        words = (
            f"Attention maps of {len(weights)} heads of {checkpoint}, {title}, sample {sample.number}; "
            f"weights from {weights.min():.3g} to {weights.max():.3g}, {negative:.1%} of their mass negative."
        )
        if len(queries) > MAP_TOKENS or len(keys) > MAP_TOKENS:
            title += f": the first {min(MAP_TOKENS, len(queries))} of {len(queries)} queries"
            title += f" and {min(MAP_TOKENS, len(keys))} of {len(keys)} keys"
        return self._show(figure, f"maps-{run}-{sample.number}-{site}-{layer}", words, title)


def _cropped(maps: torch.Tensor) -> np.ndarray:
    return maps[:, :MAP_TOKENS, :MAP_TOKENS].numpy()


def _bound(sample: SampleMaps, site: str) -> float:
    """Returns where the colour scale of a site's maps ends, the same for all layers and heads."""
    places = [place for place in sample.maps if place[0] == site]
    return drawing.bound_of([_cropped(sample.maps[place])[_cropped(sample.visible[place])] for place in places])


def token_map_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
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
        for run, measurement in enumerate(measurements, start=1)
        for sample in measurement.sample_maps
        for name, values, _, _ in sample.token_maps()
    ]


def lambda_history(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Returns λ by update for checkpoints of one run: those in the same folder, if there are at least two."""
    place = ["group", "metric", "site", "layer", "updates"]
    rows = [
        (each.loaded.group, metric, site, layer, each.loaded.updates, head, pd.Series(values).mean())
        for each in measurements
        if each.loaded.updates is not None
        for (metric, site, layer, head), values in each.values.items()
        if "lambda" in metric
    ]
    frame = pd.DataFrame(rows, columns=[*place, "head", "value"]).drop_duplicates([*place, "head"], keep="last")
    frame = frame[frame.groupby("group")["updates"].transform("nunique") > 1]
    by_head = frame.dropna(subset="head").groupby(place, sort=False)["value"].agg(least="min", greatest="max")
    history = frame[frame["head"].isna()].set_index(place)[["value"]].rename(columns={"value": "mean"}).join(by_head)
    # A λ that all heads share has no values by head.
    history = history.fillna({edge: history["mean"] for edge in by_head}).reset_index()
    return history.assign(group=["/".join(Path(group).parts[-2:]) for group in history["group"]])


def write_maps(measurements: Sequence[Measurement], path: Path) -> None:
    """Saves every map in full: attention as `run/sample/site/layer`, others as `run/sample/relevance`."""
    arrays: dict[str, Any] = {}
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
