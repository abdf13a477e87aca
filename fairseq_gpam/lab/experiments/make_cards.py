"""Makes cards: what mechanisms learn in five small tasks, beside softmax attention.

For each mechanism and task one seed at each of two learning rates chooses the rate, by the validation loss; other seeds
at that rate are shown. Every run is one of the laboratory's, in DIR/runs; what has finished is not repeated. Writes
DIR/cards/cards.md and .html. `--mechanism FILE.py:NAME` makes the card of a mechanism of your own.
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fairseq_gpam.arguments import add_output_folder, positive
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.lab.experiments import cards, comparison_report, run_results
from fairseq_gpam.lab.experiments.cards import Arm
from fairseq_gpam.lab.experiments.records import Run
from fairseq_gpam.lab.recipes import prepare, stage_results, stages, tasks
from fairseq_gpam.lab.recipes.engine_process import EngineFailure, stop_on_sigterm
from fairseq_gpam.lab.recipes.run_folder import RunError

TAKES_FLAGS_AFTER_DASHES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mechanism",
        action="append",
        metavar="[FILE.py:]NAME",
        help='a mechanism, with flags if needed ("NAME --gpam-FLAG 2"), beside softmax; may be repeated (default: all)',
    )
    parser.add_argument("--task", action="append", choices=cards.TASKS, help="may be repeated (default: all five)")
    parser.add_argument(
        "--seeds", type=positive, default=len(cards.SEEDS), metavar="N", help="seeds to show (default: 5)"
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="trainings at a time, one thread each (default: one for each core)",
    )
    add_output_folder(parser)
    parser.usage = "%(prog)s [options] [-- fairseq-train flags]"
    parser.epilog = "Everything after -- goes to every training and overrides the recipes' flags."


def run(arguments: argparse.Namespace) -> int:
    stages.one_thread()
    stop_on_sigterm()
    arms = [Arm(cards.REFERENCE), *map(read_arm, arguments.mechanism)] if arguments.mechanism else cards.known_arms()
    arms = list(dict.fromkeys(arms))
    used = [arm.mechanism for arm in arms]
    arms = [
        arm if used[:number].count(arm.mechanism) == 0 else replace(arm, name=f"{arm.mechanism}-{number + 1}")
        for number, arm in enumerate(arms)
    ]
    out, seeds, extra = arguments.out.resolve(), range(1, arguments.seeds + 1), tuple(arguments.further_flags)
    chosen = arguments.task or cards.TASKS
    for task in chosen:
        print(f"data of {task}", flush=True)
        prepare.prepare(tasks.load(task), [], out)
    units = [(arm, task) for arm in arms for task in chosen]
    print(f"{len(units)} cards of {len(cards.RATES) + len(seeds)} runs each", flush=True)
    try:
        failed = for_each(units, lambda arm, task: _unit(arm, task, out, seeds, extra), arguments.jobs)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 128 + signal.SIGINT

    def find(run: stages.RunSettings) -> Run | None:
        folder = replace(run, out=out).folder
        return run_results.read(folder) if stage_results.read(folder) else None

    made = [cards.card(arm, task, seeds, find, extra) for arm, task in units]
    if shown := cards.sections_of([each for each in made if each]):
        folder = out / "cards"
        folder.mkdir(parents=True, exist_ok=True)
        for ending, make in (("md", comparison_report.as_markdown), ("html", comparison_report.as_html)):
            stage_results.write_atomically(folder / f"cards.{ending}", make(cards.REFERENCE, shown))
        print(comparison_report.as_markdown(cards.REFERENCE, shown))
        print(f"written to {folder}: cards.md, cards.html")
    for arm, task in failed:
        print(f"failed: {task} with {arm.mechanism}; the reason stands above", file=sys.stderr)
    return 1 if failed else 0


def read_arm(text: str) -> Arm:
    """Returns the arm that `[FILE.py:]NAME [FLAGS]` names; raises RunError if there is no such file or mechanism."""
    word, *flags = shlex.split(text) or [""]
    file, _, name = word.rpartition(":") if ".py:" in word else ("", "", word)
    if not name or (file and not Path(file).is_file()):
        why = f"no such file: {file}" if name else "it names no mechanism"
        raise RunError(f"--mechanism {text!r} is not allowed: {why}; allowed: [FILE.py:]NAME [FLAGS]")
    if file:
        return Arm(name, tuple(flags), str(Path(file).resolve()))
    stages.check_mechanism(name, ())
    if name in REGISTRY and "decoder" not in REGISTRY[name].sites:
        raise RunError(f"--mechanism {text!r} is not allowed: {name} has no language model")
    return Arm(name, tuple(flags) or cards.FLAGS.get(name, ()))


def make_run(run: stages.RunSettings) -> Run:
    """Trains and evaluates a model, unless that is done; of one that diverged only the training is recorded."""
    try:
        stages.train(run)
        stages.evaluate(replace(run, extra=()))
    except RunError:
        if "diverged" not in stage_results.read(run.folder).get("train", {}):
            raise
    return run_results.read(run.folder)


def for_each(units: Sequence[tuple[Arm, str]], make: Callable[[Arm, str], None], jobs: int) -> list[tuple[Arm, str]]:
    """Makes each unit in a process of its own, at most `jobs` at a time; returns those that failed."""
    # Only needed here: it imports fairseq.
    from fairseq_gpam.lab.recipes import forked

    forked.use()
    waiting, failed = list(units), []
    running: dict[Any, tuple[Any, tuple[Arm, str]]] = {}
    begun = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                unit = waiting.pop(0)
                process = forked.ForkProcess(target=make, args=unit)
                process.start()
                running[process.sentinel] = process, unit
            for sentinel in wait(list(running)):
                process, unit = running.pop(sentinel)
                failed += [unit] * bool(process.exitcode)
                done = len(units) - len(waiting) - len(running)
                left = (time.monotonic() - begun) / done * (len(units) - done) / 60
                print(f"{done} of {len(units)} cards done, about {left:.0f} min left", flush=True)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()
    return failed


def _unit(arm: Arm, task: str, out: Path, seeds: Sequence[int], extra: Sequence[str]) -> None:
    """Makes the runs of a card, with a line for each; what they print themselves goes to a log."""
    stop_on_sigterm()
    if arm.file:
        os.environ["GPAM_IMPORT"] = arm.file
    terminal, sys.stdout = sys.stdout, (out / "cards.log").open("a", encoding="utf-8", buffering=1)

    def make(settings: stages.RunSettings) -> Run:
        begun = time.monotonic()
        run = make_run(replace(settings, out=out))
        scores = " ".join(cards.share_text(cards.score(run, column)) for column in cards.columns_of(task))
        seed, took = f"seed {run.seed}, learning rate {run.learning_rate}", time.monotonic() - begun
        print(f"[{task} {run.arm}] {seed}: {scores} ({took:.0f} s)", file=terminal, flush=True)
        return run

    try:
        cards.card(arm, task, seeds, make, extra)
    except (RunError, EngineFailure) as error:
        sys.exit(str(error))
