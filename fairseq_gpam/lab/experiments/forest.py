"""Draws the forest plot of a table: every arm's difference from the baseline with its interval, as SVG.

It uses a template instead of matplotlib, so that its bytes depend on the numbers alone and not on the version of a
library: tests compare the pictures in the repository byte by byte with plots of the committed results.
"""

from __future__ import annotations

import math
from typing import Any

from fairseq_gpam.lab.experiments import templates

COLOURS = {"better": "#0a6b2d", "worse": "#a51d1d", "equivalent within ±δ": "#1f5fa8"}
PLOT, CAPTION, ROW, TOP, LETTER = 380, 580, 26, 56, 7.6
"""Width of the plot and of the caption, height of a row and of what is above the rows, width of a letter; in pixels."""


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns at most `most` + 1 round numbers from `low` to `high`, a step of 1, 2 or 5 times a power of 10 apart."""
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= high - low)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def draw(table: dict[str, Any], baseline: str, shown: dict[str, str]) -> str:
    """Returns the SVG text of the plot of a comparison's table.

    `shown` has the text of each arm's difference. An arm with too few seeds for a verdict is drawn without an interval,
    which with two seeds would dwarf all others.
    """
    rows = [row for row in table["rows"] if row.get("difference")]
    delta = table["delta"]
    edges = [-delta, delta]
    for row in rows:
        found = row["difference"]["interval"]
        edges += [found["mean"]] if row["difference"]["verdict"] == "too few seeds" else [found["low"], found["high"]]
    margin = 0.05 * (max(edges) - min(edges)) or 1.0
    low, high = min(edges) - margin, max(edges) + margin
    left = 20 + LETTER * max(len(f"{row['arm']} ({row['n']})") for row in rows)

    def place(value: float) -> float:
        return round(left + PLOT * (value - low) / (high - low), 1)

    drawn = []
    for number, row in enumerate(rows):
        one = row["difference"]
        found, verdict = one["interval"], one["verdict"]
        too_few = verdict == "too few seeds"
        drawn.append(
            {
                **{"arm": row["arm"], "seeds": found["n"], "y": TOP + ROW // 2 + ROW * number, "verdict": verdict},
                "mean": place(found["mean"]),
                "interval": None if too_few else {"low": place(found["low"]), "high": place(found["high"])},
                "shown": shown[row["arm"]].replace("-", "−"),
                "colour": COLOURS.get(verdict, "#666"),
            }
        )
    unit = "" if table["unit"] in table["quantity"] else f" ({table['unit']})"
    at = ticks(low, high)
    digits = max(0, -math.floor(math.log10(at[1] - at[0]) + 1e-9))
    sides = ("better", "worse") if table["lower_is_better"] else ("worse", "better")
    last = LETTER * max(len(f"{row['shown']} {row['verdict']}") for row in drawn)
    bottom = TOP + ROW * len(rows)
    return templates.render(
        "forest.svg.j2",
        heading=f"{table['group']}: difference to {baseline} in {table['quantity']}{unit}",
        better={"left": f"← {sides[0]}", "right": f"{sides[1]} →"},
        width=math.ceil(left + max(PLOT + 20 + last, CAPTION)),
        height=bottom + 50,
        left=round(left, 1),
        right=place(high),
        top=TOP,
        bottom=bottom,
        zero=place(0),
        null={"low": place(-delta), "width": round(place(delta) - place(-delta), 1)},
        delta=f"{delta:g}",
        unit=table["unit"],
        rows=drawn,
        ticks=[{"x": place(value), "label": f"{value + 0.0:.{digits}f}".replace("-", "−")} for value in at],
    )
