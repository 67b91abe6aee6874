"""CUDA graphs for batches of the same shape, which save the cost of launching each call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("occfast")

_MOST = 256  # graphs; batches of further shapes run call by call

#: Records a function; returns its result and a function that replays it into the same result.
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]


class OnCuda:
    """Captures CUDA graphs. Their intermediate results share one pool of memory, since one graph runs at a time.

    ``torch.cuda.graph`` would wait for the device, collect garbage and empty the cache of free memory for each graph,
    which takes longer than a batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Capture a function; return its output and the function that replays it."""
        graph = torch.cuda.CUDAGraph()
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                out = function()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the capture is broken; ending it leaves the stream usable
                    graph.capture_end()
                raise
            graph.capture_end()
        outside.wait_stream(self._stream)
        return out, graph.replay


class Graphs:
    """Runs batches of indices [3, M] and replays those whose shape occurred before.

    The first run of a shape warms up the libraries, the second is recorded. A recording holds addresses: call
    :meth:`forget` before moving memory that ``run`` reads.

    Args:
        run: Computes outputs [M, K] from a group and indices without reading values on the host.
        new_capture: Creates a :data:`Capture`, at first and after :meth:`forget`.

    Attributes:
        replayed: Number of batches that were replayed.
    """

    def __init__(self, run: Callable[[Any, Tensor], Tensor], new_capture: Callable[[], Capture]) -> None:
        self._run, self._new_capture = run, new_capture
        self.replayed = 0
        self._failed = False
        self.forget()

    def forget(self) -> None:
        """Drop all recordings."""
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Tensor, Tensor, Callable[[], object]]] = {}
        self._capture: Capture | None = None

    def __call__(self, group: Hashable, indices: Tensor) -> Tensor:
        """Return the outputs of a batch; the next call may overwrite them."""
        shape = (group, indices.shape[1])
        if shape in self._seen and shape not in self._graphs and len(self._graphs) < _MOST and not self._failed:
            self._record(shape, group, indices)
        if shape not in self._graphs:
            self._seen.add(shape)
            return self._run(group, indices)
        given, out, replay = self._graphs[shape]
        given.copy_(indices)
        replay()
        self.replayed += 1
        return out

    def _record(self, shape: Hashable, group: Hashable, indices: Tensor) -> None:
        given = indices.clone()
        try:
            self._capture = self._capture or self._new_capture()
            self._graphs[shape] = (given, *self._capture(lambda: self._run(group, given)))
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            _log.warning("the sweep runs without CUDA graphs, capturing one failed: %s", reason)
            self._failed = True
            self.forget()
