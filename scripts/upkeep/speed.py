"""Rebuilds the tables of docs/speed.md from the benchmark's JSON files: `python scripts/upkeep/speed.py`."""

import json
import re
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.benchmark.shapes import SHAPES

Row = dict[str, Any]

_MARKED = re.compile(r"(<!-- benchmark: (\w+) ([\w./-]+\.json) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def rebuilt(page: str, repository: Path) -> str:
    """Returns the page with every table between `<!-- benchmark: TABLE FILE -->` markers rebuilt from FILE."""

    def fresh(match: re.Match[str]) -> str:
        measured = json.loads((repository / match[3]).read_text(encoding="utf-8"))
        return f"{match[1]}\n{TABLES[match[2]](measured)}\n\n{match[4]}"

    return _MARKED.sub(fresh, page)


def _place(name: str, kind: str) -> str:
    shape = SHAPES[name]
    tokens = f"{shape.batch} × {shape.length} tokens" if shape.batch > 1 else f"{shape.length:,} tokens"
    if shape.kinds == ("lm",):
        return f"language model ({tokens})"
    return f"{name.upper()} {kind} ({tokens}, width {shape.width}, {shape.heads} heads)"


def _label(row: Row) -> str:
    place = _place(row["shape"], row["kind"] if row["level"] in ("layer", "decoding") else "model")
    dropout = f", attention dropout {row['dropout']:g}" if row["dropout"] else ""
    return f"{row['level']}, {place}, {row['mode']}{dropout}"


def _grouped(measured: Row) -> dict[str, dict[tuple[str, str], Row]]:
    """Returns the rows of each case, in order, by mechanism and backend."""
    cases: dict[str, dict[tuple[str, str], Row]] = {}
    for row in measured["ratios"]:
        cases.setdefault(_label(row), {})[row["mechanism"], row["backend"]] = row
    return cases


def _quartiles(row: Row | None) -> str:
    return "not run" if row is None else f"{row['median']:.3f} ({row['lower']:.3f}–{row['upper']:.3f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ratios(measured: Row) -> str:
    """Returns a table of daGPAM's times relative to this package's softmax attention, and of both relative to stock."""
    rows = []
    for label, by_mechanism in _grouped(measured).items():
        softmax, dagpam = by_mechanism.get(("softmax", "auto")), by_mechanism.get(("dagpam", "auto"))
        quotient = "not run" if softmax is None or dagpam is None else f"{dagpam['median'] / softmax['median']:.2f}"
        rows.append([label, quotient, _quartiles(softmax), _quartiles(dagpam)])
    return _table(["case", "daGPAM / softmax", "softmax / stock", "daGPAM / stock"], rows)


def launches(measured: Row) -> str:
    """Returns a table of how many kernels an attention launches on a GPU, forward and backward."""
    rows = [[row["attention"], str(row["forward"]), str(row["backward"])] for row in measured["launches"]]
    return _table(["attention", "forward", "backward"], rows)


def memory(measured: Row) -> str:
    """Returns a table of peak memory in MiB by length, and the exponent with which it grows."""
    lengths = measured["memory"][0]["lengths"]
    rows = []
    for row in measured["memory"]:
        name = row["what"] + (f", attention dropout {row['dropout']:g}" if row["dropout"] else "")
        cells = [f"{value:,.0f}" for value in row["mebibytes"]]
        rows.append([name, *cells, *["not run"] * (len(lengths) - len(cells)), f"T^{row['exponent']:.2f}"])
    return _table(["tokens", *(f"{length:,}" for length in lengths), "grows as"], rows)


def growth(measured: Row) -> str:
    """Returns a table of a decoding step's time, relative to the first length, and of the cache's size in KiB."""
    first, *lengths = measured["growth"][0]["lengths"]
    rows = [
        [
            f"`{row['spec']}`",
            *(_quartiles(ratio) for ratio in row["ratios"]),
            " → ".join(f"{size / 1024:,.0f}" for size in row["bytes"]),
        ]
        for row in measured["growth"]
    ]
    head = [f"time after {length:,} / after {first:,}" for length in lengths]
    return _table(["mechanism", *head, "KiB kept"], rows)


TABLES = {"ratios": ratios, "launches": launches, "memory": memory, "growth": growth}


if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    speed_page = repository / "docs/speed.md"
    speed_page.write_text(rebuilt(speed_page.read_text(encoding="utf-8"), repository), encoding="utf-8")
