"""The results of a study on synthetic data, which `examples/studies/NAME/study.py` writes into results.jsonl."""

import json
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
