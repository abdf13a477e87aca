"""Run a grid of experiments: arms × tasks × seeds × learning rates, from the data to the comparison.

Snakemake does the scheduling. The command may be killed at any moment and started again: nothing that has finished is
repeated. A failed run does not stop the others and is reported at the end. The docstring of
fairseq_gpam/lab/experiments/grid.py describes the grid file; examples/studies/ has examples.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fairseq_gpam
from fairseq_gpam.lab.experiments import grid
from fairseq_gpam.lab.recipes.engine_process import name_holder, stop_on_sigterm
from fairseq_gpam.lab.recipes.run_folder import RunError, exclusive

HERE = Path(__file__).parent
PACKAGE = Path(fairseq_gpam.__path__[0]).resolve()
SNAKEMAKE_LOG = "snakemake.log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", type=Path, metavar="GRID.toml")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="jobs at a time, one thread each (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="output folder (default: out)")
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="run a failing job up to N times more (default: 0)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the jobs, done and to do, and stop")
    parser.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="slurm: submit each job with sbatch, --jobs of them at a time; the grid's [slurm] flags go along",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.jobs < 1:
        sys.exit(f"--jobs is {arguments.jobs}; allowed: a whole number above 0")
    if arguments.retries < 0:
        sys.exit(f"--retries is {arguments.retries}; allowed: a whole number, 0 or above")
    try:
        chosen = grid.load(arguments.grid)
    except grid.GridError as error:
        sys.exit(str(error))
    out = arguments.out.resolve()
    jobs = list(chosen.jobs())
    if arguments.dry_run:
        for job in jobs:
            print("done " if (out / job.marker).exists() else "to do", shlex.join(job.command))
        print(progress(jobs, out, arguments.jobs))
        return 0
    stop_on_sigterm()
    try:
        # Snakemake inherits the descriptor and holds the lock while it lives, even if this process is killed. So a lock
        # that can be acquired has no living owner, and Snakemake's own lock files, which outlive it, are not needed.
        with exclusive(out, "experiment.lock") as lock, (out / SNAKEMAKE_LOG).open("ab") as log:
            command = engine_command(chosen, out, arguments.jobs, arguments.executor, arguments.retries)
            engine = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(chosen), pass_fds=(lock,), process_group=0
            )
            name_holder(lock, engine.pid)
            try:
                follow(engine, jobs, out, arguments.jobs)
            finally:
                stop(engine)
            return finish(chosen, jobs, out, engine.returncode)
    except RunError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def environment(chosen: grid.Grid) -> dict[str, str]:
    """Returns the environment of all jobs: this package first, then the grid's settings (empty ones are unset)."""
    inherited = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {name: value for name, value in {**inherited, **chosen.environment}.items() if value}


def engine_command(chosen: grid.Grid, out: Path, jobs: int, executor: str, retries: int) -> list[str]:
    """Returns Snakemake's command line.

    SLURM uses the generic cluster plugin, because Snakemake's SLURM plugin needs numpy ≥ 2.4 and fairseq numpy < 2.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile"), "--directory", str(out)]
    command += ["--config", f"grid={chosen.path.resolve()}", "--keep-going", "--rerun-incomplete", "--nolock"]
    # A changed command makes the job run again; the run's folder then refuses a different training command.
    command += ["--rerun-triggers", "mtime", "params", "--scheduler", "greedy", "--nocolor"]
    command += ["--retries", str(retries)]
    if executor == "slurm":
        (out / "slurm").mkdir(exist_ok=True)
        submit = ["sbatch", "--parsable", "--job-name={rule}", "--ntasks=1", "--cpus-per-task={threads}"]
        submit += [f"--output={out}/slurm/%j.log", *shlex.split(chosen.slurm_flags)]
        status = shlex.join([sys.executable, str(HERE / "slurm_status.py")])
        command += ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", shlex.join(submit)]
        command += ["--cluster-generic-status-cmd", status, "--cluster-generic-cancel-cmd", "scancel"]
        return [*command, "--jobs", str(jobs), "--latency-wait", "60"]
    return [*command, "--cores", str(jobs), "--latency-wait", "1"]


def follow(engine: subprocess.Popen[bytes], jobs: Sequence[grid.Job], out: Path, parallel: int) -> None:
    """Prints a line whenever a run or stage has ended, until the engine ends."""
    shown = ""
    while True:
        ended = engine.poll() is not None
        text = progress(jobs, out, parallel)
        if text != shown:
            print(text, flush=True)
            shown = text
        if ended:
            return
        time.sleep(1)


def stop(engine: subprocess.Popen[bytes]) -> None:
    """Ends Snakemake, the leader of a process group, and its jobs, if it is still running."""
    if engine.poll() is None:
        # On SIGINT Snakemake cancels the jobs of a cluster; for those on this machine it would wait.
        engine.send_signal(signal.SIGINT)
        os.killpg(engine.pid, signal.SIGTERM)
        engine.wait()
        print("stopped; the same line goes on from here", file=sys.stderr)


def progress(jobs: Sequence[grid.Job], out: Path, parallel: int) -> str:
    """Returns how many runs and stages have ended and an estimate, from their times, of the time that remains."""
    seconds: dict[str, list[float]] = {}
    missing: dict[str, int] = {}
    open_labels = set()
    for job in jobs:
        if (out / job.marker).exists():
            seconds.setdefault(job.stage, []).append(job_seconds(out / job.benchmark))
        else:
            missing[job.stage] = missing.get(job.stage, 0) + 1
            open_labels.add(job.label)
    runs = {job.label for job in jobs if job.stage != "prepare"}
    text = (
        f"{len(runs - open_labels)} of {len(runs)} runs done, {len(jobs) - sum(missing.values())} of {len(jobs)} jobs"
    )
    if not missing:
        return text
    if missing.keys() <= seconds.keys():
        rest = sum(count * sum(seconds[stage]) / len(seconds[stage]) for stage, count in missing.items())
        return f"{text}, about {rest / parallel / 60:.1f} min left"
    return f"{text}, the time left is known once each stage has ended once"


def job_seconds(path: Path) -> float:
    """Returns the seconds in a file of Snakemake's `benchmark:`, 0 if there is none."""
    if not path.exists():
        return 0.0
    with path.open(encoding="utf-8") as rows:
        return float(next(csv.DictReader(rows, delimiter="\t"))["s"])


def finish(chosen: grid.Grid, jobs: Sequence[grid.Job], out: Path, status: int) -> int:
    """Prints the failed jobs and compares the finished runs; returns the exit status."""
    from fairseq_gpam.lab.experiments import compare

    ready = [job for job in jobs if not (out / job.marker).exists() and all((out / i).exists() for i in job.inputs)]
    failed = [job for job in ready if (out / job.log).exists()]
    for job in failed:
        print(f"failed: {job.stage} of {job.label}; see {out / job.log}", file=sys.stderr)
    if status:
        print(f"Snakemake ended with status {status}; see {out / SNAKEMAKE_LOG}", file=sys.stderr)
    done = [out / job.marker for job in jobs if job.stage in ("score", "eval-lm") and (out / job.marker).exists()]
    if done:
        # Every study's file is grid.toml in a folder of its own.
        name = chosen.path.resolve().parent.name if chosen.path.stem == "grid" else chosen.path.stem
        try:
            compare.write([marker.parent for marker in done], chosen, out / "comparison" / name)
        except ValueError as error:
            print(f"no comparison: {error}", file=sys.stderr)
            return 1
    return 1 if failed or status else 0
