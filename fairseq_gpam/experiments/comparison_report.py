"""Writes a comparison as JSON, CSV, Markdown and one HTML page; all but the JSON are made from the JSON alone."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from fairseq_gpam.experiments import comparison_plots
from fairseq_gpam.recipes import recorded

HEAD = ("arm", "seeds", "mean ± 95 %", "difference to baseline", "p (t)", "p (sign flips)", "p (Holm)", "verdict")
SEEDS = ("seeds for δ", "seeds for the observed difference")
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


def cells(table: dict[str, Any]) -> list[list[str]]:
    """Returns a table's rows as they are shown."""
    digits = 4 if table["unit"] == "nats" else 2
    rows = []
    for row in table["rows"]:
        line = [row["arm"], str(row["n"]), spread(row, digits)]
        one = row.get("difference")
        if one is None:
            rows.append([*line, *["–"] * 4, "baseline", "–", "–"])
            continue
        line += [spread(one["interval"], digits, "+"), number(one["p_t"]), number(one["p_sign_flip"])]
        line += [number(one["p_holm"]), one["verdict"]]
        for key in ("seeds_for_delta", "seeds_for_observed"):
            measured = one["interval"]["sd"] is not None
            line.append("–" if not measured else str(row[key]) if row[key] else "over 10,000")
        rows.append(line)
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
        parts += [f"## {table['group']}: {table['quantity']} ({table['unit']})\n", _grid((*HEAD, *SEEDS), cells(table))]
        parts.append(noise_floor(table) + "\n")
    parts += ["## Costs\n", _grid(("task", "arm", *COST_HEAD), cost_cells(found))]
    parts.append("Medians over the runs. Times and speeds count only if nothing else ran on the machine.\n")
    if found["bootstrap"]:
        parts += ["## sacreBLEU's paired bootstrap, seed by seed\n", _grid(BOOTSTRAP_HEAD, bootstrap_cells(found))]
    if found["collapse"]:
        parts += ["## Collapse against performance\n", _grid(COLLAPSE_HEAD, collapse_cells(found))]
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


def _grid(head: tuple[str, ...], rows: list[list[str]]) -> str:
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
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairseq_gpam.experiments", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables: list[dict[str, Any]] = []
    for table in found["tables"]:
        rows = cells(table)
        forest = None
        if len(rows) > 1:
            words = "; ".join(f"{row[0]} {row[3]} ({row[7]})" for row in rows[1:])
            alt = f"Difference to {found['baseline']} with 95 % interval: {words}."
            forest = picture(comparison_plots.forest(table), alt)
        title = f"{table['group']}: {table['quantity']} ({table['unit']})"
        tables.append(
            {"title": title, "head": (*HEAD, *SEEDS), "rows": rows, "note": noise_floor(table), "forest": forest}
        )
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
    page = environment.get_template("comparison.html.j2")
    return page.render(baseline=found["baseline"], tables=tables, pictures=pictures(found)) + "\n"
