"""Rebuilds the tables of docs/speed.md from the benchmark's JSON files: `python scripts/upkeep/speed.py`."""

import json
import re
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.experiments.sections import markdown_table

Row = dict[str, Any]

_MARKED = re.compile(r"(<!-- benchmark: (\w+) ([\w./-]+\.json) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def rebuilt(page: str, repository: Path) -> str:
    """Returns the page with every table between `<!-- benchmark: TABLE FILE -->` markers rebuilt from FILE."""

    def fresh(match: re.Match[str]) -> str:
        measured = json.loads((repository / match[3]).read_text(encoding="utf-8"))
        return f"{match[1]}\n{TABLES[match[2]](measured)}\n\n{match[4]}"

    return _MARKED.sub(fresh, page)


def _quartiles(row: Row) -> str:
    return f"{row['median']:.3f} ({row['lower']:.3f}–{row['upper']:.3f})"


def launches(measured: Row) -> str:
    """Returns a table of how many kernels an attention launches on a GPU, forward and backward."""
    rows = [[row["attention"], str(row["forward"]), str(row["backward"])] for row in measured["launches"]]
    return markdown_table(["attention", "forward", "backward"], rows)


def memory(measured: Row) -> str:
    """Returns a table of peak memory in MiB by length, and the exponent with which it grows."""
    lengths = measured["memory"][0]["lengths"]
    rows = []
    for row in measured["memory"]:
        name = row["what"] + (f", attention dropout {row['dropout']:g}" if row["dropout"] else "")
        cells = [f"{value:,.0f}" for value in row["mebibytes"]]
        rows.append([name, *cells, *["not run"] * (len(lengths) - len(cells)), f"T^{row['exponent']:.2f}"])
    return markdown_table(["tokens", *(f"{length:,}" for length in lengths), "grows as"], rows)


def growth(measured: Row) -> str:
    """Returns a table of a decoding step's time, relative to the first length, and of the cache's size in KiB."""
    first, *lengths = measured["growth"][0]["lengths"]
    rows = []
    for row in measured["growth"]:
        kept = " → ".join(f"{size / 1024:,.0f}" for size in row["bytes"])
        rows.append([f"`{row['spec']}`", *map(_quartiles, row["ratios"]), kept])
    head = [f"time after {length:,} / after {first:,}" for length in lengths]
    return markdown_table(["mechanism", *head, "KiB kept"], rows)


TABLES = {"launches": launches, "memory": memory, "growth": growth}


if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    speed_page = repository / "docs/speed.md"
    speed_page.write_text(rebuilt(speed_page.read_text(encoding="utf-8"), repository), encoding="utf-8")
