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
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from fairseq_gpam.analysis.definitions import describe

STYLE: Any = {
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
    "text.parse_math": False,
}
"""Text is drawn as it is: tokens and names may hold dollar signs, which matplotlib takes for formulas."""
COLOURS = ("#1b6ca8", "#d1495b", "#3a8f5c", "#b5842b", "#6f4e9c", "#3c3c3c", "#00a0b0", "#c46fa8")
LINES: Any = ("-", "--", ":", "-.")
SITES = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
MAPS_IN_A_ROW = 4
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#08306b", "#2171b5", "#8fc1de", "#ffffff", "#f7a889", "#cb2a2f", "#67000d"], N=257
)
"""Blue below, red above, and zero exactly white."""


def _grid(rows: int, columns: int, lines: int, width: float = 3.0, height: float = 1.9) -> tuple[Figure, Any]:
    """Returns a figure with panels of equal size, in inches, and space above for `lines` lines of legend.

    matplotlib's automatic layout measures every label, which takes seconds for many panels.
    """
    left, right, beside, above, below, between = 0.65, 0.15, 0.7, 0.5, 0.5, 0.95
    legend = 0.17 * lines + 0.05
    total_width = left + columns * width + (columns - 1) * beside + right
    total_height = legend + above + rows * height + (rows - 1) * between + below
    figure = Figure(figsize=(total_width, total_height))
    panels = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": left / total_width,
            "right": 1 - right / total_width,
            "top": 1 - (legend + above) / total_height,
            "bottom": below / total_height,
            "wspace": beside / width,
            "hspace": between / height,
        },
    )
    return figure, panels


def _legend(figure: Figure, panels: Any, columns: int) -> None:
    handles: dict[str, Any] = {}
    for axes in np.ravel(panels):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=columns, borderaxespad=0.2)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # A palette of 256 colours suffices and makes files a third as large; white must stay white.
    small = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = small.getpalette()
    assert palette is not None
    white = small.getpixel((0, 0))
    assert isinstance(white, int)
    palette[3 * white : 3 * white + 3] = [255, 255, 255]
    small.putpalette(palette)
    small.save(path, optimize=True)


Series = Sequence[tuple[str, str]]
"""Checkpoint and setting of every line of a report, in its order; a checkpoint's position determines its colour."""


def _series(records: pd.DataFrame) -> list[tuple[str, str]]:
    return list(records[["checkpoint", "variant"]].drop_duplicates().itertuples(index=False, name=None))


def _style_of(series: Series, checkpoint: str, variant: str, checkpoints: Sequence[str]) -> dict[str, Any]:
    """Returns the colour of a checkpoint (by its position in `checkpoints`) and the dashes of a setting."""
    variants = list(dict.fromkeys(name for _, name in series))
    label = checkpoint if len(variants) == 1 else f"{checkpoint}, {variant}"
    return {
        "color": COLOURS[checkpoints.index(checkpoint) % len(COLOURS)],
        "linestyle": LINES[variants.index(variant) % len(LINES)],
        "label": label,
    }


def _logarithmic(axes: Any) -> None:
    """Makes the vertical axis logarithmic, with few labels; within one decade, matplotlib's own would overlap."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:.3g}"))
    if decades < 2.5:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1, 3), numticks=12))
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=6))


def _draw_panel(
    axes: Any, records: pd.DataFrame, metric: str, site: str, series: Series, checkpoints: Sequence[str]
) -> None:
    definition = describe(metric)
    chosen = records[(records.metric == metric) & (records.site == site) & records["head"].isna()]
    for checkpoint, variant in series:
        line = chosen[(chosen.checkpoint == checkpoint) & (chosen.variant == variant)].sort_values("layer")
        if line.empty:
            continue
        style = _style_of(series, checkpoint, variant, checkpoints)
        middle = line["median"] if definition.logarithmic else line["mean"]
        axes.plot(line.layer, middle, marker="o", markersize=3, **style)
        if (line["count"] > 1).any():
            axes.fill_between(line.layer, line.low, line.high, color=style["color"], alpha=0.13, linewidth=0)
    if definition.logarithmic and (chosen["median"] > 0).any():
        _logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_title(f"{definition.label}\n{SITES.get(site, site)}")
    axes.set_xlabel("layer")


def curves(records: pd.DataFrame, chosen: Sequence[str], path: Path, checkpoints: Sequence[str]) -> None:
    """Draws metrics (columns) by layer for every site (rows), one line for each checkpoint and setting of switches.

    `checkpoints` are all those of the report, so that each has the same colour in every picture. Lines show the mean
    over the samples, or the median on a logarithmic axis; bands show 10 % to 90 %.
    """
    records = records[records.metric.isin(chosen)]
    sites = [site for site in SITES if (records.site == site).any()]
    series = _series(records)
    with mpl.rc_context(STYLE):
        columns = min(len(series), len(chosen) + 1)
        figure, panels = _grid(len(sites), len(chosen), math.ceil(len(series) / columns))
        for row, site in enumerate(sites):
            for column, metric in enumerate(chosen):
                _draw_panel(panels[row, column], records, metric, site, series, checkpoints)
                if not panels[row, column].lines:
                    panels[row, column].axis("off")
                    panels[row, column].set_title("")
        _legend(figure, panels, columns)
        _save(figure, path, 110)


FIGURE_4 = ("residual_norm", "mean_cosine", "query_gradient")


MARKERS = {"encoder": "o", "decoder": "s"}


def log_log(fits: Sequence[dict[str, Any]], path: Path, checkpoints: Sequence[str]) -> None:
    """Draws the residual ratio, and log(−log r) with its fitted line, against depth; encoder dots, decoder squares."""
    with mpl.rc_context(STYLE):
        figure, panels = _grid(1, 2, math.ceil(len(fits) / 2), 4.5, 2.8)
        left, right = panels[0]
        series = [(entry["checkpoint"], f"{entry['variant']}, {entry['site']}") for entry in fits]
        for entry, (checkpoint, variant) in zip(fits, series, strict=True):
            style = _style_of(series, checkpoint, variant, checkpoints)
            dots = {
                "marker": MARKERS[entry["site"]],
                "markersize": 4,
                "markerfacecolor": style["color"] if entry["site"] == "encoder" else "white",
            }
            ratios = np.asarray(entry["ratios"], dtype=float)
            left.plot(range(len(ratios)), ratios, **style, **dots)
            with np.errstate(invalid="ignore", divide="ignore"):
                heights = np.where((ratios > entry["floor"]) & (ratios < 1), np.log(-np.log(ratios)), np.nan)
            layers = "1 layer" if entry["points"] == 1 else f"{entry['points']} layers"
            label = f"{style['label']}: no fit, {layers} above rounding"
            if entry["slope"] is not None:
                label = f"{style['label']}: slope {entry['slope']:.3g}"
                depths = np.flatnonzero(np.isfinite(heights))
                right.plot(depths, entry["intercept"] + entry["slope"] * depths, **{**style, "label": None})
            right.plot(range(len(ratios)), heights, linestyle="none", color=style["color"], **dots)
            right.plot([], [], **{**style, "label": label}, **dots)
        _logarithmic(left)
        left.set_title("residual ratio (mean token)")
        right.set_title("log(−log r): a straight rising line is doubly exponential decay")
        for axes in (left, right):
            axes.set_xlabel("layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        _legend(figure, right, 2)
        _save(figure, path, 110)


def paths(rows: Sequence[dict[str, Any]], path: Path, checkpoints: Sequence[str]) -> None:
    """Draws the residual of sampled paths, median and 10–90 % band, against path length, one panel for each stack."""
    frame = pd.DataFrame(rows)
    series = _series(frame)
    sites = list(dict.fromkeys(frame.site))
    with mpl.rc_context(STYLE):
        figure, panels = _grid(1, len(sites), math.ceil(len(series) / 2), 4.5, 2.8)
        for axes, site in zip(panels[0], sites, strict=True):
            here = frame[frame.site == site]
            for (checkpoint, variant), line in here.groupby(["checkpoint", "variant"], sort=False):
                style = _style_of(series, str(checkpoint), str(variant), checkpoints)
                axes.plot(line.length, line["median"], marker="o", markersize=3, **style)
                axes.fill_between(line.length, line.low, line.high, color=style["color"], alpha=0.13, linewidth=0)
            if (here["median"] > 0).all():
                _logarithmic(axes)
            axes.set_title(f"residual ‖P − rank1(P)‖ / ‖P‖ of a path, {site}")
            axes.set_xlabel("path length k")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        _legend(figure, panels, 2)
        _save(figure, path, 110)


def path_losses(rows: Sequence[dict[str, Any]], path: Path, checkpoints: Sequence[str]) -> None:
    """Draws loss and share of correct tokens against the greatest number of attentions on the paths that are kept."""
    frame = pd.DataFrame(rows)
    with mpl.rc_context(STYLE):
        figure, panels = _grid(1, 2, math.ceil(len(checkpoints) / 4), 4.5, 2.8)
        titles = {"loss": "loss (nats per token)", "right": "share of tokens predicted correctly"}
        for axes, (column, title) in zip(panels[0], titles.items(), strict=True):
            for checkpoint, line in frame.groupby("checkpoint", sort=False):
                style = _style_of([(str(checkpoint), "full")], str(checkpoint), "full", checkpoints)
                axes.plot(line.length, line[column], marker="o", markersize=3, **style)
            axes.set_title(title)
            axes.set_xlabel("attentions on a path, at most")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        _legend(figure, panels, 4)
        _save(figure, path, 110)


def _visible_label(token: str) -> str:
    """Returns a token's axis label: in quotes if it has no letter or digit, because a lone dot is easily overlooked."""
    return token if any(character.isalnum() for character in token) else f"‘{token}’"


def attention_maps(weights: np.ndarray, queries: Sequence[str], keys: Sequence[str], path: Path, dpi: int) -> None:
    """Draws the signed maps of a layer's heads, H × T × S: red positive, blue negative, white zero, one scale."""
    queries, keys = [_visible_label(token) for token in queries], [_visible_label(token) for token in keys]
    heads = len(weights)
    columns = min(MAPS_IN_A_ROW, heads)
    rows = math.ceil(heads / columns)
    bound = float(np.abs(weights).max()) or 1.0
    size = 6.5
    # Placed by hand, in inches, because matplotlib takes seconds to lay out hundreds of labels.
    side, gap, top, bar = 2.6, 0.12, 0.22, 0.75
    tall = side * max(0.4, min(1.5, len(queries) / max(1, len(keys))))
    left, bottom = (0.1 + 0.075 * max(map(len, labels)) * size / 6.5 for labels in (queries, keys))
    width = left + columns * (side + gap) + bar
    height = bottom + rows * (tall + top) + 0.05
    with mpl.rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(width, height))
        for number in range(heads):
            row, column = divmod(number, columns)
            from_top = (rows - row) * (tall + top) - top - tall
            axes = figure.add_axes(
                (
                    (left + column * (side + gap)) / width,
                    (bottom + from_top) / height,
                    side / width,
                    tall / height,
                )
            )
            picture = axes.imshow(weights[number], cmap=SIGNED, norm=Normalize(-bound, bound), aspect="auto")
            axes.set_title(f"head {number + 1}", fontsize=8, pad=3)
            below = number + columns >= heads
            axes.set_xticks(range(len(keys)) if below else [], keys if below else [], rotation=90, fontsize=size)
            first = column == 0
            axes.set_yticks(range(len(queries)) if first else [], queries if first else [], fontsize=size)
            axes.tick_params(length=0, pad=1.5)
            for spine in axes.spines.values():
                spine.set_linewidth(0.4)
        beside = (left + columns * (side + gap) + 0.06) / width
        figure.colorbar(picture, cax=figure.add_axes((beside, bottom / height, 0.12 / width, tall / height)))
        _save(figure, path, dpi)


def token_map(values: np.ndarray, outputs: Sequence[str], given: Sequence[str], title: str, path: Path) -> None:
    """Draws a non-negative map, output tokens by input tokens, each row scaled to its largest value."""
    largest = values.max(axis=1, keepdims=True)
    shares = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    style: Any = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    with mpl.rc_context(style):
        figure = Figure(figsize=(0.26 * len(given) + 2.6, 0.24 * len(outputs) + 1.6), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(given)), map(_visible_label, given), rotation=90)
        axes.set_yticks(range(len(outputs)), map(_visible_label, outputs))
        axes.tick_params(length=0)
        axes.set_xlabel("given token")
        axes.set_ylabel("token of the output")
        axes.set_title(title, fontsize=9)
        figure.colorbar(picture, ax=axes, shrink=0.8, aspect=25, label="row maximum = 1")
        _save(figure, path, 110)


def lambda_history(rows: pd.DataFrame, path: Path) -> None:
    """Draws λ against updates: a column for each λ, a row for each site, a line for each layer, a band over heads."""
    names = list(dict.fromkeys(rows.metric))
    sites = [site for site in SITES if (rows.site == site).any()]
    dashes = {group: LINES[index % len(LINES)] for index, group in enumerate(dict.fromkeys(rows.group))}
    with mpl.rc_context(STYLE):
        figure, panels = _grid(len(sites), len(names), len(dashes) > 1, 4.0)
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
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
                axes.xaxis.set_major_formatter("{x:,.0f}")
        if len(dashes) > 1:
            handles = [mpl.lines.Line2D([], [], color="black", linestyle=dash) for dash in dashes.values()]
            figure.legend(handles, dashes.keys(), loc="upper center", ncols=3)
        _save(figure, path, 110)
