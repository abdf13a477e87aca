"""Measures peak memory of the attention core in training, on the CPU each time in a new process.

`python -m fairseq_gpam.lab.benchmark.memory WHAT LENGTH DROPOUT DEVICE DTYPE` prints mebibytes and seconds as JSON.
WHAT is `stock` (SDPA with the T × T mask that stock fairseq makes; the mask counts) or `MECHANISM:BACKEND`. On the CPU
the mebibytes are the process's resident memory, on a GPU what PyTorch allocates there.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from fairseq_gpam.lab.benchmark.cases import core_pair, creating
from fairseq_gpam.lab.benchmark.shapes import Candidate, by_length
from fairseq_gpam.lab.benchmark.timing import Step

LENGTHS = (512, 1024, 2048, 4096, 8192)
MEBIBYTE = 2**20


def measure(what: str, length: int, dropout: float, device: str = "cpu", dtype: str = "float32") -> dict[str, float]:
    """Returns the `mebibytes` by which one training step raises the peak memory, and its `seconds`.

    On the CPU the step runs in a new process; raises RuntimeError with that process's own message if it fails.
    """
    if device == "cuda":
        return run_here(what, length, dropout, device, dtype)
    words = [what, str(length), str(dropout), device, dtype]
    command = [sys.executable, "-m", "fairseq_gpam.lab.benchmark.memory", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024


def run_here(what: str, length: int, dropout: float, device: str, dtype: str) -> dict[str, float]:
    """Runs one training step in this process; see `measure`."""
    torch.set_num_threads(1)

    mechanism, _, backend = ("softmax" if what == "stock" else what).partition(":")

    def steps(at_length: int) -> Step:
        stock, ours = core_pair(Candidate(mechanism, backend or "auto"), by_length(at_length), dropout)
        return stock if what == "stock" else ours

    with creating(device, getattr(torch, dtype)):
        steps(256)()
        step = steps(length)
    _reset_peak(device)
    before = _peak(device)
    start = time.perf_counter()
    step()
    after = _peak(device)
    return {"mebibytes": after - before, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(run_here(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])))
