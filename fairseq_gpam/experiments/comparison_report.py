"""Writes a comparison as JSON, CSV, Markdown and one HTML page; all but the JSON are made from the JSON alone."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from fairseq_gpam.experiments import comparison_plots, forest, templates
from fairseq_gpam.recipes import recorded

COST_HEAD = ("parameters", "training (s)", "peak memory (MiB)", "training tokens/s", "decoding tokens/s")


def write(found: dict[str, Any], out: Path) -> Path:
    """Writes comparison.json, .csv, .md and .html into `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    recorded.write_atomically(out / "comparison.json", text)
    # As it comes back from the file: lists for tuples, so that a page made from the file alone is the same.
    found = json.loads(text)
    recorded.write_atomically(out / "comparison.csv", as_csv(found))
    recorded.write_atomically(out / "comparison.md", as_markdown(found))
    recorded.write_atomically(out / "comparison.html", as_html(found))
    return out / "comparison.html"


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number as it is shown, – for what was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(shown: dict[str, Any], digits: int, sign: str = "") -> str:
    """Returns a mean with half of its interval."""
    if shown["low"] is None:
        return f"{shown['mean']:{sign}.{digits}f}"
    return f"{shown['mean']:{sign}.{digits}f} ± {(shown['high'] - shown['low']) / 2:.{digits}f}"


def head(table: dict[str, Any]) -> tuple[str, ...]:
    """Returns the headings of a table's columns."""
    unit = table["unit"]
    tests = ("p (t)", "p (sign flips, exact)", "p (Holm)", "verdict", f"seeds for δ = {table['delta']:g}")
    return ("arm", "parameters", "seeds", f"mean ± 95 % ({unit})", f"difference ± 95 % ({unit})", *tests)


def cells(table: dict[str, Any]) -> list[list[str]]:
    """Returns a table's rows as they are shown."""
    digits = 4 if table["unit"] == "nats" else 2
    rows = []
    for row in table["rows"]:
        line = [row["arm"], _cost(row["parameters"]), str(row["n"]), spread(row, digits)]
        one = row.get("difference")
        if one is None:
            rows.append([*line, *["–"] * 4, "baseline" if row is table["rows"][0] else "no common seed", "–"])
            continue
        powerless, found = one["verdict"] == "powerless", one["interval"]
        line += [spread(found, digits, "+"), number(one["p_t"]), number(one["p_sign_flip"])]
        line += [number(one["p_holm"]), "powerless (too few seeds)" if powerless else one["verdict"]]
        seeds = "–" if powerless or not found["sd"] else str(row["seeds_for_delta"] or "over 10,000")
        rows.append([*line, seeds])
    return rows


def noise_floor(table: dict[str, Any]) -> str:
    """Returns the sentence about the spread of the baseline's seeds."""
    noise, digits = table["noise"], 4 if table["unit"] == "nats" else 2
    return (
        f"Noise floor: over {noise['n']} seeds the baseline's standard deviation is {number(noise['sd'], digits)}, "
        f"its range {number(noise['range'], digits)} {table['unit']}. δ = {table['delta']:g} {table['unit']}."
    )


def cost_cells(found: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of costs."""
    return [
        [entry["group"], entry["arm"], *(_cost(value) for key, value in entry.items() if key not in ("group", "arm"))]
        for entry in found["costs"]
    ]


def _cost(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f}"


def as_markdown(found: dict[str, Any]) -> str:
    """Returns the tables as Markdown."""
    parts = [f"# Comparison with {found['baseline']}\n"]
    for table in found["tables"]:
        parts += [f"## {table['group']}: {table['quantity']} ({table['unit']})\n", grid(head(table), cells(table))]
        parts.append(noise_floor(table) + "\n")
    parts += ["## Costs\n", grid(("task", "arm", *COST_HEAD), cost_cells(found))]
    parts.append("Medians over the runs. Times and speeds count only if nothing else ran on the machine.\n")
    if found["bootstrap"]:
        parts += ["## sacreBLEU's paired bootstrap, seed by seed\n", grid(BOOTSTRAP_HEAD, bootstrap_cells(found))]
    if found["collapse"]:
        parts += ["## Collapse against performance\n", grid(COLLAPSE_HEAD, collapse_cells(found))]
    return "\n".join(parts)


BOOTSTRAP_HEAD = ("task", "arm", "seed", "metric", "score", "p")
COLLAPSE_HEAD = ("task", "measure", "runs", "Spearman's ρ", "95 % low", "95 % high")


def bootstrap_cells(found: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of sacreBLEU's bootstrap."""
    return [
        [one["group"], one["arm"], str(one["seed"]), one["metric"], number(one["score"], 2), number(one["p"])]
        for one in found["bootstrap"]
    ]


def collapse_cells(found: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of correlations."""
    return [
        [one["group"], one["measure"], str(one["n"]), *(number(one[key], 2) for key in ("rho", "low", "high"))]
        for one in found["collapse"]
    ]


def grid(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Returns a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(found: dict[str, Any]) -> str:
    """Returns a line for each arm and quantity, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    own = ("arm", "n", "mean", "sd", "low", "high")
    of_interval, of_difference = ("n", "mean", "sd", "low", "high"), ("p_t", "p_sign_flip", "p_holm", "verdict")
    writer.writerow(["group", "quantity", "unit", *own, *(f"difference_{key}" for key in of_interval), *of_difference])
    for table in found["tables"]:
        for row in table["rows"]:
            one = row.get("difference") or {"interval": {}}
            line = [table["group"], table["quantity"], table["unit"], *(row[key] for key in own)]
            writer.writerow(
                [*line, *(one["interval"].get(key) for key in of_interval), *(one.get(key) for key in of_difference)]
            )
    return out.getvalue()


def picture(svg: str, alt: str) -> dict[str, str]:
    """Returns a picture for the page, inside the page."""
    return {"alt": alt, "data": "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")}


def forest_plot(table: dict[str, Any], baseline: str) -> str:
    """Returns a table's forest plot as SVG."""
    digits = 4 if table["unit"] == "nats" else 2
    compared = [row for row in table["rows"] if row.get("difference")]
    return forest.draw(
        table, baseline, {row["arm"]: spread(row["difference"]["interval"], digits, "+") for row in compared}
    )


def forest_words(table: dict[str, Any], baseline: str) -> str:
    """Returns what a table's forest plot shows, in words."""
    words = "; ".join(f"{row[0]} {row[4]} ({row[8]})" for row in cells(table)[1:])
    what = f"{table['group']}, {table['quantity']}: difference to {baseline} with 95 % interval"
    return f"{what} ({table['unit']}): {words}."


def pictures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the headings and pictures that follow the tables."""
    shown = []
    groups = list(dict.fromkeys(entry["group"] for entry in found["costs"]))
    for group in groups:
        own = [entry for entry in found["curves"] if entry["group"] == group and entry["points"]]
        if own:
            ends = "; ".join(f"{entry['arm']} ends at {entry['points'][-1][1]:.3f}" for entry in own)
            alt = f"Mean validation loss (base 2) over updates. {ends}."
            shown.append({"title": f"{group}: learning curves", **picture(comparison_plots.curves(own), alt)})
        own = [entry for entry in found["lambdas"] if entry["group"] == group]
        if own:
            ends = "; ".join(f"{e['arm']} seed {e['seed']} {e['name']} {e['points'][-1][1]:.3f}" for e in own[:12])
            alt = f"λ over updates. Last values: {ends}."
            shown.append({"title": f"{group}: λ over training", **picture(comparison_plots.lambdas(own), alt)})
    for entry in found["collapse"]:
        alt = f"{entry['measure']} against validation loss, {entry['n']} runs, Spearman's ρ {number(entry['rho'], 2)}."
        title = f"{entry['group']}: {entry['measure']} against performance"
        shown.append({"title": title, **picture(comparison_plots.scatter(entry), alt)})
    return shown


def as_html(found: dict[str, Any]) -> str:
    """Returns the page."""
    tables: list[dict[str, Any]] = []
    for table in found["tables"]:
        rows = cells(table)
        plot = None
        if any(row.get("difference") for row in table["rows"]):
            baseline = found["baseline"]
            plot = picture(forest_plot(table, baseline), forest_words(table, baseline))
        title = f"{table['group']}: {table['quantity']} ({table['unit']})"
        tables.append({"title": title, "head": head(table), "rows": rows, "note": noise_floor(table), "forest": plot})
    note = "Medians over the runs. Times and speeds count only if nothing else ran on the machine."
    tables.append({"title": "Costs", "head": ("task", "arm", *COST_HEAD), "rows": cost_cells(found), "note": note})
    if found["bootstrap"]:
        title, note = "sacreBLEU's paired bootstrap, seed by seed", "p of each seed's pair alone, not corrected."
        tables.append({"title": title, "head": BOOTSTRAP_HEAD, "rows": bootstrap_cells(found), "note": note})
    if found["collapse"]:
        title = "Collapse against performance"
        note = "Against the validation loss: a negative ρ says that more of the measure goes with lower loss. The "
        note += "bootstrap draws whole arms."
        tables.append({"title": title, "head": COLLAPSE_HEAD, "rows": collapse_cells(found), "note": note})
    return templates.render("comparison.html.j2", baseline=found["baseline"], tables=tables, pictures=pictures(found))
