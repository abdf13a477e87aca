"""Runs a grid of experiments: arms × tasks × seeds × learning rates, from the data to the comparison.

Snakemake does the scheduling. The command may be killed at any moment and started again: nothing that has finished is
repeated. A failed run does not stop the others and is reported at the end. docs/comparing.md
is the guide, the docstring of fairseq_gpam/lab/experiments/grid.py describes the grid file.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fairseq_gpam
from fairseq_gpam import errors
from fairseq_gpam.arguments import add_output_folder, positive, whole
from fairseq_gpam.lab.experiments import grid, options_check, slurm
from fairseq_gpam.lab.recipes import logs, stage_results
from fairseq_gpam.lab.recipes.engine_process import name_holder, stop_on_sigterm
from fairseq_gpam.lab.recipes.run_folder import TRAIN_LOG, exclusive

PACKAGE = Path(fairseq_gpam.__path__[0]).resolve()
JOBS, SNAKEMAKE_LOG = "jobs.json", "snakemake.log"
"""Names in the output folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", type=Path, metavar="GRID.toml")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="jobs at a time, one thread each (default: 1)"
    )
    add_output_folder(parser)
    parser.add_argument(
        "--retries", type=whole, default=0, metavar="N", help="run a failing job up to N times more (default: 0)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the jobs, done and to do, and stop")
    parser.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="slurm: submit each job with sbatch, --jobs of them at a time; the grid's [slurm] flags go along",
    )


def run(arguments: argparse.Namespace) -> int:
    out = arguments.out.resolve()
    chosen = grid.load(arguments.grid)
    options_check.check(chosen, arguments.grid, out)
    jobs = list(chosen.jobs())
    if arguments.dry_run:
        for job in jobs:
            print("done " if (out / job.marker).exists() else "to do", shlex.join(job.command))
        print(progress(jobs, out, arguments.jobs))
        return 0
    errors.require("snakemake", "scipy", "statsmodels", "matplotlib", "jinja2")
    stop_on_sigterm()
    on_cluster = arguments.executor == "slurm"
    if on_cluster and not shutil.which("sbatch"):
        sys.exit("--executor is slurm, but there is no sbatch here; allowed: local, or slurm on a cluster")
    try:
        # Snakemake inherits the descriptor and holds the lock while it lives, even if this process is killed. So a lock
        # that can be acquired has no living owner, and Snakemake's own lock files, which outlive it, are not needed.
        with exclusive(out, "experiment.lock") as lock, (out / SNAKEMAKE_LOG).open("ab") as log:
            if on_cluster:
                cancel_jobs(out, "jobs of a start that did not end well")
            write_jobs(jobs, out)
            command = engine_command(chosen, out, arguments.jobs, on_cluster, arguments.retries)
            # A shell starts `... &` with SIGINT ignored, and Snakemake, which is stopped by it, would inherit that.
            interruption = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                engine = subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment(chosen), pass_fds=(lock,), process_group=0
                )
            finally:
                signal.signal(signal.SIGINT, interruption)
            name_holder(lock, engine.pid)
            try:
                follow(engine, jobs, out, arguments.jobs)
            finally:
                stop(engine, out if on_cluster else None)
            return finish(chosen, jobs, out, engine.returncode, comparison_name(arguments.grid))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def comparison_name(path: Path) -> str:
    """Returns the name of a grid's comparison: its file's, or of a `grid.toml`, as studies have it, its folder's."""
    return path.resolve().parent.name if path.stem == "grid" else path.stem


def write_jobs(jobs: Sequence[grid.Job], out: Path) -> None:
    """Writes the jobs for the Snakefile, each with a rule of its own."""
    known: dict[str, int] = {}
    entries = []
    for job in jobs:
        known[job.rule] = number = known.get(job.rule, 0) + 1
        rule = job.rule if number == 1 else f"{job.rule}__{number}"
        entry = {"rule": rule, "marker": job.marker, "log": job.log, "benchmark": job.benchmark}
        entries.append({**entry, "inputs": job.inputs, "command": job.command, "priority": job.priority})
    stage_results.write_atomically(out / JOBS, json.dumps(entries, indent=1) + "\n")


def environment(chosen: grid.Grid) -> dict[str, str]:
    """Returns the environment of all jobs: this package first, then the grid's settings (empty ones are unset)."""
    inherited = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {name: value for name, value in {**inherited, **chosen.job_environment}.items() if value}


def engine_command(chosen: grid.Grid, out: Path, jobs: int, on_cluster: bool, retries: int) -> list[str]:
    """Returns Snakemake's command line.

    SLURM uses the generic cluster plugin: Snakemake's own refuses --partition, --time and --mem among the flags of
    sbatch, loses SLURM_CONF, and starts Snakemake twice more in each job.
    """
    snakefile = str(Path(__file__).with_name("Snakefile"))
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--directory", str(out)]
    command += ["--keep-going", "--rerun-incomplete", "--nolock", "--retries", str(retries)]
    # A changed command makes the job run again; the run's folder then refuses a different training command.
    command += ["--rerun-triggers", "mtime", "params", "--scheduler", "greedy", "--nocolor"]
    if on_cluster:
        return [*command, *slurm.options(out, chosen.slurm.flags), "--jobs", str(jobs), "--latency-wait", "60"]
    return [*command, "--cores", str(jobs), "--latency-wait", "1"]


def follow(engine: subprocess.Popen[bytes], jobs: Sequence[grid.Job], out: Path, parallel: int) -> None:
    """Prints a line whenever a run or stage has ended, until the engine ends."""
    shown = ""
    while True:
        ended = engine.poll() is not None
        if (text := progress(jobs, out, parallel)) != shown:
            print(text, flush=True)
            shown = text
        if ended:
            return
        time.sleep(1)


def stop(engine: subprocess.Popen[bytes], cluster: Path | None = None) -> None:
    """Ends Snakemake, the leader of a process group, if it is still running, and its jobs.

    `cluster` is the output folder of jobs on a cluster, which may run on however Snakemake has ended.
    """
    running = engine.poll() is None
    if running:
        # On SIGINT Snakemake cancels the jobs of a cluster; for those on this machine it would wait.
        engine.send_signal(signal.SIGINT)
        if cluster is None:
            os.killpg(engine.pid, signal.SIGTERM)
        try:
            engine.wait(None if cluster is None else slurm.PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(engine.pid, signal.SIGKILL)
            engine.wait()
    if cluster is not None:
        cancel_jobs(cluster, "jobs")
    if running:
        print("stopped; run the same command again to continue", file=sys.stderr)


def cancel_jobs(out: Path, what: str) -> None:
    """Cancels what is left of a grid's jobs on the cluster, and names those that it cannot end."""
    try:
        jobs = slurm.cancel(out)
    except (RuntimeError, OSError) as error:
        print(f"{what} in {out} may still be running on the cluster: {error}", file=sys.stderr)
    else:
        if jobs:
            print(f"{what} that still run, although cancelled: {' '.join(jobs)}", file=sys.stderr)


def progress(jobs: Sequence[grid.Job], out: Path, parallel: int) -> str:
    """Returns how many runs and stages have ended and an estimate, from their times, of the time that remains."""
    ended = {job.marker: job for job in jobs if (out / job.marker).exists()}
    left = [job for job in jobs if job.marker not in ended]
    runs = {job.label for job in jobs if job.stage != "prepare"}
    done = len(runs - {job.label for job in left})
    text = f"{done} of {len(runs)} runs done, {len(ended)} of {len(jobs)} jobs"
    if not left:
        return text
    seconds: dict[str, list[float]] = {}
    for job in ended.values():
        seconds.setdefault(job.stage, []).append(logs.measured(out / job.benchmark).get("s", 0.0))
    missing = Counter(job.stage for job in left)
    if missing.keys() <= seconds.keys():
        rest = sum(count * sum(seconds[stage]) / len(seconds[stage]) for stage, count in missing.items())
        return f"{text}, about {rest / parallel / 60:.1f} min left"
    return f"{text}, the time left is known once each stage has ended once"


def finish(chosen: grid.Grid, jobs: Sequence[grid.Job], out: Path, status: int, name: str) -> int:
    """Prints the failed jobs and compares the finished runs; returns the exit status."""
    from fairseq_gpam.lab.experiments import contrasts

    ready = [job for job in jobs if not (out / job.marker).exists() and all((out / i).exists() for i in job.inputs)]
    failed = [job for job in ready if (out / job.log).exists()]
    done = [job for job in jobs if job.stage in ("score", "eval-lm") and (out / job.marker).exists()]
    compared = [(out / job.marker).parent for job in done]
    for job in failed:
        folder = (out / job.marker).parent
        results = stage_results.read(folder) if job.stage == "train" else {}
        if diverged := results.get("train", {}).get("diverged"):
            compared.append(folder)
            at = f"at update {diverged['update']}, {diverged['reason']}"
            print(f"diverged: {job.label} {at}; see {folder / TRAIN_LOG}", file=sys.stderr)
        else:
            print(f"failed: {job.stage} of {job.label}; see {out / job.log}", file=sys.stderr)
    if status:
        print(f"Snakemake ended with status {status}; see {out / SNAKEMAKE_LOG}", file=sys.stderr)
    if compared:
        try:
            contrasts.write(compared, chosen, out / "comparison" / name)
        except ValueError as error:
            print(f"no comparison: {error}", file=sys.stderr)
            return 1
    return 1 if failed or status else 0
