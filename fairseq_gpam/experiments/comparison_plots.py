"""Pictures of a comparison as SVG text, the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SIZE = (7.0, 4.0)


def svg(draw: Callable[[Axes], None], height: float = SIZE[1]) -> str:
    """Returns what `draw` draws as SVG without its XML head, scalable to the page's width."""
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    text = io.BytesIO()
    with rc_context({"svg.hashsalt": "fairseq_gpam"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue().decode("utf-8")


def curves(entries: Sequence[dict[str, Any]]) -> str:
    """Draws the mean validation loss of every arm with the band of its interval."""

    def draw(axes: Axes) -> None:
        for number, entry in enumerate(entries):
            updates, mean, low, high = zip(*entry["points"], strict=True)
            axes.plot(updates, mean, color=f"C{number % 10}", label=entry["arm"], marker=".", linewidth=1)
            if None not in low:
                axes.fill_between(updates, low, high, color=f"C{number % 10}", alpha=0.2, linewidth=0)
        axes.set_xlabel("updates")
        axes.set_ylabel("validation loss (base 2)")
        axes.legend(fontsize="small")

    return svg(draw)


def lambdas(entries: Sequence[dict[str, Any]]) -> str:
    """Draws λ over training: a line for each attention, sign and seed; λ⁺ solid, λ⁻ dashed; colours are arms."""
    arms = list(dict.fromkeys(entry["arm"] for entry in entries))

    def draw(axes: Axes) -> None:
        for number, arm in enumerate(arms):
            for style, sign in (("-", "plus"), ("--", "minus"), (":", "")):
                own = [e for e in entries if e["arm"] == arm and _sign(e["name"]) == sign]
                for place, entry in enumerate(own):
                    label = f"{arm} {({'plus': 'λ⁺', 'minus': 'λ⁻', '': 'λ'})[sign]}" if place == 0 else None
                    updates, values = zip(*entry["points"], strict=True)
                    axes.plot(updates, values, style, color=f"C{number % 10}", label=label, linewidth=0.8, alpha=0.7)
        axes.set_xlabel("updates")
        axes.set_ylabel("λ")
        axes.legend(fontsize="small")

    return svg(draw)


def _sign(name: str) -> str:
    return next((sign for sign in ("plus", "minus") if sign in name), "")


def scatter(entry: dict[str, Any]) -> str:
    """Draws one collapse measure against the validation loss, a point for each run."""
    arms = list(dict.fromkeys(point[2] for point in entry["points"]))

    def draw(axes: Axes) -> None:
        for number, arm in enumerate(arms):
            x, y = zip(*((point[0], point[1]) for point in entry["points"] if point[2] == arm), strict=True)
            axes.plot(x, y, "o", color=f"C{number % 10}", label=arm)
        axes.set_xlabel(entry["measure"].replace("_", " "))
        axes.set_ylabel("validation nll (nats)")
        axes.legend(fontsize="small")

    return svg(draw)
