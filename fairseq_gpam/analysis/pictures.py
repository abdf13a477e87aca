"""The pictures of a report, as PNG files; nothing here needs a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fairseq_gpam.analysis.definitions import describe

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "image.interpolation": "nearest",
}
COLOURS = ("#1b6ca8", "#d1495b", "#3a8f5c", "#b5842b", "#6f4e9c", "#3c3c3c", "#00a0b0", "#c46fa8")
LINES = ("-", "--", ":", "-.")
SITES = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
MAPS_IN_A_ROW = 4


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, dpi: int) -> None:
    figure.savefig(path, format="png", dpi=dpi, facecolor="white")
    # A palette of 256 colours is enough for these pictures and a third of the size.
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


def _series(records: pd.DataFrame) -> list[tuple[str, str]]:
    return list(records[["checkpoint", "variant"]].drop_duplicates().itertuples(index=False, name=None))


def _style_of(series: Sequence[tuple[str, str]], checkpoint: str, variant: str) -> dict[str, Any]:
    checkpoints = list(dict.fromkeys(name for name, _ in series))
    variants = list(dict.fromkeys(name for _, name in series))
    label = checkpoint if len(variants) == 1 else f"{checkpoint}, {variant}"
    return {
        "color": COLOURS[checkpoints.index(checkpoint) % len(COLOURS)],
        "linestyle": LINES[variants.index(variant) % len(LINES)],
        "label": label,
    }


def _draw_panel(axes: Any, records: pd.DataFrame, metric: str, site: str, series: list[tuple[str, str]]) -> None:
    definition = describe(metric)
    chosen = records[(records.metric == metric) & (records.site == site) & records["head"].isna()]
    for checkpoint, variant in series:
        line = chosen[(chosen.checkpoint == checkpoint) & (chosen.variant == variant)].sort_values("layer")
        if line.empty:
            continue
        style = _style_of(series, checkpoint, variant)
        middle = line["median"] if definition.logarithmic else line["mean"]
        axes.plot(line.layer, middle, marker="o", markersize=3, **style)
        if (line["count"] > 1).any():
            axes.fill_between(line.layer, line.low, line.high, color=style["color"], alpha=0.13, linewidth=0)
    if definition.logarithmic and (chosen["median"] > 0).any():
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_title(f"{definition.label}\n{SITES.get(site, site)}")
    axes.set_xlabel("layer")


def curves(records: pd.DataFrame, chosen: Sequence[str], path: Path) -> None:
    """Draws metrics (columns) by layer for every site (rows), one line for each checkpoint and setting of switches.

    Lines are the mean over the samples, or the median on a logarithmic axis; bands reach from 10 % to 90 %.
    """
    records = records[records.metric.isin(chosen)]
    sites = [site for site in SITES if (records.site == site).any()]
    series = _series(records)
    with mpl.rc_context(STYLE):
        legend = 0.22 * math.ceil(len(series) / 3) + 0.1
        figure = _figure(3.6 * len(chosen) + 0.2, 2.7 * len(sites) + legend)
        panels = figure.subplots(len(sites), len(chosen), squeeze=False)
        for row, site in enumerate(sites):
            for column, metric in enumerate(chosen):
                _draw_panel(panels[row, column], records, metric, site, series)
                if not panels[row, column].lines:
                    panels[row, column].axis("off")
                    panels[row, column].set_title("")
        _legend(figure, panels, series)
        _save(figure, path, 110)


def _legend(figure: Figure, panels: Any, series: list[tuple[str, str]]) -> None:
    handles: dict[str, Any] = {}
    for axes in np.ravel(panels):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(3, max(1, len(series))))


FIGURE_4 = ("residual_norm", "mean_cosine", "query_gradient")


def log_log(slopes: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the residual ratio, and log(−log r) with its fitted line, against depth."""
    with mpl.rc_context(STYLE):
        figure = _figure(9.4, 3.6 + 0.2 * len(slopes) / 2)
        left, right = figure.subplots(1, 2)
        series = [(entry["checkpoint"], f"{entry['variant']}, {entry['site']}") for entry in slopes]
        for entry, (checkpoint, variant) in zip(slopes, series, strict=True):
            style = _style_of(series, checkpoint, variant)
            ratios = np.asarray(entry["ratios"], dtype=float)
            left.plot(range(len(ratios)), ratios, marker="o", markersize=3, **style)
            with np.errstate(invalid="ignore", divide="ignore"):
                heights = np.where((ratios > entry["floor"]) & (ratios < 1), np.log(-np.log(ratios)), np.nan)
            fit = "too few points" if entry["slope"] is None else f"slope {entry['slope']:.4g}"
            right.plot(range(len(ratios)), heights, marker="o", linestyle="none", markersize=4, color=style["color"])
            if entry["slope"] is not None:
                depths = np.flatnonzero(np.isfinite(heights))
                right.plot(
                    depths,
                    entry["intercept"] + entry["slope"] * depths,
                    **{**style, "label": f"{style['label']}: {fit}"},
                )
        left.set_yscale("log")
        left.set_title("residual ratio (mean token)")
        right.set_title("log(−log r): a straight rising line is doubly exponential decay")
        for axes in (left, right):
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            if axes.lines:
                axes.legend(fontsize=7, loc="best")
        _save(figure, path, 110)


def paths(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the residual of sampled paths, median and 10–90 % band, and the number of paths, against path length."""
    frame = pd.DataFrame(rows)
    series = [
        (checkpoint, f"{variant}, {site}")
        for checkpoint, variant, site in frame[["checkpoint", "variant", "site"]]
        .drop_duplicates()
        .itertuples(index=False)
    ]
    with mpl.rc_context(STYLE):
        figure = _figure(9.4, 3.6 + 0.2 * len(series) / 2)
        left, right = figure.subplots(1, 2)
        for (checkpoint, variant, site), line in frame.groupby(["checkpoint", "variant", "site"], sort=False):
            style = _style_of(series, checkpoint, f"{variant}, {site}")
            left.plot(line.length, line["median"], marker="o", markersize=3, **style)
            left.fill_between(line.length, line.low, line.high, color=style["color"], alpha=0.13, linewidth=0)
            right.plot(line.length, line.number_of_paths.astype(float), marker="o", markersize=3, **style)
        left.set_title("residual ‖P − rank1(P)‖ / ‖P‖ of a path")
        right.set_title("number of paths, C(L,k)·Hᵏ")
        if (frame["median"] > 0).all():
            left.set_yscale("log")
        right.set_yscale("log")
        for axes in (left, right):
            axes.set_xlabel("path length k")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        left.legend(fontsize=7, loc="best")
        _save(figure, path, 110)


def attention_maps(
    weights: np.ndarray, queries: Sequence[str], keys: Sequence[str], title: str, path: Path, dpi: int
) -> None:
    """Draws the signed maps of a layer's heads, H × T × S: red positive, blue negative, white zero, one scale."""
    heads = len(weights)
    columns = min(MAPS_IN_A_ROW, heads)
    rows = math.ceil(heads / columns)
    bound = float(np.abs(weights).max()) or 1.0
    ratio = max(0.35, min(1.6, len(queries) / max(1, len(keys))))
    style = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    with mpl.rc_context(style):
        figure = _figure(2.75 * columns + 1.4, (2.3 * ratio + 0.75) * rows + 0.45)
        panels = figure.subplots(rows, columns, squeeze=False)
        size = 6.5 if max(len(queries), len(keys)) <= 20 else 5.5
        picture = None
        for number, axes in enumerate(panels.flat):
            if number >= heads:
                axes.axis("off")
                continue
            picture = axes.imshow(weights[number], cmap="RdBu_r", norm=Normalize(-bound, bound), aspect="auto")
            axes.set_title(f"head {number + 1}", fontsize=8, pad=3)
            axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=size)
            if number % columns == 0:
                axes.set_yticks(range(len(queries)), queries, fontsize=size)
            else:
                axes.set_yticks([])
            axes.tick_params(length=0, pad=1.5)
            for spine in axes.spines.values():
                spine.set_linewidth(0.4)
        assert picture is not None
        figure.colorbar(picture, ax=panels, shrink=0.7, aspect=30, pad=0.01, label="weight")
        figure.suptitle(title, fontsize=9)
        _save(figure, path, dpi)


def relevance(values: np.ndarray, target: Sequence[str], source: Sequence[str], title: str, path: Path) -> None:
    """Draws a relevance map, target tokens by source tokens, each row scaled to its largest value."""
    largest = values.max(axis=1, keepdims=True)
    shares = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    style = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    with mpl.rc_context(style):
        figure = _figure(0.26 * len(source) + 2.6, 0.24 * len(target) + 1.6)
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=90)
        axes.set_yticks(range(len(target)), target)
        axes.tick_params(length=0)
        axes.set_xlabel("source")
        axes.set_ylabel("target token that is predicted")
        axes.set_title(title, fontsize=9)
        figure.colorbar(picture, ax=axes, shrink=0.8, aspect=25, label="relevance, row maximum = 1")
        _save(figure, path, 110)


def lambda_history(rows: pd.DataFrame, path: Path) -> None:
    """Draws λ against updates: columns λ's, rows sites, one line for each layer (dark to light), band over heads."""
    names = list(dict.fromkeys(rows.metric))
    sites = [site for site in SITES if (rows.site == site).any()]
    dashes = {group: LINES[index % len(LINES)] for index, group in enumerate(dict.fromkeys(rows.group))}
    with mpl.rc_context(STYLE):
        figure = _figure(4.4 * len(names) + 0.6, 2.7 * len(sites) + 0.3)
        panels = figure.subplots(len(sites), len(names), squeeze=False)
        depth = int(rows.layer.max())
        colours = mpl.colormaps["viridis"].resampled(max(2, depth + 1))
        for row, site in enumerate(sites):
            for column, name in enumerate(names):
                axes = panels[row, column]
                chosen = rows[(rows.site == site) & (rows.metric == name)]
                for (group, layer), line in chosen.groupby(["group", "layer"], sort=False):
                    line = line.sort_values("updates")
                    colour = colours((int(layer) - 1) / max(1, depth))
                    axes.plot(
                        line.updates, line["mean"], color=colour, linestyle=dashes[group], marker="o", markersize=3
                    )
                    axes.fill_between(line.updates, line.least, line.greatest, color=colour, alpha=0.12, linewidth=0)
                    last = line.iloc[-1]
                    axes.annotate(f" {int(layer)}", (last.updates, last["mean"]), color=colour, fontsize=7, va="center")
                axes.set_title(f"{describe(name).label}\n{SITES[site]} (numbers: layers)")
                axes.set_xlabel("updates")
        if len(dashes) > 1:
            handles = [mpl.lines.Line2D([], [], color="black", linestyle=dash) for dash in dashes.values()]
            figure.legend(handles, dashes.keys(), loc="outside upper center", ncols=3)
        _save(figure, path, 110)
