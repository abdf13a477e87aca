"""Adds the results of finished runs to examples/results, without training curves and paths.

Translations are kept beside them, compressed, as hypotheses/TASK/ARM/SEED-REPLICATE.txt.xz.

What a run that is there already did not have before is added to it. A run of the same task, arm, learning rate and seed
with other numbers is a replicate, which is added and named; nothing is replaced by other numbers.
"""

import argparse
import lzma
import re
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fairseq_gpam.lab import schema
from fairseq_gpam.lab.experiments import run_results
from fairseq_gpam.lab.experiments.records import Costs, Run, to_line
from fairseq_gpam.lab.recipes import run_folder, stage_results

FOLDER = "examples/results"
"""Its files TASK.jsonl hold one run in each line."""
EXPECTED = ("stock", "dagpam")
"""Rows that every table has, run or not."""

_USER_DIR = re.compile(r"(--user-dir )[^\s\"]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*")


def read_task(task: str, repository: Path) -> list[Run]:
    """Returns the kept runs of a task in the order of their file, none if there is no such file."""
    path = repository / FOLDER / f"{task}.jsonl"
    return schema.read_json_lines(path, Run) if path.exists() else []


def order(name: str) -> tuple[int, str]:
    """Returns the sort key of an arm: stock first, then daGPAM, then by name."""
    return (EXPECTED.index(name), name) if name in EXPECTED else (len(EXPECTED), name)


def key(run: Run) -> tuple[Any, ...]:
    """Returns what identifies a run, in the order of the file."""
    return (*order(run.name), run.seed, run.group, run.replicate)


def kept_run(folder: Path, without_speeds: str = "") -> Run:
    """Returns the results to keep of a run in `OUT/runs/TASK/NAME/SEED`.

    Paths are made relative to the output folder `out`; of the curves only the validation curve is kept, of λ over
    training its last value. `without_speeds` is a reason to leave out speeds and times, and is kept as a note; the peak
    memory and the processor time, which depend little on other work on the machine, are kept. Raises
    `FileNotFoundError` if the training has not ended, `ValueError` if an absolute path remains.
    """
    folder = folder.resolve()
    run = run_results.read(folder)
    run = replace(
        run,
        folder="",
        training=replace(run.training, train=()),
        lambdas=tuple(replace(entry, points=entry.points[-1:]) for entry in run.lambdas),
        measures=tuple(replace(entry, value=float(f"{entry.value:.6g}")) for entry in run.measures),
    )
    if without_speeds:
        costs = Costs(peak_memory_mib=run.costs.peak_memory_mib, processor_seconds=run.costs.processor_seconds)
        run = replace(run, costs=costs, note=f"speeds are left out: {without_speeds}")
    text = _USER_DIR.sub(r"\1fairseq_gpam", to_line(run).replace(str(folder.parents[3]), "out"))
    remaining = _ABSOLUTE.search(text)
    if remaining:
        raise ValueError(f"{folder}/results.json holds a path of this machine: {remaining[0]}")
    return schema.from_json(text, Run, str(folder))


def keep(folders: Sequence[Path], repository: Path, without_speeds: str = "") -> list[str]:
    """Adds runs to `examples/results`; returns what to print: the files written, and the replicates added.

    The lines have a fixed order, so that keeping a run again changes nothing.
    """
    by_group: dict[str, dict[Path, Run]] = {}
    for folder in folders:
        run = kept_run(folder, without_speeds)
        by_group.setdefault(run.group, {})[folder] = run
    return [line for runs in by_group.values() for line in write([*runs.values()], repository, [*runs])]


def write(runs: Sequence[Run], repository: Path, folders: Sequence[Path] = ()) -> list[str]:
    """Adds kept runs of one task to the task's file, and the translations in their folders.

    Returns the file, and a sentence for each replicate.
    """
    path = repository / FOLDER / f"{runs[0].group}.jsonl"
    there = read_task(runs[0].group, repository)
    said = [str(path)]
    for run, folder in zip_longest(runs, folders):
        of_seed = [old for old in there if (old.name, old.seed) == (run.name, run.seed)]
        repeated = next((old for old in of_seed if run.repeats(old)), None)
        if repeated is None and of_seed:
            run = replace(run, replicate=max(old.replicate for old in of_seed) + 1)
            said.append(f"{path}: {run.arm} seed {run.seed} is there with other numbers; added as {run.label}")
        elif repeated is not None:
            run = replace(run, replicate=repeated.replicate)
            there.remove(repeated)
        there.append(run)
        if folder and (hypotheses := folder / run_folder.HYPOTHESES).exists():
            translations = path.parent / "hypotheses" / run.group / run.name / f"{run.seed}-{run.replicate}.txt.xz"
            translations.parent.mkdir(parents=True, exist_ok=True)
            translations.write_bytes(lzma.compress(hypotheses.read_bytes(), preset=9))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{to_line(run)}\n" for run in sorted(there, key=key)]
    stage_results.write_atomically(path, "".join(lines))
    return said


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--repository", type=Path, default=Path())
    reason = "leave out speeds and times and note why, such as 'the machine was shared with other work'"
    parser.add_argument("--without-speeds", default="", metavar="REASON", help=reason)
    arguments = parser.parse_args(words)
    try:
        print(*keep(arguments.runs, arguments.repository, arguments.without_speeds), sep="\n")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
