"""Writes a comparison as JSON, and from that JSON alone as CSV, Markdown and one HTML page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fairseq_gpam.analysis import embed
from fairseq_gpam.lab.experiments import collapse_report, plots, run_results, templates
from fairseq_gpam.lab.recipes import stage_results

COST_HEAD = ("task", "arm", *(label for _, label, _ in run_results.COSTS))


def write(found: dict[str, Any], out: Path) -> Path:
    """Writes comparison.json, .csv, .md and .html into `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    stage_results.write_atomically(out / "comparison.json", text)
    # Reparsed, so that tuples become lists and a page made from the file alone is identical.
    found = json.loads(text)
    stage_results.write_atomically(out / "comparison.csv", as_csv(found))
    stage_results.write_atomically(out / "comparison.md", as_markdown(found))
    stage_results.write_atomically(out / "comparison.html", as_html(found))
    return out / "comparison.html"


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number as text, – if it was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(shown: dict[str, Any], digits: int, sign: str = "") -> str:
    """Returns a mean ± half the width of its interval, as text."""
    if shown["low"] is None:
        return f"{shown['mean']:{sign}.{digits}f}"
    return f"{shown['mean']:{sign}.{digits}f} ± {(shown['high'] - shown['low']) / 2:.{digits}f}"


def caption(table: dict[str, Any]) -> str:
    """Returns a table's caption: what it compares, the unit, and whether higher or lower is better."""
    unit = "" if table["unit"] in table["quantity"] else f"{table['unit']}, "
    better = "lower" if table["lower_is_better"] else "higher"
    return f"{table['group']}: {table['quantity']} ({unit}{better} is better)"


def head(table: dict[str, Any]) -> tuple[str, ...]:
    """Returns the headings of a table's columns."""
    measured = (f"mean ± 95 % ({table['unit']})", f"difference ± 95 % ({table['unit']})", "verdict")
    tests = ("p (Holm)", "p (t)", "p (sign flips)", f"seeds for δ = {table['delta']:g}")
    return ("arm", "seeds", *measured, *tests, "parameters")


def cells(table: dict[str, Any]) -> list[list[str]]:
    """Returns a table's rows as text."""
    digits = 4 if table["unit"] == "nats" else 2
    rows = []
    for row in table["rows"]:
        one = row.get("difference")
        seeds = str(row["n"]) + (f", {one['interval']['n']} pairs" if one and one["interval"]["n"] != row["n"] else "")
        line, parameters = [row["arm"], seeds, spread(row, digits)], cost(row["parameters"])
        if one is None:
            verdict = "baseline" if row is table["rows"][0] else "no common seed"
            rows.append([*line, "–", verdict, *["–"] * 4, parameters])
            continue
        found = one["interval"]
        if one["verdict"] == "too few seeds":
            # The p value is left out if the arm gets no verdict; the CSV and the JSON have it.
            tests = ["too few seeds", *["–"] * 4]
        else:
            needed = str(row["seeds_for_delta"] or "over 10,000") if found["sd"] else "–"
            tests = [one["verdict"], *(number(one[key]) for key in ("p_holm", "p_t", "p_sign_flip")), needed]
        rows.append([*line, spread(found, digits, "+"), *tests, parameters])
    return rows


def table_note(table: dict[str, Any]) -> str:
    """Returns the sentences about the baseline's spread, the correction, and runs that diverged or are not alike."""
    noise, unit, digits = table["noise"], table["unit"], 4 if table["unit"] == "nats" else 2
    tests = table["tests"]
    rule = f"δ = {table['delta']:g} {unit}. Holm's correction is over {tests} arm{'s' if tests != 1 else ''}."
    if table["diverged"]:
        rule += f" Diverged and not counted: {'; '.join(f'{arm} seed {seed}' for arm, seed in table['diverged'])}."
    if table["decoded_otherwise"]:
        rule += f" Decoded otherwise than the first run of the table: {'. '.join(table['decoded_otherwise'])}."
    if noise["sd"] is None:
        return f"Noise floor: not known, the baseline has one seed. {rule}"
    return (
        f"Noise floor: over {noise['n']} seeds the baseline's standard deviation is {number(noise['sd'], digits)}, "
        f"its range {number(noise['range'], digits)} {unit}. {rule}"
    )


def remarks(found: dict[str, Any], group: str) -> str:
    """Returns the sentences about what was planned and is not there in a group."""
    return " ".join(entry["text"] for entry in found["remarks"] if entry["group"] == group)


def without_table(found: dict[str, Any]) -> list[str]:
    """Returns the groups of which there are only remarks."""
    shown = {table["group"] for table in found["tables"]}
    return [group for group in dict.fromkeys(entry["group"] for entry in found["remarks"]) if group not in shown]


def cost_cells(found: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of costs."""
    return [
        [entry["group"], entry["arm"], *(cost(value) for key, value in entry.items() if key not in ("group", "arm"))]
        for entry in found["costs"]
    ]


def cost(value: float | None) -> str:
    """Returns a cost as text."""
    return "not measured" if value is None else f"{value:,.0f}"


def as_markdown(found: dict[str, Any]) -> str:
    """Returns the tables as Markdown."""
    parts = [f"# Comparison with {found['baseline']}\n"]
    for table in found["tables"]:
        parts += [f"## {caption(table)}\n", markdown_table(head(table), cells(table))]
        parts.append(f"{table_note(table)} {remarks(found, table['group'])}".rstrip() + "\n")
    for group in without_table(found):
        parts += [f"## {group}\n", remarks(found, group) + "\n"]
    parts += ["## Costs\n", markdown_table(COST_HEAD, cost_cells(found))]
    parts.append("Medians over the runs. Times and speeds count only if nothing else ran on the machine.\n")
    for title, own in by_group(found, "lambdas", "λ at the end"):
        parts += [f"## {title}\n", markdown_table(*lambda_table(own)), LAMBDA_NOTE + "\n"]
    if found["bootstrap"]:
        parts += [
            "## sacreBLEU's paired bootstrap, seed by seed\n",
            markdown_table(BOOTSTRAP_HEAD, bootstrap_cells(found)),
        ]
        parts.append(bootstrap_note(found) + "\n")
    for title, own in by_group(found, "layers", LAYERS):
        parts += [
            f"## {title}\n",
            markdown_table(*collapse_report.layers(own)),
            collapse_report.layers_note(own) + "\n",
        ]
    if found["collapse"]:
        parts += ["## Collapse against performance\n", markdown_table(*collapse_report.correlations(found["collapse"]))]
        parts.append(collapse_report.NOTE + "\n")
    return "\n".join(parts)


BOOTSTRAP_HEAD = ("task", "arm", "seed", "metric", "score", "p")
LAYERS, COLLAPSE = "measures of collapse by layer", "collapse against performance"
SIGNS = {"plus": "λ⁺", "minus": "λ⁻", "": "λ"}
LAMBDA_NOTE = "The mean over seeds and layers of the last λ that was logged, and the range of the layers."


def bootstrap_note(found: dict[str, Any]) -> str:
    """Returns a note on the meaning of the bootstrap's p values, and sacreBLEU's signatures."""
    signatures = ", ".join(dict.fromkeys(f"{one['metric']} {one['signature']}" for one in found["bootstrap"]))
    return (
        "A small p says that the two trained models differ on test sets like this one, not that their arms do: another "
        f"seed may reverse it. Not corrected. {signatures}"
    )


def bootstrap_cells(found: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table of sacreBLEU's bootstrap."""
    return [
        [one["group"], one["arm"], str(one["seed"]), one["metric"], number(one["score"], 2), number(one["p"])]
        for one in found["bootstrap"]
    ]


def by_group(found: dict[str, Any], key: str, what: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns the entries under `key` for each task and learning rate that has any, with a title that names `what`."""
    groups = dict.fromkeys(entry["group"] for entry in found[key])
    return [(f"{group}: {what}", [entry for entry in found[key] if entry["group"] == group]) for group in groups]


def lambda_table(entries: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Returns header and rows of the table of each arm's last λ: mean over seeds and layers, and range over layers."""
    places = {entry["name"]: run_results.place_of(entry["name"]) for entry in entries}
    columns = list(dict.fromkeys((site, sign) for site, _, sign in places.values()))
    rows = []
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        cells = []
        for site, sign in columns:
            last = [
                entry["last"] for entry in entries if entry["arm"] == arm and places[entry["name"]][::2] == (site, sign)
            ]
            mean = sum(last) / len(last) if last else None
            cells.append("–" if mean is None else f"{mean:.2f} ({min(last):.2f} to {max(last):.2f})")
        rows.append([arm, *cells])
    return ("arm", *(f"{SIGNS[sign]} {site}" for site, sign in columns)), rows


def markdown_table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Returns a table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(found: dict[str, Any]) -> str:
    """Returns CSV with a line for each arm and quantity, numbers unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    own = ("arm", "parameters", "n", "mean", "sd", "low", "high")
    of_interval, of_difference = ("n", "mean", "sd", "low", "high"), ("p_t", "p_sign_flip", "p_holm", "verdict")
    differences = (*(f"difference_{key}" for key in of_interval), *of_difference)
    writer.writerow(["group", "quantity", "unit", *own, *differences, "seeds_for_delta", "delta", "tests"])
    for table in found["tables"]:
        for row in table["rows"]:
            one = row.get("difference") or {"interval": {}}
            line = [table["group"], table["quantity"], table["unit"], *(row[key] for key in own)]
            tested = (*(one["interval"].get(key) for key in of_interval), *(one.get(key) for key in of_difference))
            writer.writerow([*line, *tested, row.get("seeds_for_delta"), table["delta"], table["tests"]])
    return out.getvalue()


def forest_plot(table: dict[str, Any], baseline: str) -> Figure:
    """Returns a table's forest plot."""
    digits = 4 if table["unit"] == "nats" else 2
    compared = [row for row in table["rows"] if row.get("difference")]
    texts = {row["arm"]: spread(row["difference"]["interval"], digits, "+") for row in compared}
    return plots.forest(table, baseline, texts)


def forest_words(table: dict[str, Any], baseline: str) -> str:
    """Returns a description of a table's forest plot."""
    words = "; ".join(f"{row[0]} {row[3]}, {row[4]}" for row in cells(table)[1:])
    what = f"{table['group']}, {table['quantity']}: difference to {baseline} with 95 % interval"
    return f"{what} ({table['unit']}): {words}."


def pictures(found: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the headings and pictures that follow the tables."""
    shown: list[dict[str, str]] = []

    def add(title: str, figure: Figure, words: str) -> None:
        shown.append({"title": title, "figure": embed.html_figure(figure, f"picture{len(shown)}", words)})

    for group in dict.fromkeys(entry["group"] for entry in found["costs"]):
        curves = [entry for entry in found["curves"] if entry["group"] == group and entry["points"]]
        if curves:
            ends = "; ".join(f"{entry['arm']} ends at {entry['points'][-1][1]:.3f}" for entry in curves)
            what = "Mean validation loss in nats, with label smoothing if any,"
            words = f"{what} over updates, and its difference to {found['baseline']}. {ends}."
            add(f"{group}: learning curves", plots.curves(curves, found["baseline"]), words)
        lambdas = [entry for entry in found["lambdas"] if entry["group"] == group]
        # Kept runs have only the last value of each λ.
        if any(len(entry["points"]) > 1 for entry in lambdas):
            ends = "; ".join(f"{arm} {_lambda_range(lambdas, arm)}" for arm in dict.fromkeys(e["arm"] for e in lambdas))
            words = f"λ over updates, the mean over seeds. Last values: {ends}."
            add(f"{group}: λ over training", plots.lambdas(lambdas), words)
    for title, entries in by_group(found, "layers", LAYERS):
        add(title, plots.layers(title, entries), collapse_report.layers_words(title, entries))
    for title, entries in by_group(found, "collapse", COLLAPSE):
        add(title, plots.correlation(title, entries), collapse_report.correlation_words(title, entries))
    return shown


def _lambda_range(entries: list[dict[str, Any]], arm: str) -> str:
    last = [entry["last"] for entry in entries if entry["arm"] == arm]
    return f"from {min(last):.2f} to {max(last):.2f}"


def as_html(found: dict[str, Any]) -> str:
    """Returns the page."""
    tables: list[dict[str, Any]] = []
    for table in found["tables"]:
        rows = cells(table)
        plot = None
        if any(row.get("difference") for row in table["rows"]):
            baseline = found["baseline"]
            words = forest_words(table, baseline)
            plot = embed.html_figure(forest_plot(table, baseline), f"forest{len(tables)}", words)
        title = caption(table)
        text = f"{table_note(table)} {remarks(found, table['group'])}".rstrip()
        tables.append({"title": title, "head": head(table), "rows": rows, "note": text, "forest": plot})
    for group in without_table(found):
        tables.append({"title": group, "head": (), "rows": [], "note": remarks(found, group)})
    note = "Medians over the runs. Times and speeds count only if nothing else ran on the machine."
    tables.append({"title": "Costs", "head": COST_HEAD, "rows": cost_cells(found), "note": note})
    for title, own in by_group(found, "lambdas", "λ at the end"):
        columns, rows = lambda_table(own)
        tables.append({"title": title, "head": columns, "rows": rows, "note": LAMBDA_NOTE})
    if found["bootstrap"]:
        title, note = "sacreBLEU's paired bootstrap, seed by seed", bootstrap_note(found)
        tables.append({"title": title, "head": BOOTSTRAP_HEAD, "rows": bootstrap_cells(found), "note": note})
    for title, own in by_group(found, "layers", LAYERS):
        columns, rows = collapse_report.layers(own)
        tables.append({"title": title, "head": columns, "rows": rows, "note": collapse_report.layers_note(own)})
    if found["collapse"]:
        columns, rows = collapse_report.correlations(found["collapse"])
        title, note = "Collapse against performance", collapse_report.NOTE
        tables.append({"title": title, "head": columns, "rows": rows, "note": note})
    shown = {"tables": tables, "pictures": pictures(found), "css": embed.CSS}
    return templates.render("comparison.html.j2", baseline=found["baseline"], **shown)
