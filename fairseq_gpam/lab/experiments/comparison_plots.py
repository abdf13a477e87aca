"""Pictures of a comparison as SVG text, identical for identical numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fairseq_gpam.lab.experiments.run_results import place_of

WIDTH = 9.0
STYLES = {"plus": ("-", "λ⁺"), "minus": ("--", "λ⁻"), "": (":", "λ")}


def panels(
    count: int, columns: int, height: float, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with `count` panels, `height` inches high, in rows of at most `columns`."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def svg(figure: Figure) -> str:
    """Returns a figure as SVG without its XML header, scaling to the page's width."""
    text = io.BytesIO()
    with rc_context({"svg.hashsalt": "fairseq_gpam"}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue().decode("utf-8")


def colours(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a colour for each arm, the same in every picture of the same arms."""
    from matplotlib import colormaps

    arms = list(dict.fromkeys(entry["arm"] for entry in entries))
    colour = colormaps["tab10" if len(arms) <= 10 else "tab20"]
    return {arm: colour(number % colour.N) for number, arm in enumerate(arms)}


def curves(entries: Sequence[dict[str, Any]], baseline: str) -> str:
    """Draws every arm's mean validation loss, and its difference from the baseline, paired by seed, with intervals."""
    figure, axes = panels(2, 2, 4.5)
    for shown, key in zip(axes, ("points", "differences"), strict=True):
        for entry in entries:
            if not entry[key]:
                continue
            updates, mean, low, high = zip(*entry[key], strict=True)
            colour = colours(entries)[entry["arm"]]
            shown.plot(updates, mean, color=colour, label=entry["arm"], marker=".", linewidth=1)
            if None not in low:
                shown.fill_between(updates, low, high, color=colour, alpha=0.15, linewidth=0)
        shown.set_xlabel("updates")
    axes[0].set_ylabel("validation loss, with label smoothing if any (nats)")
    axes[1].set_ylabel(f"validation loss − that of {baseline} (nats)")
    axes[1].axhline(0, color="0.3", linewidth=0.8)
    ends = [entry["differences"][-1][1:] for entry in entries if entry["differences"]]
    if ends:
        # Early differences are ten times as large as the final ones, which matter more.
        largest = 3 * max(abs(value) for end in ends for value in end if value is not None) or 1.0
        axes[1].set_ylim(-largest, largest)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    return svg(figure)


def lambdas(entries: Sequence[dict[str, Any]]) -> str:
    """Draws λ over training, averaged over seeds: a panel for each arm, a line for each attention and sign.

    λ⁺ is solid, λ⁻ dashed; a colour is a site (encoder, decoder, cross), paler in the first layers.
    """
    arms = list(dict.fromkeys(entry["arm"] for entry in entries))
    places = {entry["name"]: place_of(entry["name"]) for entry in entries}
    sites = {site: f"C{number}" for number, site in enumerate(dict.fromkeys(site for site, _, _ in places.values()))}
    deepest = max(layer for _, layer, _ in places.values())
    figure, axes = panels(len(arms), 3, 2.8, sharex=True, sharey=True)
    for shown, arm in zip(axes, arms, strict=True):
        for entry in entries:
            if entry["arm"] == arm:
                site, layer, sign = places[entry["name"]]
                updates, values = zip(*entry["points"], strict=True)
                alpha = 0.35 + 0.65 * layer / deepest
                shown.plot(updates, values, STYLES[sign][0], color=sites[site], alpha=alpha, linewidth=1.2)
        shown.set_title(arm, fontsize="medium")
        shown.axhline(0, color="0.6", linewidth=0.6)
    for shown in axes[-3:]:
        shown.set_xlabel("updates")
    axes[0].set_ylabel("λ")
    there = {sign for _, _, sign in places.values()}
    proxies = [axes[0].plot([], [], color=colour)[0] for colour in sites.values()]
    proxies += [axes[0].plot([], [], style, color="0.3")[0] for sign, (style, _) in STYLES.items() if sign in there]
    words = [*sites, *(name for sign, (_, name) in STYLES.items() if sign in there)]
    figure.legend(proxies, words, fontsize="small", loc="outside lower center", ncols=len(words))
    return svg(figure)
