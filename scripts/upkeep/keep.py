"""Adds the results of finished runs to examples/results, without training curves and paths.

python scripts/upkeep/keep.py RUN... [--without-speeds REASON]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq_gpam.lab.experiments import committed_results, run_results
from fairseq_gpam.lab.recipes import stage_results

SPEEDS = {"seconds", "tokens_per_second"}

_USER_DIR = re.compile(r"(--user-dir )[^\s\"]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*")


def kept_line(run: Path, without_speeds: str = "") -> dict[str, Any]:
    """Returns the results to keep of a run in `OUT/runs/TASK/NAME/SEED`.

    Paths are made relative to the output folder `out`; of the curves only the validation curve is kept, of λ over
    training its last value. `without_speeds` is a reason to leave out speeds and times, and is kept as a note; the peak
    memory, which does not depend on other work on the machine, is kept. Raises `FileNotFoundError` if the training has
    not ended, `ValueError` if an absolute path remains.
    """
    run = run.resolve()
    found = run_results.read(run)
    if "lambdas" in found:
        found["lambdas"] = {name: points[-1:] for name, points in found["lambdas"].items()}
    for measure, value in found.get("collapse", {}).items():
        found["collapse"][measure] = float(f"{value:.6g}")
    for points in found.get("by_layer", {}).values():
        points[:] = [[layer, float(f"{value:.4g}")] for layer, value in points]
    found["train"].get("curve", {}).pop("train", None)
    if without_speeds:
        found["note"] = f"speeds are left out: {without_speeds}"
        for stage in found.values():
            if isinstance(stage, dict):
                stage |= dict.fromkeys(SPEEDS & stage.keys())
    text = json.dumps(found, ensure_ascii=False).replace(str(run.parents[3]), "out")
    text = _USER_DIR.sub(r"\1fairseq_gpam", text)
    remaining = _ABSOLUTE.search(text)
    if remaining:
        raise ValueError(f"{run}/results.json holds a path of this machine: {remaining[0]}")
    return json.loads(text)


def keep(runs: Sequence[Path], repository: Path, without_speeds: str = "") -> list[Path]:
    """Adds runs to `examples/results`, replacing earlier lines of the same task, name and seed.

    The lines have a fixed order, so that keeping a run again changes nothing. Returns the files written.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        line = kept_line(run, without_speeds)
        by_task.setdefault(line["task"], []).append(line)
    return [write(task, lines, repository) for task, lines in by_task.items()]


def write(task: str, lines: Sequence[dict[str, Any]], repository: Path) -> Path:
    """Adds kept runs of one task to the task's file; returns the file."""
    path = repository / "examples/results" / f"{task}.jsonl"
    kept = {committed_results.key(run): run for run in (*committed_results.read_lines(path), *lines)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(kept[key], ensure_ascii=False) + "\n" for key in sorted(kept))
    stage_results.write_atomically(path, text)
    return path


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--repository", type=Path, default=Path())
    parser.add_argument(
        "--without-speeds",
        default="",
        metavar="REASON",
        help="leave out speeds and times and note why, such as 'the machine was shared with other work'",
    )
    arguments = parser.parse_args(words)
    try:
        print(*keep(arguments.runs, arguments.repository, arguments.without_speeds), sep="\n")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
