"""What a result depends on beside its command: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import fairseq_gpam
from fairseq_gpam import engine


def environment(repository: Path) -> dict[str, Any]:
    """Returns versions, machine, thread count and the commit of ``repository``."""
    return {
        "versions": {"fairseq_gpam": fairseq_gpam.__version__, **engine.versions()},
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "accelerators": _accelerators(),
            "system": platform.platform(),
        },
        "commit": _commit(repository),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit(repository: Path) -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("describe", "--always", "--abbrev=40", "--dirty")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
