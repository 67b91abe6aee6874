"""Clocks: the time of a call on the device, and the time that the host spends on it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch


class Timing(NamedTuple):
    """Seconds a call.

    Attributes:
        device: Median on the device; on a CPU the median in all.
        host: Median that the host needs to enqueue the call, launches included.
    """

    device: float
    host: float


class Clock(Protocol):
    """Times functions that do the same work on different buffers, in turn."""

    def __call__(self, *functions: Callable[[], Any]) -> Timing:
        """Time the functions in turn."""


def gpu_clock(*functions: Callable[[], Any], target: float = 0.15, between: int = 20) -> Timing:
    """Time calls on a GPU.

    ``between`` calls lie between two events, so that a launch that takes longer on the host than on the device does not
    count as device time while the queue is full.  Give several functions where one buffer would fit in the cache.

    Args:
        functions: Called in turn.
        target: Seconds of calls to take, about.
        between: Calls between two events.
    """
    turn = itertools.cycle(functions)
    for _ in range(max(3, len(functions))):
        next(turn)()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> tuple[float, float]:
        # The queue must not run dry at the beginning: this holds the device until the calls are enqueued.
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
    """Median of three calls after one.  For dry runs: this is no measurement."""
    times = []
    for function in [functions[0], *functions, functions[0], functions[0]][:4]:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    found = statistics.median(times[1:])
    return Timing(found, found)
