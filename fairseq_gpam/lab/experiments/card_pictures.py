"""The pictures of cards: the scores of one mechanism, and the map of all."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from fairseq_gpam.analysis.drawing import COLOURS, LETTER, STYLE

ROW = 0.24
"""Height of a row in inches."""


def points(name: str, rows: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> Figure:
    """Returns a row for each score: its label, the score of each seed, and the reference's below."""
    left, plot, right, above, below = 0.2 + LETTER * max(len(row[0]) for row in rows), 3.0, 0.2, 0.3, 0.45
    width, height = left + plot + right, above + ROW * 1.3 * len(rows) + below
    with rc_context({**STYLE, "axes.spines.left": False}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, below / height, plot / width, 1 - (above + below) / height))
        for scores, label, shift, colour, face in (
            (2, "softmax", 0.17, COLOURS[-1], "white"),
            (1, name, -0.17, COLOURS[0], COLOURS[0]),
        ):
            at = [(value, number + shift) for number, row in enumerate(rows) for value in row[scores]]
            values, heights = zip(*at, strict=True) if at else ((), ())
            axes.plot(values, heights, "o", markersize=5, alpha=0.75, color=colour, markerfacecolor=face, label=label)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min([0.0, *(value for row in rows for value in (*row[1], *row[2]))]) - 0.03, 1.03)
        axes.set_xlabel("score of each seed")
        figure.legend(loc="upper left", ncols=2, bbox_to_anchor=(0, 1), handletextpad=0)
    return figure


def overview(names: Sequence[str], labels: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """Returns a map of scores between 0 and 1, a row for each name, similar rows beside each other.

    Shape: values names × labels. NaN is a score that is missing, and grey.
    """
    scores = np.array(values, dtype=float)
    known = np.nan_to_num(scores)
    order = leaves_list(linkage(known, "average", optimal_ordering=True)) if len(names) > 2 else range(len(names))
    order = sorted(order, key=list(order).index, reverse=bool(known[order[0]].sum() < known[order[-1]].sum()))
    cell, left, above = 0.3, 0.15 + 0.068 * max(map(len, names)), 0.15 + 0.062 * max(map(len, labels))
    width, height = left + cell * len(labels) + 0.1, above + ROW * len(names) + 0.1
    palette = colormaps["cividis"].with_extremes(bad="#c8c8c8")
    with rc_context({**STYLE, "axes.grid": False, "font.size": 8}):
        figure = Figure(figsize=(width, height))
        place = left / width, 0.1 / height, cell * len(labels) / width, ROW * len(names) / height
        axes = figure.add_axes(place)
        axes.imshow(np.ma.masked_invalid(scores[order]), cmap=palette, vmin=0, vmax=1, aspect="auto")
        for row, number in enumerate(order):
            for column, value in enumerate(scores[number]):
                text = "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")
                dark = not math.isnan(value) and value < 0.55
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=7)
        axes.set_yticks(range(len(names)), [names[number] for number in order])
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

        def words_at(x: float, y: float) -> str:
            return f"{names[order[round(y)]]}, {labels[round(x)]}: {scores[order[round(y)], round(x)]:.3f}"

        axes.format_coord = words_at  # type: ignore[method-assign]
    return figure
