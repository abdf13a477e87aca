"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def learning_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws training (thin) and validation loss of every run over updates, in bits per subword.

    With runs of `stock` and of other arms, a second panel shows the validation loss of each run minus that of the stock
    run with the same seed (or else the first stock run), at the updates that both have.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stock = {run["seed"]: dict(run["train"]["curve"]["valid"]) for run in runs if run["name"] == "stock"}
    others = [run for run in runs if run["name"] != "stock"]
    panels = 2 if stock and others else 1
    figure = Figure(figsize=(7 * panels, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    losses, *differences = figure.subplots(1, panels, squeeze=False)[0]
    colours = {id(run): f"C{number}" for number, run in enumerate(runs)}
    for run in runs:
        curve, colour = run["train"]["curve"], colours[id(run)]
        if curve["train"]:
            losses.plot(*zip(*curve["train"], strict=True), color=colour, alpha=0.4, linewidth=0.8)
        losses.plot(*zip(*curve["valid"], strict=True), color=colour, marker="o", markersize=4, label=_label(run))
    losses.set_ylabel("loss, with label smoothing if any (bits per subword)")
    losses.set_title(f"{runs[0]['task']}: validation loss (thin: training loss)")
    for axes in differences:
        axes.axhline(0, color="black", linewidth=0.8)
        for run in others:
            reference = stock.get(run["seed"], next(iter(stock.values())))
            points = [(at, loss - reference[at]) for at, loss in run["train"]["curve"]["valid"] if at in reference]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colours[id(run)], marker="o", markersize=4, label=_label(run)
                )
        axes.set_ylabel("validation loss − stock's (bits per subword)")
        axes.set_title("difference to stock: below 0 is better")
    for axes in (losses, *differences):
        axes.set_xlabel("updates")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=150)
    part.replace(path)


def _label(run: dict[str, Any]) -> str:
    return f"{run['name']}, seed {run['seed']}"
