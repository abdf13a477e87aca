"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def learning_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training (thin) and validation loss (bits per subword) over updates of every run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, run in enumerate(runs):
        colour, label = f"C{number}", f"{run['name']}, seed {run['seed']}"
        curve = run["train"]["curve"]
        if curve["train"]:
            axes.plot(*zip(*curve["train"], strict=True), color=colour, alpha=0.4, linewidth=0.8)
        axes.plot(*zip(*curve["valid"], strict=True), color=colour, marker="o", markersize=4, label=label)
    axes.set_xlabel("updates")
    axes.set_ylabel("loss (bits per subword)")
    axes.set_title(f"{runs[0]['task']}: validation loss (thin: training loss)")
    axes.grid(alpha=0.3)
    axes.legend()
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=150)
    part.replace(path)
