"""Measures peak memory of the attention core in training, on the CPU each time in a new process.

It is that of `stock` (SDPA with the T × T mask that stock fairseq makes; the mask counts) or of `MECHANISM:BACKEND`.
On the CPU the mebibytes are the process's resident memory, on a GPU what PyTorch allocates there.
"""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import fairseq_gpam
from fairseq_gpam.errors import blamed_on
from fairseq_gpam.lab.benchmark.cases import core_pair, creating
from fairseq_gpam.lab.benchmark.shapes import Candidate, by_length
from fairseq_gpam.lab.benchmark.timing import Step

LENGTHS = (512, 1024, 2048, 4096, 8192)
MEBIBYTE = 2**20


def measure(what: str, length: int, dropout: float, device: str = "cpu", dtype: str = "float32") -> float:
    """Returns by how many mebibytes one training step, on the CPU in a new process, raises the peak memory."""
    if device == "cuda":
        return run_here(what, length, dropout, device, dtype)
    with blamed_on(f"{what}, {length} tokens"), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_here, what, length, dropout, device, dtype).result()
    raise AssertionError("blamed_on passes no error on")


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (clear := Path("/proc/self/clear_refs")).exists():
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


def run_here(what: str, length: int, dropout: float, device: str, dtype: str) -> float:
    """Runs one training step in this process; see `measure`."""
    fairseq_gpam.register()
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
    step()
    return _peak(device) - before
