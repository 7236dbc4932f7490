"""Seconds of a call. On a GPU by its own events, so that the clock is where the work is."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median

import torch


def seconds(work: Callable[[], object], device: str) -> float:
    """One call, from an idle device to an idle device."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def median_seconds(work: Callable[[], object], device: str, calls: int, warmup: int = 2) -> float:
    """The median of `calls` calls after `warmup` others."""
    for _ in range(warmup):
        work()
    return median(seconds(work, device) for _ in range(calls))


def fitting(clock: Callable[[], float], budget: float, most: int = 50) -> list[float]:
    """Seconds of as many calls as fit into `budget` seconds, 3 at least. clock: makes a call and gives its seconds."""
    times = [clock()]
    calls = min(most, max(3, int(budget / max(times[0], 1e-6))))
    return times + [clock() for _ in range(calls - 1)]


def free(device: str, cycles: bool = True) -> None:
    """Give back what no longer has an owner, on a GPU; on a CPU memory is not what is short.

    cycles: also look for owners that own each other, which takes a third of a second once large packages are there.
    """
    if device.startswith("cuda"):
        if cycles:
            gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def held(device: str) -> int:
    """Bytes that tensors hold on a GPU; 0 on a CPU, where torch does not count."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def peak(device: str) -> int:
    """The most bytes that tensors held since `forget_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


def forget_peak(device: str) -> None:
    """Start to watch for the peak anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def largest_block(work: Callable[[], object], device: str) -> int | None:
    """Bytes of the largest single allocation of a call, on a GPU; None elsewhere."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    torch.cuda.memory._record_memory_history(max_entries=100_000, context=None)
    try:
        work()
        torch.cuda.synchronize(device)
        traces = torch.cuda.memory._snapshot()["device_traces"]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    return max((entry["size"] for trace in traces for entry in trace if entry["action"] == "alloc"), default=0)
