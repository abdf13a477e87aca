"""Paired timing: two steps alternate in one process, so that the ratio is fair even if the machine's speed drifts."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]


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
) -> dict[str, float]:
    """Times `stock` and `ours` in pairs, after `warmup` uncounted pairs; which of them goes first alternates.

    Returns the quartiles of time(ours) / time(stock) over all pairs, both medians in seconds, and the number of pairs.
    """
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
    seconds = {"stock_seconds": statistics.median(stock_times), "our_seconds": statistics.median(our_times)}
    return {"lower": lower, "median": median, "upper": upper, **seconds, "pairs": pairs}
