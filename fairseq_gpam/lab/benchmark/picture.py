"""Draws the results of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws ratios with quartiles, and memory and time against the length where they were measured.

    Raises ImportError with the command that installs it if matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--picture needs matplotlib: pip install 'fairseq-gpam[analysis]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["ratios"]
    candidates = list(dict.fromkeys(f"{row['mechanism']}:{row['backend']}" for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    has_lengths = bool(results["memory"] or results["scaling"])
    height = max(4.5, 0.3 * len(labels) + 1.5)
    figure, axes = pyplot.subplots(1, 1 + has_lengths, figsize=(13 if has_lengths else 8, height), squeeze=False)
    ratios = axes[0][0]
    for index, candidate in enumerate(candidates):
        own = [row for row in rows if f"{row['mechanism']}:{row['backend']}" == candidate]
        heights = [labels.index(_label(row)) + 0.18 * (index - (len(candidates) - 1) / 2) for row in own]
        spread = [[r["median"] - r["lower"] for r in own], [r["upper"] - r["median"] for r in own]]
        ratios.errorbar([r["median"] for r in own], heights, xerr=spread, fmt="o", markersize=4, label=candidate)
    ratios.axvline(1.0, color="black", linewidth=0.8)
    ratios.set_yticks(range(len(labels)), labels, fontsize=8)
    ratios.invert_yaxis()
    ratios.set_xlabel("time / stock fairseq (median and quartiles)")
    if rows:
        ratios.legend(fontsize=8)
    ratios.grid(axis="x", alpha=0.3)
    if has_lengths:
        lengths = axes[0][1]
        for row in results["memory"]:
            label = f"{row['what']}, dropout {row['dropout']:g} (T^{row['exponent']:.2f})"
            lengths.plot(row["lengths"], row["mebibytes"], marker="o", markersize=3, label=label)
        lengths.set_ylabel("peak memory of the core in training, MiB")
        if not results["memory"]:
            for row in results["scaling"]:
                for whose in ("stock", "our"):
                    label = f"{row['mechanism']}:{row['backend']}, {whose} (T^{row[whose + '_exponent']:.2f})"
                    lengths.plot(row["lengths"], row[whose + "_seconds"], marker="o", markersize=3, label=label)
            lengths.set_ylabel("seconds of the core in training")
        lengths.set_xscale("log", base=2)
        lengths.set_yscale("log")
        lengths.set_xlabel("tokens")
        lengths.legend(fontsize=8)
        lengths.grid(alpha=0.3)
    machine = results["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['threads']} thread(s), commit {machine['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _label(row: dict[str, Any]) -> str:
    dropout = f", dropout {row['dropout']:g}" if row["dropout"] else ""
    return f"{row['level']} {row['shape']} {row['kind']}, {row['mode']}{dropout}"
