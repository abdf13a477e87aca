"""From an installed package to a table: fetches a corpus, trains and evaluates mechanisms, and compares them.

Compares stock softmax attention and daGPAM with the same budget and seed: in a translation model (task bible-de-en,
sacreBLEU), or with "lm" in a language model (task shakespeare-lm, perplexity). After an interruption, the same command
continues where it stopped. Writes table.md, results.json and learning-curves.png to DIR/quickstart/TASK, and everything
else below DIR.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

from fairseq_gpam import errors
from fairseq_gpam.arguments import add_output_folder, positive, seed
from fairseq_gpam.lab.experiments import run_results, tables
from fairseq_gpam.lab.recipes import prepare, score, stages, tasks
from fairseq_gpam.lab.recipes.engine_process import stop_on_sigterm, stopping
from fairseq_gpam.lab.recipes.stages import RunSettings

TAKES_FLAGS_AFTER_DASHES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [lm] [options] [-- fairseq-train flags]"
    parser.epilog = "Everything after -- goes to every fairseq-train."
    parser.add_argument("kind", nargs="?", choices=("lm",), metavar="lm", help="a language model")
    parser.add_argument("--full", action="store_true", help="train to convergence (hours on a CPU), not 1,200 updates")
    add_output_folder(parser)
    parser.add_argument("--seed", type=seed, default=1, help="default 1")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="trainings at the same time, one thread each (default: 2 if there are 2 cores)",
    )
    parser.add_argument(
        "--runs",
        default="stock dagpam",
        metavar="LIST",
        help='mechanisms to compare, separated by spaces (default: "%(default)s")',
    )


def run(arguments: argparse.Namespace) -> int:
    errors.require("matplotlib", "jinja2", "tabulate")
    stages.one_thread()
    stop_on_sigterm()
    try:
        task = tasks.load("shakespeare-lm" if arguments.kind == "lm" else "bible-de-en")
        compare(task, arguments)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def compare(task: tasks.Task, arguments: argparse.Namespace) -> None:
    """Runs all stages for each mechanism and prints the table."""
    out = arguments.out.resolve()
    begun = time.monotonic()

    def step(name: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        print(f"\n== {name} ({minutes} min {seconds} s)", flush=True)

    names = arguments.runs.split()
    runs = [RunSettings(task, name, arguments.seed, out, name, arguments.full) for name in names]
    folders = [run.folder for run in runs]
    extra = tuple(arguments.further_flags)
    for name in names:
        stages.check_mechanism(name, extra)
    step(f"prepare {task.name}")
    prepare.prepare(task, prepare.fetch(task, out), out)
    step(f"train {' '.join(names)}")
    for_each(stages.train, [replace(run, extra=extra) for run in runs], arguments.jobs)
    if task.is_translation:
        step("translate the test set")
        for_each(stages.generate, runs, arguments.jobs)
        step("score")
        for folder in folders:
            print(folder, *score.score_lines(score.score(folder, score.references(folder))), sep="\n", flush=True)
    else:
        step("evaluate")
        for_each(stages.evaluate, runs, arguments.jobs)
    step("results")
    report = out / "quickstart" / f"{task.name}{'-full' if arguments.full else ''}"
    print(tables.report([run_results.read(folder) for folder in folders], report))
    print(f"\nwritten to {report}: table.md, results.json, learning-curves.png")


def for_each(stage: Callable[[RunSettings], None], runs: list[RunSettings], jobs: int) -> None:
    """Runs a stage for every run, at most `jobs` at a time; an interruption stops all of them."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(stage, run) for run in runs]
            wait(futures)
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
        for future in futures:
            future.result()
