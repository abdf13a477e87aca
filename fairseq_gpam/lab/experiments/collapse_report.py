"""Rank collapse in a comparison: tables and pictures of measures by layer, and against performance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq_gpam.analysis.definitions import describe

Table = tuple[tuple[str, ...], list[list[str]]]
HEAD = ("task", "measure", "runs", "Spearman's ρ", "95 % low", "95 % high", "between arms", "within arms")
COLUMNS = ("rho", "low", "high", "between", "within")
NOTE = (
    "Each measure is that of the last layer; performance is the validation loss, so a negative ρ says that more of the "
    "measure goes with lower loss. The bootstrap draws arms and seeds; with fewer than four arms or two seeds there is "
    "no interval. *Between arms* is ρ of the arms' means over seeds; *within arms* is ρ of what is left of each run "
    "when the effects of arm and seed are subtracted. Intervals are not corrected for the number of measures."
)


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


def correlation_words(title: str, found: Sequence[dict[str, Any]]) -> str:
    """Returns a description of the picture of the measures against performance."""
    ends = "; ".join(f"{label(entry['measure'])} {_two_digits(entry['rho'])}" for entry in found)
    return f"{title}, a point for each run. Spearman's ρ: {ends}."


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
    names = ("input" if layer < 0 else f"layer {layer}" for layer in depths)
    return ("measure", "arm", "seeds", *names), rows


def layers_note(entries: Sequence[dict[str, Any]]) -> str:
    """Returns the definitions of the measures."""
    measures = dict.fromkeys(entry["name"].partition(", ")[0] for entry in entries)
    meanings = "; ".join(f"{label(measure)}: {describe(measure).definition}" for measure in measures)
    return (
        "Means over seeds, measured with the best checkpoint on test examples; *input* is what enters layer 0. "
        f"{meanings}."
    )


def layers_words(title: str, entries: Sequence[dict[str, Any]]) -> str:
    """Returns a description of the picture of measures by layer."""
    words = []
    for name in dict.fromkeys(entry["name"] for entry in entries):
        ends = (
            f"{entry['arm']} {_three_digits(entry['points'][0][1])} to {_three_digits(entry['points'][-1][1])}"
            for entry in entries
            if entry["name"] == name
        )
        words.append(f"{label(name)}, first to last layer: {', '.join(ends)}.")
    return f"{title}. {' '.join(words)}"
