"""What the pictures of the benchmark show; `analysis.drawing` draws them. Without matplotlib, it cannot be imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fairseq_gpam.analysis.drawing import COLOURS, Effect, Panel, Series, forest, look, panels
from fairseq_gpam.analysis.embed import write
from fairseq_gpam.lab.benchmark.shapes import label


def draw(results: dict[str, Any], path: Path) -> list[Path]:
    """Draws ratios with quartiles to `path`, and what was measured by length to a second file; returns both paths."""
    figures = {path: ratios(results)} if results["ratios"] else {}
    if results["memory"] or results["scaling"]:
        figures[path.with_stem(f"{path.stem}-by-length")] = by_length(results["memory"], results["scaling"])
    for file, figure in figures.items():
        write(figure, file)
    return list(figures)


def ratios(results: dict[str, Any]) -> Figure:
    """Returns the figure of every ratio's median and quartiles, the fastest first."""
    candidates = list(dict.fromkeys(_candidate(row) for row in results["ratios"]))
    effects = []
    for row in results["ratios"]:
        name = f"{_candidate(row)}, {label(row)}"
        colour = COLOURS[candidates.index(_candidate(row)) % len(COLOURS)]
        effects.append(Effect(name, row["median"], (row["lower"], row["upper"]), f"{row['median']:.3f}", colour))
    machine = results["machine"]
    note = f"{machine['processor']}, {machine['threads']} thread(s), commit {machine['commit']}"
    heading = "time / stock fairseq, median and quartiles"
    return forest(effects, heading, note, sides=("faster", "slower"), reference=1.0)


def by_length(memory: Sequence[dict[str, Any]], scaling: Sequence[dict[str, Any]]) -> Figure:
    """Returns the figure of peak memory and of time against the number of tokens, as far as they were measured."""
    lines: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {
        "peak memory of the core in training, MiB": {
            f"{row['what']}, dropout {row['dropout']:g} (T^{row['exponent']:.2f})": (row["lengths"], row["mebibytes"])
            for row in memory
        },
        "seconds of the core in training": {
            f"{_candidate(row)}, {whose} (T^{row[whose + '_exponent']:.2f})": (row["lengths"], row[f"{whose}_seconds"])
            for row in scaling
            for whose in ("stock", "our")
        },
    }
    shown = []
    for title, measured in lines.items():
        series = [
            Series(name, list(zip(*line, strict=True)), **look(n)) for n, (name, line) in enumerate(measured.items())
        ]
        if series:
            shown.append(Panel(title, "tokens", series=series, logarithmic=True, logarithmic_x=True))
    return panels(shown, columns=2, size=(4.5, 3.0))


def _candidate(row: dict[str, Any]) -> str:
    return f"{row['mechanism']}:{row['backend']}"
