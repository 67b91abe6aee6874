"""Fixture that times one row of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch

#: Function that times one row of the comparison; see :func:`compare`.
Compare = Callable[..., None]


@pytest.fixture
def compare(benchmark: Any) -> Compare:
    """Return a function that times ``run`` as one row of the comparison.

    The row states who ran, on which workload, with how many items per call, and how many bytes a call must read and
    write (0: not stated).
    """

    def time(
        run: Callable[[], Any], *, workload: str, who: str, items: int, unit: str, setting: str = "", moved: int = 0
    ) -> None:
        torch.manual_seed(0)
        benchmark.extra_info.update(workload=workload, who=who, items=items, unit=unit, setting=setting, moved=moved)
        with torch.no_grad():
            run()  # builds, caches, allocates
            start = perf_counter()
            run()
            # About one second for fast functions, five rounds for slow ones.
            rounds = min(1000, max(5, int(1 / (perf_counter() - start))))
            benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)

    return time
