"""Writes a comparison as JSON, and from that JSON alone as CSV, Markdown and one HTML page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from fairseq_gpam.analysis import embed
from fairseq_gpam.lab.experiments import sections
from fairseq_gpam.lab.recipes import stage_results


def write(comparison: dict[str, Any], out: Path) -> Path:
    """Writes comparison.json, .csv, .md and .html into `out`; returns the page."""
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Reparsed, so that tuples become lists and a page made from the file alone is identical.
    comparison = json.loads(text)
    shown = sections.of_comparison(comparison)
    files = {"json": text, "csv": as_csv(comparison), "md": as_markdown(comparison["baseline"], shown)}
    files["html"] = as_html(comparison["baseline"], shown)
    # Nothing is written of a comparison that cannot be shown.
    out.mkdir(parents=True, exist_ok=True)
    for ending, content in files.items():
        stage_results.write_atomically(out / f"comparison.{ending}", content)
    return out / "comparison.html"


def as_markdown(baseline: str, shown: list[sections.Section]) -> str:
    """Returns the sections that say something in words."""
    parts = [f"# Comparison with {baseline}"]
    for section in shown:
        if section.note:
            table = [sections.markdown_table(section.head, section.rows)] if section.head else []
            parts += [f"## {section.title}", *table, section.note]
    return "\n\n".join(parts) + "\n"


def as_html(baseline: str, shown: list[sections.Section]) -> str:
    """Returns the page."""
    figures = [
        embed.html_figure(section.picture.draw(), f"picture{number}", section.picture.words) if section.picture else ""
        for number, section in enumerate(shown)
    ]
    values = {
        "title": f"Comparison with {baseline}",
        "baseline": baseline,
        "sections": list(zip(shown, figures, strict=True)),
    }
    return embed.render("fairseq_gpam.lab.experiments", "comparison.html.j2", **values)


def as_csv(comparison: dict[str, Any]) -> str:
    """Returns CSV with a line for each arm and quantity, numbers unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    of_arm = ("arm", "parameters", "n", "mean", "sd", "low", "high")
    of_interval, of_difference = ("n", "mean", "sd", "low", "high"), ("p_t", "p_sign_flip", "p_holm", "verdict")
    differences = (*(f"difference_{key}" for key in of_interval), *of_difference)
    writer.writerow(["group", "quantity", "unit", *of_arm, *differences, "seeds_for_delta", "delta", "tests"])
    for table in comparison["tables"]:
        for row in table["rows"]:
            difference = row.get("difference") or {"interval": {}}
            tested = [difference["interval"].get(key) for key in of_interval]
            tested += [difference.get(key) for key in of_difference]
            line = [table["group"], table["quantity"], table["unit"], *(row[key] for key in of_arm)]
            writer.writerow([*line, *tested, row.get("seeds_for_delta"), table["delta"], table["tests"]])
    return out.getvalue()
