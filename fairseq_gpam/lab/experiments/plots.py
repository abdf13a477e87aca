"""What the pictures of runs and comparisons show; `analysis.drawing` draws them."""

from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fairseq_gpam.analysis import drawing
from fairseq_gpam.analysis.definitions import describe
from fairseq_gpam.analysis.drawing import Panel, Series, look, panels
from fairseq_gpam.lab.experiments.records import Run

BAND = "Lines are means over seeds; bands reach from the lowest to the highest seed."


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Returns training (dotted) and validation loss of every run over updates, in bits per subword.

    With runs of `stock` and of other arms, a second panel shows the validation loss of each run minus that of the stock
    run with the same seed (or else the first stock run), at the updates that both have.
    """
    stock = {run.seed: dict(run.training.valid) for run in runs if run.name == "stock"}
    valid, train, differences = [], [], []
    for number, run in enumerate(runs):
        label, style = f"{run.name}, seed {run.seed}", look(number)
        train.append(Series("", run.training.train, dash=2, **{**style, "marker": ""}))
        valid.append(Series(label, run.training.valid, **style))
        if stock and run.name != "stock":
            reference = stock.get(run.seed, next(iter(stock.values())))
            shared = [(update, loss - reference[update]) for update, loss in run.training.valid if update in reference]
            differences.append(Series(label, shared, **style))
    loss = "loss, with label smoothing if any (bits per subword)"
    shown = [Panel(f"{runs[0].group}: validation loss (dotted: training)", "updates", loss, [*train, *valid])]
    if any(series.points for series in differences):
        title, difference = "difference from stock: below 0 is better", "validation loss − stock's (bits per subword)"
        shown.append(Panel(title, "updates", difference, differences, zero=True))
    return panels(shown, columns=2, size=(5.5, 3.4))


def _lines(shown: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]], key: str = "points") -> list[Series]:
    """Returns each entry's means with a band, if it has one; an arm looks the same in all pictures of `entries`."""
    looks = {arm: look(number) for number, arm in enumerate(dict.fromkeys(entry["arm"] for entry in entries))}
    return [
        Series(
            entry["arm"],
            [(x, mean) for x, mean, _, _ in entry[key]],
            band=[(x, low, high) for x, _, low, high in entry[key] if low is not None and entry.get("seeds") != 1],
            **looks[entry["arm"]],
        )
        for entry in shown
    ]


def curves(entries: Sequence[dict[str, Any]], baseline: str) -> Figure:
    """Returns every arm's mean validation loss, and its difference from the baseline, with intervals."""
    series = {key: _lines(entries, entries, key) for key in ("points", "differences")}
    # Early differences are ten times as large as the final ones, which matter more.
    ends = [entry["differences"][-1][1:] for entry in entries if entry["differences"]]
    limit = 3 * max((abs(value) for end in ends for value in end if value is not None), default=0) or None
    loss = "validation loss, with label smoothing if any (nats)"
    difference = f"validation loss − that of {baseline} (nats)"
    shown = [
        Panel("", "updates", loss, series["points"]),
        Panel("", "updates", difference, series["differences"], zero=True, limit=limit),
    ]
    return panels(shown, columns=2, size=(4.6, 3.4))


def lambdas(entries: Sequence[dict[str, Any]]) -> Figure:
    """Returns λ over training, averaged over seeds: a row for each arm, a column for each site, a line for each layer.

    λ⁺ is solid and blue, λ⁻ dashed and orange, both paler in the first layers.
    """
    palettes = {"plus": ("λ⁺", colormaps["Blues"], 0), "minus": ("λ⁻", colormaps["Oranges"], 1)}
    sites = list(dict.fromkeys(entry["site"] for entry in entries))
    last = max(entry["layer"] for entry in entries)
    shown: dict[tuple[str, str], list[Series]] = {}
    for entry in entries:
        site, layer, sign = entry["site"], entry["layer"], entry["sign"]
        name, palette, dash = palettes.get(sign, ("λ", colormaps["Greys"], 2))
        label = f"{name}, layers 0 (pale) to {last}" if layer == last else ""
        colour = to_hex(palette(0.4 + 0.55 * layer / max(1, last)))
        series = Series(label, entry["points"], colour=colour, dash=dash, marker="")
        shown.setdefault((entry["arm"], site), []).append(series)
    arms = dict.fromkeys(entry["arm"] for entry in entries)
    grid = [
        Panel(f"{arm}\n{site}", "updates", "λ", shown[arm, site], zero=True) if (arm, site) in shown else None
        for arm in arms
        for site in sites
    ]
    return panels(grid, columns=len(sites))


def layers(title: str, entries: Sequence[dict[str, Any]]) -> Figure:
    """Returns measures by layer: a panel for each measure and site, a line for each arm."""
    shown = []
    for metric, site in dict.fromkeys((entry["metric"], entry["site"]) for entry in entries):
        series = _lines([entry for entry in entries if (entry["metric"], entry["site"]) == (metric, site)], entries)
        titles, logarithmic = _two_lines(metric, site), describe(metric).logarithmic
        shown.append(Panel(titles, "layer", series=series, logarithmic=logarithmic, names=drawing.LAYER_NAMES))
    return panels(shown, columns=2 if len(shown) < 5 else 3, heading=title, note=BAND)


def correlation(title: str, entries: Sequence[dict[str, Any]]) -> Figure:
    """Returns each collapse measure of the last layer against the validation loss, a point for each run."""
    arms = list(dict.fromkeys(arm for entry in entries for _, _, arm in entry["points"]))
    shown = [
        Panel(
            _two_lines(entry["metric"], entry["site"]),
            f"last layer; ρ {'–' if entry['rho'] is None else format(entry['rho'], '.2f')}",
            "validation nll (nats)",
            [
                Series(arm, points, dash=None, **look(number))
                for number, arm in enumerate(arms)
                if (points := [(x, y) for x, y, name in entry["points"] if name == arm])
            ],
        )
        for entry in entries
    ]
    return panels(shown, columns=3, heading=title, note="A point is a run.")


def _two_lines(metric: str, site: str) -> str:
    """Returns a panel's title."""
    return f"{metric.replace('_', ' ')}\n{site}"


def forest(table: dict[str, Any], baseline: str, differences: dict[str, str]) -> Figure:
    """Returns every arm's difference from the baseline with its interval, the best arm first.

    `differences` are the differences as text. An arm with too few seeds for a verdict is drawn without an interval,
    which with two seeds would dwarf all others.
    """
    effects = []
    for row in table["rows"]:
        if not row.get("difference"):
            continue
        interval, verdict = row["difference"]["interval"], row["difference"]["verdict"]
        edges = None if verdict == "too few seeds" else (interval["low"], interval["high"])
        text = f"{differences[row['arm']].replace('-', '−')} {verdict}"
        colour = drawing.VERDICTS.get(verdict, drawing.OTHER)
        effects.append(drawing.Effect(f"{row['arm']} ({interval['n']})", interval["mean"], edges, text, colour))
    unit = "" if table["unit"] in table["quantity"] else f" ({table['unit']})"
    return drawing.forest(
        effects,
        f"{table['group']}: difference from {baseline} in {table['quantity']}{unit}",
        "Seeds in brackets; line: 95 % interval; hollow: too few seeds; "
        f"grey: ±δ = ±{table['delta']:g} {table['unit']}",
        sides=("better", "worse") if table["lower_is_better"] else ("worse", "better"),
        lowest_first=table["lower_is_better"],
        delta=table["delta"],
    )
