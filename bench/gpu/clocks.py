"""Timers of calls: time on the device and time on the host."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch


class Timing(NamedTuple):
    """Seconds per call.

    Attributes:
        device: Median time on the device; on a CPU, the median time.
        host: Median time on the host to enqueue the call, including launches.
    """

    device: float
    host: float


class Clock(Protocol):
    """Timer of functions that do the same work on different buffers."""

    def __call__(self, *functions: Callable[[], Any]) -> Timing:
        """Time the functions in turn."""


def gpu_clock(*functions: Callable[[], Any], target: float = 0.15, between: int = 20) -> Timing:
    """Time calls on a GPU.

    Several calls run between two events, so that launches which take longer on the host than on the device do not count
    as device time while the queue is full. Pass several functions if one buffer would fit into the cache.

    Args:
        functions: Functions, called in turn.
        target: Approximate total time in seconds.
        between: Number of calls between two events.
    """
    turn = itertools.cycle(functions)
    for _ in range(max(3, len(functions))):
        next(turn)()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> tuple[float, float]:
        # Hold the device until the calls are enqueued, so that the queue does not run empty.
        torch.cuda._sleep(5_000_000)
        start.record()
        began = time.perf_counter()
        for _ in range(between):
            next(turn)()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / between, host / between

    once, _ = timed()
    repeats = max(5, min(50, int(target / max(once * between, 1e-6))))
    device, host = zip(*(timed() for _ in range(repeats)), strict=True)
    return Timing(statistics.median(device), statistics.median(host))


def cpu_clock(*functions: Callable[[], Any]) -> Timing:
    """Return the median of three calls after a warm-up; for dry runs, not for measurements."""
    times = []
    for function in [functions[0], *functions, functions[0], functions[0]][:4]:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    found = statistics.median(times[1:])
    return Timing(found, found)
