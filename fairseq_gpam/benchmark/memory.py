"""Measures peak memory of the attention core in training, each time in a new process.

`python -m fairseq_gpam.benchmark.memory WHAT LENGTH DROPOUT` prints mebibytes and seconds as JSON. WHAT is
`stock` (SDPA with the T × T mask that stock fairseq makes; the mask counts) or `MECHANISM:BACKEND`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTHS = (512, 1024, 2048, 4096, 8192)
BATCH, HEADS, WIDTH = 1, 2, 64
MEBIBYTE = 2**20


def measure(what: str, length: int, dropout: float) -> dict[str, float]:
    """Returns the `mebibytes` by which one training step raises a new process's peak memory, and its `seconds`.

    Raises RuntimeError with the process's own message if it fails.
    """
    command = [sys.executable, "-m", "fairseq_gpam.benchmark.memory", what, str(length), str(dropout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024


def run_here(what: str, length: int, dropout: float) -> dict[str, float]:
    """Runs one training step in this process; see `measure`."""
    import torch
    import torch.nn.functional as F

    from fairseq_gpam.benchmark.cases import Candidate, core_pair, future_matrix

    torch.set_num_threads(1)

    def steps(at_length: int) -> Any:
        if what == "stock":
            q, k, v = (torch.randn(BATCH, HEADS, at_length, WIDTH, requires_grad=True) for _ in range(3))

            def stock() -> None:
                output = F.scaled_dot_product_attention(q, k, v, attn_mask=future_matrix(at_length), dropout_p=dropout)
                output.backward(torch.ones_like(output))

            return stock
        mechanism, _, backend = what.partition(":")
        return core_pair(
            Candidate(mechanism, backend or "auto"), at_length, BATCH, HEADS, WIDTH, dropout, with_stock=False
        )[1]

    steps(256)()
    step = steps(length)
    _reset_peak()
    before = _peak()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return {"mebibytes": _peak() - before, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(run_here(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
