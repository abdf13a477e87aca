"""Paired timing: two steps alternate in one process, so that the ratio is fair even if the machine's speed drifts."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

Step = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """The quartiles of time(ours) / time(stock) over all pairs, and both medians in seconds."""

    lower: float
    median: float
    upper: float
    stock_seconds: float
    our_seconds: float
    pairs: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def timed(step: Step, clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the seconds that one call takes by `clock`, including work queued on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def paired(
    stock: Step, ours: Step, pairs: int, warmup: int = 2, clock: Callable[[], float] = time.perf_counter
) -> Ratio:
    """Times `stock` and `ours` in pairs, after `warmup` uncounted pairs; which of them goes first alternates."""
    if pairs < 2:
        raise ValueError(f"--pairs {pairs} is not allowed; allowed: 2 or more")
    ratios, stock_times, our_times = [], [], []
    gc.collect()
    gc.disable()
    try:
        for pair in range(-warmup, pairs):
            if pair % 2:
                stock_time, our_time = timed(stock, clock), timed(ours, clock)
            else:
                our_time, stock_time = timed(ours, clock), timed(stock, clock)
            if pair >= 0:
                ratios.append(our_time / stock_time)
                stock_times.append(stock_time)
                our_times.append(our_time)
    finally:
        gc.enable()
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(lower, median, upper, statistics.median(stock_times), statistics.median(our_times), pairs)
