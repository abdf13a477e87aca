"""The environment that a result depends on: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.attention.core.matmul import processor


def environment(repository: Path) -> dict[str, Any]:
    """Returns versions, machine, thread count and the commit of `repository`."""
    return {
        "versions": {"fairseq_gpam": fairseq_gpam.__version__, **engine.versions()},
        "machine": {
            "cpu": processor("model name"),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "accelerators": _accelerators(),
            "system": platform.platform(),
        },
        "commit": commit(repository),
    }


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def commit(repository: Path) -> str:
    """Returns the full hash of the commit checked out in the repository, or that it is unknown."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("describe", "--always", "--abbrev=40", "--dirty")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
