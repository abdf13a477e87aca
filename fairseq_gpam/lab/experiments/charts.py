"""Draws several arms in panels, as lines with bands or as points, in SVG.

Like the forest plot it uses a template, so that its bytes depend on the numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_gpam.lab.experiments import templates
from fairseq_gpam.lab.experiments.forest import LETTER, ticks

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#555555")
SHAPES = ({"round": 3, "turn": 0}, {"round": 0, "turn": 0}, {"round": 0, "turn": 45})
"""Points are circles for the first arms, squares for the next, then diamonds."""
LEFT, WIDTH, RIGHT, TOP, HEIGHT, BOTTOM = 70, 226, 14, 46, 150, 44
"""Width and height of a panel's plot and of what surrounds it, in pixels."""
HEADING, LEGEND = 34, 20


@dataclass(frozen=True)
class Series:
    """An arm's data in a panel: points (x, y), a band (x, low, high) around them, and whether a line joins them."""

    arm: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    line: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot; a logarithmic vertical axis becomes linear if a value is not positive."""

    title: str
    subtitle: str
    x: str
    y: str
    series: Sequence[Series]
    logarithmic: bool = False


class Axis:
    """Maps numbers to pixels between `start` and `end`; if all numbers are whole, so are the labels."""

    def __init__(self, values: Sequence[float], start: float, end: float, logarithmic: bool = False) -> None:
        self.logarithmic = logarithmic and min(values) > 0
        low, high = self._scaled(min(values)), self._scaled(max(values))
        margin = 0.05 * (high - low) or 0.5
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end
        self.whole = not self.logarithmic and all(value == round(value) for value in values)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def place(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def labels(self) -> list[dict[str, object]]:
        """Returns positions and texts of round numbers; on a logarithmic axis powers of 10, with 2 and 5 in between."""
        if self.logarithmic:
            factors = (1,) if self.high - self.low >= 2 else (1, 2, 5)
            powers = range(math.floor(self.low), math.floor(self.high) + 1)
            at = [value for power in powers for factor in factors if self._holds(value := 10.0**power * factor)]
            texts = [f"{value:.6g}" for value in at[:: math.ceil(len(at) / 6) or 1]]
        if not self.logarithmic or len(at) < 3:
            edges = (10**self.low, 10**self.high) if self.logarithmic else (self.low, self.high)
            at = ticks(*edges, 5)
            digits = max(0, -math.floor(math.log10(at[1] - at[0]) + 1e-9))
            texts = [f"{value + 0.0:.{digits}f}" for value in at]
        if self.whole:
            texts = [f"{value:.0f}" for value in map(float, texts) if value == round(value)]
        return [{"at": self.place(float(text)), "text": text.replace("-", "−")} for text in texts]

    def _holds(self, value: float) -> bool:
        return self.low <= math.log10(value) <= self.high


def draw(heading: str, panels: Sequence[Panel], note: str, columns: int) -> str:
    """Returns the SVG text of panels in rows of at most `columns`, with one legend and `note` below it."""
    arms = list(dict.fromkeys(one.arm for panel in panels for one in panel.series))
    styles = {
        arm: {"name": arm, "colour": COLOURS[number % len(COLOURS)], **SHAPES[number // len(COLOURS) % len(SHAPES)]}
        for number, arm in enumerate(arms)
    }
    columns = min(columns, len(panels))
    across, down = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    width = columns * across
    x, y = float(LEFT), HEADING + down * math.ceil(len(panels) / columns) + LEGEND
    for arm in arms:
        if x > LEFT and x + 24 + LETTER * len(arm) > width:
            x, y = float(LEFT), y + LEGEND
        styles[arm] |= {"x": round(x, 1), "y": y}
        x += 24 + LETTER * len(arm)
    return templates.render(
        "charts.svg.j2",
        heading=heading,
        panels=[
            _drawn(panel, styles, number % columns * across + LEFT, HEADING + number // columns * down + TOP)
            for number, panel in enumerate(panels)
        ],
        legend=list(styles.values()),
        note=note,
        left=LEFT,
        width=math.ceil(max(width, 2 * LEFT + LETTER * max(len(heading), len(note)))),
        height=y + 2 * LEGEND,
    )


def _drawn(panel: Panel, styles: dict[str, dict[str, object]], left: int, top: int) -> dict[str, object]:
    points = [point for one in panel.series for point in one.points]
    edges = [edge for one in panel.series for _, *edges in one.band for edge in edges]
    across = Axis([x for x, _ in points], left, left + WIDTH)
    up = Axis([*(y for _, y in points), *edges], top + HEIGHT, top, panel.logarithmic)
    series = []
    for one in panel.series:
        outline = [(x, low) for x, low, _ in one.band] + [(x, high) for x, _, high in reversed(one.band)]
        dots, band = ([(across.place(x), up.place(y)) for x, y in path] for path in (one.points, outline))
        series.append({"style": styles[one.arm], "dots": dots, "band": band, "line": one.line})
    frame = {"left": left, "top": top, "right": left + WIDTH, "bottom": top + HEIGHT}
    return {"panel": panel, "series": series, "x_labels": across.labels(), "y_labels": up.labels(), **frame}
