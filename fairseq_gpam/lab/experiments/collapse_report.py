"""Rank collapse in a comparison: tables and pictures of measures by layer, and against performance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_gpam.analysis.definitions import describe
from fairseq_gpam.lab.experiments.charts import Panel, Series, draw

Table = tuple[tuple[str, ...], list[list[str]]]
HEAD = ("task", "measure", "runs", "Spearman's ρ", "95 % low", "95 % high", "between arms", "within arms")
COLUMNS = ("rho", "low", "high", "between", "within")
NOTE = (
    "Each measure is that of the last layer; performance is the validation loss, so a negative ρ says that more of the "
    "measure goes with lower loss. The bootstrap draws whole arms; with fewer than four arms there is no interval. "
    "*Between arms* is ρ of the arms' means over seeds; *within arms* is ρ of what is left of each run when its arm's "
    "means are subtracted. Intervals are not corrected for the number of measures."
)
BAND = "Lines are means over seeds; bands reach from the lowest to the highest seed."


def label(name: str) -> str:
    """Returns a measure's label with its site."""
    return name.replace("_", " ")


def correlations(found: Sequence[dict[str, Any]]) -> Table:
    """Returns the header and rows of the table of correlations."""
    return HEAD, [
        [one["group"], label(one["measure"]), str(one["n"]), *(_two_digits(one[key]) for key in COLUMNS)]
        for one in found
    ]


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def correlation_picture(title: str, found: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Returns the picture of each collapse measure against the validation loss, and its description."""
    panels = [
        Panel(
            *_title(one["measure"]),
            x=f"last layer; ρ {_two_digits(one['rho'])}",
            y="validation nll (nats)",
            series=[
                Series(arm, [(x, y) for x, y, name in one["points"] if name == arm])
                for arm in dict.fromkeys(name for _, _, name in one["points"])
            ],
        )
        for one in found
    ]
    ends = "; ".join(f"{label(one['measure'])} {_two_digits(one['rho'])}" for one in found)
    words = f"{title}, a point for each run. Spearman's ρ: {ends}."
    return draw(title, panels, "A point is a run.", columns=3), words


def _title(name: str) -> tuple[str, str]:
    measure, _, site = name.partition(", ")
    return label(measure), site


def layers(entries: Sequence[dict[str, Any]]) -> Table:
    """Returns the header and rows of the table of measures by layer, averaged over seeds."""
    depths = sorted({layer for entry in entries for layer, *_ in entry["points"]})
    rows = []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        for entry in entries:
            if entry["name"] == name:
                means = {layer: _three_digits(mean) for layer, mean, *_ in entry["points"]}
                rows.append(
                    [label(name), entry["arm"], str(entry["seeds"]), *(means.get(layer, "–") for layer in depths)]
                )
    return ("measure", "arm", "seeds", *(f"layer {layer}" for layer in depths)), rows


def layers_note(entries: Sequence[dict[str, Any]]) -> str:
    """Returns the definitions of the measures."""
    measures = dict.fromkeys(entry["name"].partition(", ")[0] for entry in entries)
    meanings = "; ".join(f"{label(measure)}: {describe(measure).definition}" for measure in measures)
    return (
        "Means over seeds, measured with the best checkpoint on test examples; layer 0 is what enters the first "
        f"layer. {meanings}."
    )


def layers_picture(title: str, entries: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Returns the picture of measures by layer, a panel for each measure and site, and its description."""
    panels, words = [], []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        own = [entry for entry in entries if entry["name"] == name]
        series = [
            Series(
                entry["arm"],
                [(layer, mean) for layer, mean, _, _ in entry["points"]],
                band=[(layer, low, high) for layer, _, low, high in entry["points"]] if entry["seeds"] > 1 else (),
                line=True,
            )
            for entry in own
        ]
        logarithmic = describe(name.partition(", ")[0]).logarithmic
        panels.append(Panel(*_title(name), x="layer", y="", series=series, logarithmic=logarithmic))
        ends = (f"{e['arm']} {_three_digits(e['points'][0][1])} to {_three_digits(e['points'][-1][1])}" for e in own)
        words.append(f"{label(name)}, first to last layer: {', '.join(ends)}.")
    return draw(title, panels, BAND, columns=2 if len(panels) < 5 else 3), f"{title}. {' '.join(words)}"
