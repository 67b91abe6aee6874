"""One sweep shared by several processes (``torch.distributed``).

Every process makes the same calls in the same order. Each position is scored by exactly one process and the others add
zeros, so the sum of their parts equals the result of one process to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ProcessLost

_T = TypeVar("_T")


class Processes:
    """Processes that share a sweep; by default there is one.

    Args:
        group: A process group; None: the default group if ``torch.distributed`` is initialized; False: this process
            alone.

    Attributes:
        rank, size: Number of this process, and number of processes.
        waited: Seconds spent waiting for the others.

    Raises:
        ValueError: ``torch.distributed`` is not initialized, or this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | Literal[False] | None = None) -> None:
        there = dist.is_available() and dist.is_initialized()
        if group is not None and group is not False and not there:
            raise ValueError("group: expected None or False where torch.distributed is not initialized, got a group")
        self._group = group or None
        alone = group is False or not there
        self.rank: int = 0 if alone else dist.get_rank(self._group)
        self.size: int = 1 if alone else dist.get_world_size(self._group)
        if self.rank < 0:
            raise ValueError("group: this process is not in it")
        self.waited = 0.0

    def __bool__(self) -> bool:
        return self.size > 1

    def mine(self, count: int) -> range:
        """Return this process's contiguous share of ``count`` pieces of work."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add(self, part: Tensor) -> None:
        """Replace each process's contiguous tensor, in place, by the sum over all."""
        if self and part.numel():
            with self._talking():
                shared = self._carried(part)
                dist.all_reduce(shared, group=self._group)
                if shared is not part:
                    part.copy_(shared)

    def broadcast(self, value: _T) -> _T:
        """Return the first process's value in all processes."""
        if not self:
            return value
        with self._talking():
            box = [value]
            dist.broadcast_object_list(box, group=self._group, group_src=0)
            return box[0]

    def all(self, value: _T) -> list[_T]:
        """Return the list of all processes' values in all processes."""
        if not self:
            return [value]
        with self._talking():
            values: list[Any] = [None] * self.size
            dist.all_gather_object(values, value, group=self._group)
            return values

    def assert_equal(self, values: dict[str, Any]) -> None:
        """Raise ValueError in all processes if their values differ; the message names them."""
        for rank, theirs in enumerate(self.all(values)):
            for name in sorted(values.keys() | theirs.keys()):
                if values.get(name) != theirs.get(name):
                    raise ValueError(
                        f"{name}: expected the same in all processes, got {theirs.get(name)!r} in process {rank} and "
                        f"{values.get(name)!r} in process {self.rank}"
                    )

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise ProcessLost in the other processes if one raises in this block, instead of leaving them waiting."""
        if not self:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except ProcessLost:
            raise
        except BaseException as error:
            failure = error
        try:
            reports = self.all(None if failure is None else f"{type(failure).__name__}: {failure}")
        except ProcessLost:
            if failure is not None:
                raise failure from None
            raise
        if failure is not None:
            raise failure
        for rank, text in enumerate(reports):
            if text is not None:
                raise ProcessLost(f"process {rank} of {self.size} gave up: {text}")

    @contextmanager
    def _talking(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except RuntimeError as error:  # what gloo and NCCL raise for a closed connection and for a timeout
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ProcessLost(
                f"process {self.rank} of {self.size} lost another one ({reason[:200]}); what the checkpoint holds can "
                "be resumed by any number of processes"
            ) from error
        finally:
            self.waited += time.perf_counter() - started

    def _carried(self, part: Tensor) -> Tensor:
        """Return the tensor on a device that the group's backend supports."""
        backend = dist.get_backend(self._group)
        if backend == "nccl" and part.device.type != "cuda":
            return part.to(torch.device("cuda", torch.cuda.current_device()))
        if backend == "gloo" and part.device.type == "cuda":
            return part.cpu()
        return part
