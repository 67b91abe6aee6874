"""Choice between the evaluators on a GPU, by measuring each on the map of one image.

A forecast adds up what parts of a sweep take by themselves. On a GPU they overlap, and which of host and device is the
slower one decides. So a sweep of several images measures first, for about as long as two or three of them take.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..memory import is_out_of_memory
from .dense import DenseEvaluator
from .incremental.evaluator import IncrementalEvaluator

_log = logging.getLogger("occfast")

#: Images from which a measurement is repaid; fewer are swept by what the forecast says.
WORTH_MEASURING = 4
_LONG = 1.0  # seconds of a map after which a first run is not repeated

#: Runs a function and returns the seconds until its results are there.
Clock = Callable[[Callable[[], object]], float]


def on_gpu(device: torch.device) -> Clock:
    """Return a clock for calls on a GPU, until it is done."""

    def seconds(run: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return seconds


@torch.no_grad()
def faster(
    dense: DenseEvaluator | None,
    candidates: Sequence[IncrementalEvaluator],
    image: Tensor,
    images: int,
    memory_limit: int | None,
    clock: Clock | None = None,
) -> DenseEvaluator | IncrementalEvaluator | None:
    """Return the evaluator that took less time for a map; the incremental one with CUDA graphs if they are repaid.

    Args:
        dense: Candidate; None: an incremental one is chosen.
        candidates: Incremental ones.
        image: The image, [1, C, H, W].
        images: Images of the sweep, which repay the recording of graphs.
        memory_limit: Bytes.
        clock: Measures a call; None: on the image's GPU.

    Returns:
        None if memory ran out.
    """
    fill, clock = torch.zeros_like(image), clock or on_gpu(image.device)
    try:
        times = []
        for each in candidates:
            times.append(_of_map(each, image, fill, memory_limit, clock))
            each.release()
        best, incremental = min(times), candidates[times.index(min(times))]
        if dense is not None:
            dense.start(image, fill)
            dense.tune(incremental.positions, memory_limit)
            other = incremental.positions / dense.rate if dense.rate else float("inf")
            dense.release()
            _log.info("a map takes %.4f s densely and %s s incrementally", other, [round(each, 4) for each in times])
            if other < best:
                return dense
        _choose_graphs(incremental, image, fill, best, images, memory_limit, clock)
        return incremental
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        for each in candidates:
            each.release()


def _of_map(
    evaluator: IncrementalEvaluator, image: Tensor, fill: Tensor, memory_limit: int | None, clock: Clock
) -> float:
    """Return the seconds of a map, without the first one's planning and loading of libraries."""
    run = _map(evaluator, image, fill, memory_limit)
    first = clock(run)
    return first if first > _LONG else min(first, clock(run))


def _map(evaluator: IncrementalEvaluator, image: Tensor, fill: Tensor, memory_limit: int | None) -> Callable[[], None]:
    """Return a function that sweeps an image."""

    def run() -> None:
        evaluator.start(image, fill)
        size = evaluator.tune(evaluator.positions, memory_limit)
        everything = torch.arange(evaluator.positions, device=image.device)
        for part in everything[evaluator.order(everything)].split(size):
            evaluator.outputs(part)

    return run


def _choose_graphs(
    evaluator: IncrementalEvaluator,
    image: Tensor,
    fill: Tensor,
    plain: float,
    images: int,
    memory_limit: int | None,
    clock: Clock,
) -> None:
    """Keep CUDA graphs on if they save more time than recording them costs."""
    evaluator.use_graphs(True)
    if evaluator.graphs is None:
        return
    run = _map(evaluator, image, fill, memory_limit)
    recording = clock(run) + clock(run)  # the second one records, if the first one did not
    replaying = clock(run)
    repaid = images * (plain - replaying) > recording - 2 * plain
    _log.info("a map takes %.4f s with CUDA graphs, after %.4f s of recording", replaying, recording)
    if not repaid or evaluator.graphs.replayed == 0:
        evaluator.use_graphs(False)
