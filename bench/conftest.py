from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
import torch

#: Times one row of the comparison, see :func:`compare`.
Compare = Callable[..., None]


@pytest.fixture
def compare(benchmark: Any) -> Compare:
    """Time ``run`` as one row: who did it, on which workload, how many items a call, and how many bytes
    it must read and write (0: not stated).
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
            # About a second of what takes microseconds, five rounds of what takes long.
            rounds = min(1000, max(5, int(1 / (perf_counter() - start))))
            benchmark.pedantic(run, rounds=rounds, iterations=1, warmup_rounds=1)

    return time
