"""A grid's jobs on a SLURM cluster, with or without accounting: how they are submitted, asked about and cancelled.

Snakemake asks about a job by running this file, which prints "running", "success" or "failed". The script of each job
leaves its exit status in `slurm/JOB.exit`; SLURM is asked only about a job that has left none. A question that SLURM
does not answer says nothing about the job, which then counts as running.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

FOLDER = "slurm"
SCRIPT = "job.sh"
JOB_SCRIPT = """#!/bin/sh
# properties = {properties}
trap 'echo $? >slurm/$SLURM_JOB_ID.exit' EXIT
{exec_job}
"""
FAILED = {
    *("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""The states of squeue in which a job has ended otherwise than well."""
UNKNOWN = "Invalid job id"
PATIENCE = 60.0
"""Seconds after which a cancelled job should be gone; SLURM kills it after 30 unless it is set up otherwise."""


def options(out: Path, flags: str) -> list[str]:
    """Returns Snakemake's options for a grid with these [slurm] flags, and writes what they name into `out`."""
    (out / FOLDER).mkdir(exist_ok=True)
    (out / FOLDER / SCRIPT).write_text(JOB_SCRIPT, encoding="utf-8")
    # Snakemake fills in what stands in braces. Paths are relative to the output folder, where it runs.
    given = [word.replace("{", "{{").replace("}", "}}") for word in shlex.split(flags)]
    submit = ["sbatch", "--parsable", "--job-name={rule}", "--ntasks=1", "--cpus-per-task={threads}"]
    submit += [f"--output={FOLDER}/%j.log", *given]
    return [
        *("--executor", "cluster-generic", "--jobscript", f"{FOLDER}/{SCRIPT}"),
        *("--cluster-generic-submit-cmd", shlex.join(submit)),
        *("--cluster-generic-status-cmd", shlex.join([sys.executable, str(Path(__file__).resolve())])),
        *("--cluster-generic-cancel-cmd", "scancel"),
    ]


def status(job: str) -> str:
    """Returns Snakemake's word for a job of the grid in the current folder."""
    left = Path(FOLDER) / f"{job}.exit"
    if left.exists() and (text := left.read_text(encoding="utf-8").strip()):
        return "success" if text == "0" else "failed"
    asked = squeue("--states=all", f"--jobs={job}", "--format=%T")
    if asked.returncode:
        if UNKNOWN in asked.stderr:
            return "failed"
        print(f"SLURM did not answer about job {job}: {asked.stderr.strip()}", file=sys.stderr)
        return "running"
    state = asked.stdout.strip()
    return "success" if state == "COMPLETED" else "failed" if state in FAILED else "running"


def squeue(*words: str) -> "subprocess.CompletedProcess[str]":
    """Asks SLURM about jobs; a non-zero return code means that it did not answer."""
    command = ["squeue", "--noheader", *words]
    return subprocess.run(command, capture_output=True, text=True)


def jobs_in(out: Path) -> list[str]:
    """Returns the ids of the user's jobs in the queue that were submitted from the folder `out`.

    Raises `RuntimeError` if SLURM does not answer.
    """
    asked = squeue(f"--user={os.getuid()}", "--format=%A %Z")
    if asked.returncode:
        raise RuntimeError(f"SLURM does not answer: {asked.stderr.strip()}")
    lines = (line.partition(" ") for line in asked.stdout.splitlines())
    return [job for job, _, folder in lines if folder == str(out)]


def cancel(out: Path) -> list[str]:
    """Cancels the jobs that were submitted from the folder `out`, again until they are gone.

    Returns the ids of those that are still there after `PATIENCE`. Raises `RuntimeError` if SLURM does not answer.
    """
    deadline = time.monotonic() + PATIENCE
    while jobs := jobs_in(out):
        if time.monotonic() > deadline:
            return jobs
        command = ["scancel", *jobs]
        subprocess.run(command, stderr=subprocess.DEVNULL)
        time.sleep(1)
    return []


if __name__ == "__main__":
    print(status(sys.argv[1]))
