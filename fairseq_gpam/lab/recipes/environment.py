"""The environment that a result depends on: versions, machine, threads, commit."""

import os
import platform
import subprocess
from typing import Any

import fairseq_gpam
from fairseq_gpam import engine
from fairseq_gpam.attention.core.matmul import processor


def environment() -> dict[str, Any]:
    """Returns versions, machine, thread count and the commit of this package."""
    import torch

    return {
        "versions": {"fairseq_gpam": fairseq_gpam.__version__, **engine.versions()},
        "machine": {
            "cpu": processor("model name"),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "system": platform.platform(),
        },
        "commit": commit(),
    }


def commit() -> str:
    """Returns the full hash of the commit that this package is checked out at, or that it is unknown."""
    package = fairseq_gpam.__path__[0]

    def git(*arguments: str) -> str:
        command = ["git", "-C", package, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie in a repository that is not its own.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--abbrev=40", "--dirty")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
