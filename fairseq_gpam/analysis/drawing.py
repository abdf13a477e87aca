"""Every picture: panels of lines or points, forest plots and maps of weights, as matplotlib figures.

Callers say what is shown; this module places it, and `embed` writes it. Figures are laid out in inches, because
matplotlib's automatic layout measures every label, which takes seconds for many panels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe and Ito's colours, which remain distinct with defective colour vision."""
MARKERS = ("o", "s", "D", "^")
DASHES: Any = ("-", "--", ":", "-.")
VERDICTS = {"better": "#009e73", "worse": "#d55e00", "equivalent within ±δ": "#0072b2"}
OTHER = "#555555"
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#08306b", "#2171b5", "#8fc1de", "#ffffff", "#f7a889", "#cb2a2f", "#67000d"], N=257
).with_extremes(bad="#c8c8c8")
"""Blue below, red above, zero exactly white, and grey for what is masked."""
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    # Tokens and names may hold dollar signs, which matplotlib takes for formulas.
    "text.parse_math": False,
    "svg.fonttype": "none",
}
LAYER_NAMES: Mapping[float, str] = {-1: "input"}
"""Layers count from 0; states have a layer −1, the input of the first."""
LETTER = 0.078
"""Width of a letter of the standard size, in inches."""


@dataclass(frozen=True)
class Series:
    """Points (x, y), joined by a line if there is a `dash`, and a band (x, low, high) around them.

    `colour` is a colour or a number in `COLOURS`, `dash` a number in `DASHES`.
    """

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    colour: int | str = 0
    dash: int | None = 0
    marker: str = "o"
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot. A logarithmic axis becomes linear if no value is positive.

    `names` are texts for numbers on the horizontal axis; `zero` draws a line at 0; `limit` bounds |y|.
    """

    title: str
    x: str
    y: str = ""
    series: Sequence[Series] = ()
    logarithmic: bool = False
    logarithmic_x: bool = False
    names: Mapping[float, str] = field(default_factory=dict)
    zero: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class Effect:
    """A row of a forest plot; without an interval it is hollow."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    text: str
    colour: str = OTHER


@dataclass(frozen=True)
class WeightMap:
    """Signed weights T × S with a title and the tokens of queries and keys; masked cells are NaN."""

    title: str
    weights: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]


def look(number: int) -> dict[str, Any]:
    """Returns colour and marker of the series with this number, different for the first 28."""
    return {"colour": number % len(COLOURS), "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}


def panels(
    shown: Sequence[Panel | None],
    columns: int,
    size: tuple[float, float] = (3.0, 1.9),
    heading: str = "",
    note: str = "",
) -> Figure:
    """Returns panels of equal size (inches), in rows of `columns`, with one legend above; None leaves a gap."""
    width, height = size
    left, right, beside, above, below, between = 0.75, 0.15, 0.75, 0.5, 0.5, 0.95
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    labels = list(dict.fromkeys(series.label for panel in shown if panel for series in panel.series if series.label))
    longest = max(map(len, labels), default=0) * LETTER + 0.6
    total_width = max(left + columns * (width + beside) - beside + right, longest, LETTER * len(heading) + 0.4)
    in_a_row = max(1, min(len(labels), int(total_width / longest)))
    top = 0.3 * bool(heading) + 0.17 * math.ceil(len(labels) / in_a_row) + 0.05
    total_height = top + above + rows * (height + between) - between + below + 0.25 * bool(note)
    with rc_context(STYLE):
        figure = Figure(figsize=(total_width, total_height))
        handles: dict[str, Any] = {}
        for number, panel in enumerate(shown):
            if panel is None:
                continue
            row, column = divmod(number, columns)
            across = (left + column * (width + beside)) / total_width
            up = 1 - (top + above + row * (height + between) + height) / total_height
            axes = figure.add_axes((across, up, width / total_width, height / total_height))
            _draw_panel(axes, panel)
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        anchor = (0, 1 - 0.3 * bool(heading) / total_height)
        figure.legend(handles.values(), handles.keys(), loc="upper left", ncols=in_a_row, bbox_to_anchor=anchor)
        _margin_texts(figure, heading, note)
    return figure


def _margin_texts(figure: Figure, heading: str, note: str) -> None:
    width, height = figure.get_size_inches()
    if heading:
        figure.text(0.15 / width, 1 - 0.1 / height, heading, va="top", fontweight="bold", fontsize=10)
    if note:
        figure.text(0.15 / width, 0.08 / height, note, color="#555555")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    if panel.zero:
        axes.axhline(0, color="#444444", linewidth=0.8)
    last = max(1, len(panel.series) - 1)
    for number, series in enumerate(panel.series):
        colour = COLOURS[series.colour % len(COLOURS)] if isinstance(series.colour, int) else series.colour
        if series.band:
            at, low, high = zip(*series.band, strict=True)
            axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            *(zip(*series.points, strict=True) if series.points else ((), ())),
            color=colour,
            linestyle="none" if series.dash is None else DASHES[series.dash % len(DASHES)],
            # Later lines are thinner, so that lines that coincide all remain visible.
            linewidth=2.8 - 1.6 * number / last,
            marker=series.marker,
            markersize=5 - 2 * number / last,
            markerfacecolor="white" if series.hollow else colour,
            label=series.label or None,
        )
    points = [point for series in panel.series for point in series.points]
    if panel.limit is not None:
        axes.set_ylim(-panel.limit, panel.limit)
    if panel.logarithmic and any(y > 0 for _, y in points):
        axes.set_yscale("log")
        _label_logarithmic(axes.yaxis)
    if panel.logarithmic_x:
        axes.set_xscale("log")
        _label_logarithmic(axes.xaxis)
    else:
        _label_linear(axes, panel, [x for x, _ in points])
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)


def _label_linear(axes: Axes, panel: Panel, values: Sequence[float]) -> None:
    whole = all(float(value).is_integer() for value in values)
    locator = MaxNLocator(integer=whole, nbins=8 if whole and max(map(abs, values), default=0) < 1000 else 5)
    named = [at for at in panel.names if at in values]
    if named:
        low, high = axes.get_xlim()
        others = [at for at in locator.tick_values(max(named), max(values)) if low <= at <= high and at > max(named)]
        axes.set_xticks([*named, *others])
    else:
        axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: panel.names.get(value, f"{value:,.6g}")))


def _label_logarithmic(axis: Any) -> None:
    """Labels a logarithmic axis with at least two plain, distinct numbers; matplotlib's own may have none."""
    low, high = sorted(axis.get_view_interval())
    powers = (LogLocator(numticks=6), LogLocator(subs=(1, 3)), LogLocator(subs=(1, 2, 5)))
    for locator in (*powers, MaxNLocator(5, steps=[1, 2, 5, 10])):
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if 3 <= len(ticks) <= 7:
            break
    digits = next((n for n in range(3, 17) if len({f"{tick:.{n}g}" for tick in ticks}) == len(ticks)), 17)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:.{digits}g}"))


def forest(
    effects: Sequence[Effect],
    heading: str,
    note: str,
    *,
    sides: tuple[str, str],
    lowest_first: bool = True,
    reference: float = 0.0,
    delta: float = 0.0,
) -> Figure:
    """Returns a row for each effect with its interval, in the order of the effects.

    `sides` say what lies to the left and right of `reference`; ±delta around it is grey.
    """
    ordered = sorted(effects, key=lambda effect: effect.mean, reverse=not lowest_first)
    left = 0.3 + LETTER * max(len(effect.label) for effect in ordered)
    right = 0.3 + LETTER * max(len(effect.text) for effect in ordered)
    width = max(left + 4.2 + right, 0.4 + LETTER * max(len(heading), len(note)))
    above, below, row = 0.65, 0.75, 0.27
    height = above + row * len(ordered) + below
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, below / height, 4.2 / width, row * len(ordered) / height))
        if delta:
            axes.axvspan(reference - delta, reference + delta, color="#e6e6e6", linewidth=0)
        axes.axvline(reference, color="#444444", linewidth=0.8)
        for number, effect in enumerate(ordered):
            if effect.interval is not None:
                axes.plot(effect.interval, (number, number), color=effect.colour, linewidth=2)
            face = "white" if effect.interval is None else effect.colour
            axes.plot(effect.mean, number, "o", markersize=6, color=effect.colour, markerfacecolor=face)
            axes.annotate(effect.text, (1, number), (8, 0), ("axes fraction", "data"), "offset points", va="center")
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.set_yticks(range(len(ordered)), [effect.label for effect in ordered])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_title(f"← {sides[0]}", loc="left", color="#555555", fontsize=9)
        axes.set_title(f"{sides[1]} →", loc="right", color="#555555", fontsize=9)
        _margin_texts(figure, heading, note)
    return figure


def visible_token(token: str) -> str:
    """Returns a token with its spaces as dots, because an empty label looks like a missing one."""
    return token.replace(" ", "·") or "∅"


def bound_of(weights: Sequence[np.ndarray], quantile: float = 0.98) -> float:
    """Returns the size of weight at which a colour scale ends: a high quantile of what is not masked.

    The maximum would hide the rest: the first row of a causal map is always 1.
    """
    sizes = np.abs(np.concatenate([part[np.isfinite(part)].ravel() for part in weights] or [np.zeros(1)]))
    return float(np.quantile(sizes, quantile)) or float(sizes.max()) or 1.0


def maps(
    shown: Sequence[WeightMap],
    columns: int,
    bound: float,
    *,
    side: float = 2.6,
    colours: Any = SIGNED,
    axis_labels: tuple[str, str] = ("", ""),
    scale: str = "weight",
) -> Figure:
    """Returns maps with one scale from −bound to bound (0 to bound if no weight is negative in `colours`' meaning)."""
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    font, gap, top, bar = 7.0, 0.15, 0.25, 0.95
    queries, keys = ([list(map(visible_token, getattr(part, name))) for part in shown] for name in ("queries", "keys"))
    tall = side * max(0.4, min(1.5, len(queries[0]) / max(1, len(keys[0]))))
    left, bottom = (
        0.12 + 0.2 * bool(label) + 0.066 * max((len(token) for tokens in words for token in tokens), default=0)
        for words, label in zip((queries, keys), axis_labels, strict=True)
    )
    width = left + columns * (side + gap) + bar
    height = bottom + rows * (tall + top) + 0.05
    norm = Normalize(-bound if colours is SIGNED else 0, bound)
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(width, height))
        for number, part in enumerate(shown):
            row, column = divmod(number, columns)
            up = bottom + (rows - row - 1) * (tall + top)
            place = (left + column * (side + gap)) / width, up / height, side / width, tall / height
            axes = figure.add_axes(place)
            image = _draw_map(axes, part.weights, queries[number], keys[number], colours, norm)
            axes.set_title(part.title, fontsize=8, pad=3)
            below = number + columns >= len(shown)
            words = keys[number] if below else []
            axes.set_xticks(range(len(words)), words, rotation=90, fontsize=font)
            words = queries[number] if column == 0 else []
            axes.set_yticks(range(len(words)), words, fontsize=font)
            axes.tick_params(length=0, pad=1.5)
            axes.set_xlabel(axis_labels[1] if below else "", fontsize=8)
            axes.set_ylabel(axis_labels[0] if column == 0 else "", fontsize=8)
        beside = (left + columns * (side + gap) + 0.06) / width
        bar_axes = figure.add_axes((beside, (bottom + (rows - 1) * (tall + top)) / height, 0.12 / width, tall / height))
        largest = max(float(np.nanmax(np.abs(part.weights), initial=0)) for part in shown)
        extend = "neither" if largest <= bound else "both" if colours is SIGNED else "max"
        figure.colorbar(image, cax=bar_axes, extend=extend, label=scale)
    return figure


def small_map(weights: np.ndarray, tokens: Sequence[str], cell: float) -> Figure:
    """Returns a map without labels, with cells of `cell` pixels, the deepest colour at the largest weight."""
    rows, columns = weights.shape
    bound = float(np.abs(weights).max()) or 1.0
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(columns * cell / 96, rows * cell / 96))
        axes = figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[])
        _draw_map(axes, weights, tokens, tokens, SIGNED, Normalize(-bound, bound))
    return figure


def _draw_map(
    axes: Axes, weights: np.ndarray, queries: Sequence[str], keys: Sequence[str], colours: Any, norm: Normalize
) -> AxesImage:
    image = axes.imshow(np.ma.masked_invalid(weights), cmap=colours, norm=norm, aspect="auto", interpolation="none")
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)

    def words_at(x: float, y: float) -> str:
        return f"{queries[round(y)]} → {keys[round(x)]}: {weights[round(y), round(x)]:.3f}"

    axes.format_coord = words_at  # type: ignore[method-assign]
    return image
