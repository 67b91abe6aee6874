"""One side of ``bench.revisions``: times the rows of the revision in the current folder when it is told to.

It runs by its path with another revision's ``bench`` and ``occfast`` on the search path, so it relies on names that
older revisions have too: the arguments of ``compare`` in their conftest, and the contenders of their ``bench.sweep``.
"""

from __future__ import annotations

import importlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, TextIO

import pytest
import torch

#: Sweeps of ``bench.sweep``: workload, occluder, positions of the image.
SWEEPS = (("paper", (20, 20), 1000), ("paper", (20, 40), 1000), ("paper", (40, 40), 1000), ("iresnet18", (20, 40), 256))
_SHORTEST = 0.1  # seconds that a timed call takes at least; faster functions are called several times


class Rows:
    """Offers rows to the other end of a channel, and times each as often as that end asks."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel

    def offer(self, name: str, run: Callable[[], Any]) -> None:
        """Offer ``run`` as the row ``name``, and send its seconds for each "time" that comes."""
        with torch.no_grad():
            run()  # builds, caches, allocates
            started = perf_counter()
            run()
            calls = max(1, round(_SHORTEST / (perf_counter() - started)))
            self._say(name)
            while self._channel.readline().strip() == "time":
                started = perf_counter()
                for _ in range(calls):
                    run()
                self._say((perf_counter() - started) / calls)

    def _say(self, value: Any) -> None:
        self._channel.write(json.dumps(value) + "\n")
        self._channel.flush()


class Benchmark:
    """Stands in for the fixture of pytest-benchmark that the rows of ``python -m bench`` use."""

    def __init__(self, rows: Rows) -> None:
        self.extra_info: dict[str, Any] = {}
        self._rows = rows

    def pedantic(self, run: Callable[[], Any], **_: int) -> None:
        """Offer ``run`` in place of timing it."""
        about = self.extra_info
        name = " · ".join(filter(None, (about["workload"], about["who"], about["setting"])))
        self._rows.offer(name.replace("grey", "gray"), run)  # spelled so before the project took American spelling


class Plugin:
    """Plugin of pytest that provides the fixture."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @pytest.fixture
    def benchmark(self) -> Iterator[Benchmark]:
        """Return the stand-in for pytest-benchmark's fixture."""
        yield Benchmark(self._rows)


def sweeps(rows: Rows) -> None:
    sweep: Any = importlib.import_module("bench.sweep")
    lively = getattr(sweep, "lively", None) or sweep.networks.lively  # the tests' networks served it once
    for workload, occluder, count in SWEEPS:
        build, shape = sweep.WORKLOADS[workload]
        torch.manual_seed(0)
        model = lively(build())
        image = torch.rand(1, *shape)
        grid = sweep.SweepGrid.over(shape[1:], occluder)
        positions = torch.randperm(grid.positions)[:count].sort().values
        steps = list(sweep.STEPS.values())[-1]
        with torch.no_grad():
            evaluator = sweep.IncrementalEvaluator(model, grid, image, expected=count, **steps)
        name = f"bench.sweep {workload} {occluder[0]}x{occluder[1]}, {count:,} positions"
        rows.offer(f"{name} · occfast", lambda e=evaluator, i=image, p=positions: sweep.incremental(e, i, p))
        last = model.to(memory_format=torch.channels_last)
        rows.offer(
            f"{name} · plain PyTorch, batch 8, 64 positions",
            lambda m=last, i=image, g=grid: sweep.dense(m, i, g, 8, False, 64),
        )


def main() -> int:
    descriptor, select, parts = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    rows = Rows(socket.socket(fileno=descriptor).makefile("rw"))
    if "rows" in parts:
        options = ["-o", "addopts=", "-o", "python_files=compare_*.py", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        status = pytest.main(["bench", "-q", *options, "-k", select], plugins=[Plugin(rows)])
        if status != 0:
            return int(status)
    if "sweep" in parts:
        sweeps(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
