"""What the pictures of a report show; `drawing` draws them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fairseq_gpam.analysis import drawing
from fairseq_gpam.analysis.definitions import describe
from fairseq_gpam.analysis.drawing import Panel, Series, WeightMap, panels

SITES = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
FIGURE_4 = ("residual_norm", "mean_cosine", "query_gradient")
WIDE = (4.5, 2.8)
Places = Sequence[tuple[str, str]]
"""Checkpoint and setting of every line of a picture, in its order."""


def _style_of(places: Places, checkpoint: str, variant: str, checkpoints: Sequence[str]) -> dict[str, Any]:
    """Returns the colour of a checkpoint (by its position in `checkpoints`) and the dashes of a setting."""
    variants = list(dict.fromkeys(name for _, name in places))
    label = checkpoint if len(variants) == 1 else f"{checkpoint}, {variant}"
    return {"colour": checkpoints.index(checkpoint), "dash": variants.index(variant), "label": label}


def _lines(
    rows: pd.DataFrame, x: str, y: str, places: Places, checkpoints: Sequence[str], with_band: bool = True
) -> list[Series]:
    """Returns a line over column `x` for each checkpoint and setting in `rows`, with a band from `low` to `high`."""
    lines = []
    for checkpoint, variant in places:
        line = rows[(rows.checkpoint == checkpoint) & (rows.variant == variant)].sort_values(x)
        if not line.empty:
            band = list(zip(line[x], line.low, line.high, strict=True)) if with_band else ()
            style = _style_of(places, checkpoint, variant, checkpoints)
            lines.append(Series(points=list(zip(line[x], line[y], strict=True)), band=band, **style))
    return lines


def _places(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(rows[["checkpoint", "variant"]].drop_duplicates().itertuples(index=False, name=None))


def curves(records: pd.DataFrame, chosen: Sequence[str], checkpoints: Sequence[str]) -> Figure:
    """Returns metrics (columns) by layer for every site (rows), one line for each checkpoint and setting of switches.

    `checkpoints` are all those of the report, so that each has the same colour in every picture. Lines show the mean
    over the samples, or the median on a logarithmic axis; bands show 10 % to 90 %.
    """
    records = records[records.metric.isin(chosen)]
    places = _places(records)
    shown: list[Panel | None] = []
    for site in (site for site in SITES if (records.site == site).any()):
        for metric in chosen:
            definition = describe(metric)
            rows = records[(records.metric == metric) & (records.site == site) & records["head"].isna()]
            middle = "median" if definition.logarithmic else "mean"
            series = _lines(rows, "layer", middle, places, checkpoints, bool((rows["count"] > 1).any()))
            title = f"{definition.label}\n{SITES[site]}"
            logarithmic = definition.logarithmic
            panel = Panel(title, "layer", series=series, logarithmic=logarithmic, names=drawing.LAYER_NAMES)
            shown.append(panel if series else None)
    return panels(shown, columns=len(chosen))


def log_log(fits: Sequence[dict[str, Any]], checkpoints: Sequence[str]) -> Figure:
    """Returns the residual ratio, and log(−log r) with its fitted line, against depth; hollow dots: decoder."""
    places = [(fit["checkpoint"], f"{fit['variant']}, {fit['site']}") for fit in fits]
    ratios, heights = [], []
    for fit, (checkpoint, variant) in zip(fits, places, strict=True):
        style = _style_of(places, checkpoint, variant, checkpoints)
        dots = {"marker": "o", "hollow": fit["site"] == "decoder"}
        values = np.asarray(fit["ratios"], dtype=float)
        depths = np.arange(len(values)) - 1
        if fit["slope"] is None:
            layers = "1 layer" if fit["points"] == 1 else f"{fit['points']} layers"
            style["label"] += f": no fit, {layers} above rounding"
        else:
            style["label"] += f": slope {fit['slope']:.3g}"
        ratios.append(Series(points=list(zip(depths, values, strict=True)), **style, **dots))
        fitted = (values > fit["floor"]) & (values < 1)
        points = [(depth, np.log(-np.log(value))) for depth, value in zip(depths[fitted], values[fitted], strict=True)]
        heights.append(Series(points=points, **{**style, "dash": None}, **dots))
        if fit["slope"] is not None:
            line = [(depth, fit["intercept"] + fit["slope"] * (depth + 1)) for depth, _ in points]
            heights.append(Series(points=line, **{**style, "label": "", "marker": ""}))
    rising = "log(−log r): a straight rising line is\ndoubly exponential decay"
    shown = [
        Panel("residual ratio (mean token)", "layer", series=ratios, logarithmic=True, names=drawing.LAYER_NAMES),
        Panel(rising, "layer", series=heights, names=drawing.LAYER_NAMES),
    ]
    return panels(shown, columns=2, size=WIDE)


def paths(rows: Sequence[dict[str, Any]], checkpoints: Sequence[str]) -> Figure:
    """Returns the residual of sampled paths, median and 10–90 % band, against path length, a panel for each stack."""
    frame = pd.DataFrame(rows)
    shown = [
        Panel(
            f"residual ‖P − rank1(P)‖ / ‖P‖ of a path, {site}",
            "path length k",
            series=_lines(frame[frame.site == site], "length", "median", _places(frame), checkpoints),
            logarithmic=True,
        )
        for site in dict.fromkeys(frame.site)
    ]
    return panels(shown, columns=2, size=WIDE)


def path_losses(rows: Sequence[dict[str, Any]], checkpoints: Sequence[str]) -> Figure:
    """Returns loss and share of correct tokens against the greatest number of attentions on the paths that are kept."""
    frame = pd.DataFrame(rows).assign(variant="full")
    titles = {"loss": "loss (nats per token)", "right": "share of tokens predicted correctly"}
    lines = {column: _lines(frame, "length", column, _places(frame), checkpoints, False) for column in titles}
    shown = [Panel(title, "attentions on a path, at most", "", lines[column]) for column, title in titles.items()]
    return panels(shown, columns=2, size=WIDE)


def attention_maps(
    weights: np.ndarray, visible: np.ndarray, queries: Sequence[str], keys: Sequence[str], bound: float
) -> Figure:
    """Returns the signed maps of a layer's heads, H × T × S, with a scale to ±bound; masked cells are grey."""
    masked = np.where(visible, weights, np.nan)
    heads = [WeightMap(f"head {number}", part, queries, keys) for number, part in enumerate(masked, start=1)]
    return drawing.maps(heads, 4, bound, axis_labels=("query", "key"))


def token_map(values: np.ndarray, outputs: Sequence[str], given: Sequence[str], title: str) -> Figure:
    """Returns a non-negative map, output tokens by input tokens, each row scaled to its largest value."""
    largest = values.max(axis=1, keepdims=True)
    shares = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    shown = [WeightMap(title, shares, outputs, given)]
    words = ("token of the output", "given token")
    side = max(2.0, 0.2 * len(given))
    return drawing.maps(shown, 1, 1.0, side=side, colours="Reds", axis_labels=words, scale="row maximum = 1")


def lambda_history(rows: pd.DataFrame) -> Figure:
    """Returns λ against updates: a column for each λ, a row for each site, a line for each layer, a band over heads."""
    names = list(dict.fromkeys(rows.metric))
    runs = list(dict.fromkeys(rows.group))
    last = int(rows.layer.max())
    shown: list[Panel | None] = []
    for site in (site for site in SITES if (rows.site == site).any()):
        for name in names:
            series = []
            chosen = rows[(rows.site == site) & (rows.metric == name)]
            for (run, layer), line in chosen.groupby(["group", "layer"], sort=False):
                line = line.sort_values("updates")
                label = f"layer {layer}" if len(runs) == 1 else f"{run}, layer {layer}"
                series.append(
                    Series(
                        label,
                        list(zip(line.updates, line["mean"], strict=True)),
                        list(zip(line.updates, line.least, line.greatest, strict=True)),
                        colour=to_hex(colormaps["viridis"](0.9 * int(layer) / max(1, last))),
                        dash=int(layer) if len(runs) == 1 else runs.index(run),
                        marker=drawing.MARKERS[int(layer) % len(drawing.MARKERS)],
                    )
                )
            shown.append(Panel(f"{describe(name).label}\n{SITES[site]}", "updates", "", series) if series else None)
    return panels(shown, columns=len(names), size=(4.0, 1.9))
