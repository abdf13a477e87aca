"""Studies on synthetic data: `examples/studies/NAME/study.py` writes results.jsonl, and a table in the README shows it.

The table is between `<!-- study: NAME rows=KEY columns=KEY value=KEY -->` and `<!-- /study -->`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.recipes import stage_results
from fairseq_gpam.lab.recipes.environment import environment

RESULTS = "results.jsonl"


def write_results(folder: Path, results: Iterable[dict[str, Any]]) -> None:
    """Writes and prints one line for each result, after a first line with versions, machine and commit."""
    lines = [json.dumps(environment(), ensure_ascii=False)]
    for result in results:
        lines.append(json.dumps(result))
        print(lines[-1], flush=True)
    stage_results.write_atomically(folder / RESULTS, "\n".join(lines) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Returns the results of a study; raises FileNotFoundError if there are none."""
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]


def study_table(study: str, repository: Path, rows: str, columns: str, value: str) -> str:
    """Returns the mean of `value` over the seeds, and its range, for each pair of a row and a column, as Markdown."""
    from tabulate import tabulate

    results = read_results(repository / "examples/studies" / study)
    names, heads = (list(dict.fromkeys(result[key] for result in results)) for key in (rows, columns))

    def cell(name: Any, head: Any) -> str:
        found = [result[value] for result in results if (result[rows], result[columns]) == (name, head)]
        if not found:
            return "not run"
        mean = f"{statistics.mean(found):.3g}"
        return f"{found[0]:,}" if len(set(found)) == 1 else f"{mean} ({min(found):.3g}–{max(found):.3g})"

    return tabulate(
        [[name, *(cell(name, head) for head in heads)] for name in names],
        headers=[f"{rows} \\ {columns}", *map(str, heads)],
        tablefmt="github",
        colalign=["left"] + ["right"] * len(heads),
        disable_numparse=True,
    )
