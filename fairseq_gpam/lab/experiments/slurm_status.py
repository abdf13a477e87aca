"""Prints "running", "success" or "failed" for a SLURM job, as Snakemake's generic cluster plugin expects."""

import subprocess
import sys

SUCCESS = ("COMPLETED",)
RUNNING = ("", "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED")


def status(job: str) -> str:
    """Returns the plugin's word for the job's state in sacct; a job not yet known to sacct counts as running."""
    command = ["sacct", "--jobs", job, "--allocations", "--noheader", "--parsable2", "--format", "State"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    state = words[0].rstrip("+") if words else ""
    return "success" if state in SUCCESS else "running" if state in RUNNING else "failed"


if __name__ == "__main__":
    print(status(sys.argv[1]))
