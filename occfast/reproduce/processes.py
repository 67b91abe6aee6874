"""The processes that share a graph of steps, and how each of them notices that another one is lost.

Processes share a folder and nothing else between two steps. Each of them rewrites a small file there every few seconds;
one whose file stops changing, or that reports an error, ends the run in all others.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from .. import checks
from ..errors import DataError, ProcessLost
from ..files import read_json, write_atomically

if TYPE_CHECKING:
    from .graph import Step

#: Seconds between two beats, without a beat until a process counts as lost, and until it must have started.
BEAT, SILENCE, START = 2.0, 120.0, 600.0
#: Seconds that a process has to notice by itself that it waits for a lost one.
GRACE = 10.0


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, as ``torchrun`` describes them in the environment; by default this one alone.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, and of the GPU that it uses.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """Read ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``."""
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        values = {}
        for name, default in defaults.items():
            try:
                values[name] = int(os.environ.get(name, default))
            except ValueError as error:
                raise ValueError(f"{name}: expected a whole number, got {os.environ[name]!r}") from error
        rank, size, local_rank = values.values()
        if not 0 <= rank < size:
            raise ValueError(f"RANK: expected a number from 0 to WORLD_SIZE - 1 = {size - 1}, got {rank}")
        return cls(rank, size, local_rank)

    def device(self, requested: str) -> str:
        """Return the device of this process for "auto", "cpu", "cuda" or "cuda:N"."""
        if requested == "auto":
            requested = "cuda" if torch.cuda.is_available() else "cpu"
        if requested == "cuda":
            requested = f"cuda:{self.local_rank}"
        return str(checks.device(requested))

    def share(self, steps: Sequence[Step]) -> list[Step]:
        """Return this process's share of the steps: the longest first, each to the process with the least work."""
        load = [0.0] * self.size
        mine = []
        for step in sorted(steps, key=lambda step: -step.work.flops / step.work.speedup):
            rank = load.index(min(load))
            load[rank] += step.work.flops / step.work.speedup
            if rank == self.rank:
                mine.append(step)
        return mine


@dataclass
class _Peer:
    """Knowledge about another process."""

    stale: dict[str, Any] | None  # what its file held when this process started
    beat: dict[str, Any] | None = None
    changed: float = field(default_factory=time.monotonic)


class Heartbeat:
    """Shows the other processes that this one is alive, and raises an error where one of them is not.

    Use it as a context manager; with a group of one process it does nothing.

    Args:
        folder: shared by all processes; each writes ``.process-RANK.json`` there.
        group: the processes.
    """

    def __init__(self, folder: Path, group: ProcessGroup) -> None:
        self.folder, self.group = folder, group
        self._mine: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "count": 0,
            "meetings": 0,
            "status": "running",
            "error": "",
        }
        self._peers: dict[int, _Peer] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._started = time.monotonic()
        self._watched = False
        self._lost: float | None = None  # when another process was found lost
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self.group.size > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = (rank for rank in range(self.group.size) if rank != self.group.rank)
            self._peers = {rank: _Peer(self._read(rank)) for rank in others}
            self._write()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.group.size > 1:
            self._stop.set()
            self._thread.join()
            text = "" if kind is None else f"{kind.__name__}: {error}".removesuffix(": ")
            self._write(status="finished" if kind is None else "failed", error=text)

    def check(self) -> None:
        """Raise ProcessLost if another process failed, died, or shows no sign of life."""
        now = time.monotonic()
        for rank, peer in self._peers.items():
            name = f"process {rank} of {self.group.size}"
            beat = self._read(rank)
            if beat is None or beat == peer.stale:  # perhaps left by an earlier run
                if now - self._started > START:
                    raise ProcessLost(f"{name} did not start within {START / 60:g} minutes")
                continue
            if beat != peer.beat:
                peer.beat, peer.changed = beat, now
            if beat["status"] == "failed":
                raise ProcessLost(f"{name} stopped: {beat['error']}")
            if beat["status"] == "finished":
                continue
            if beat["host"] == self._mine["host"] and not _alive(beat["pid"]):
                raise ProcessLost(f"{name} died (pid {beat['pid']})")
            if now - peer.changed > SILENCE:
                raise ProcessLost(f"{name} on {beat['host']} has shown no sign of life for {SILENCE:g} s")

    def meet(self) -> None:
        """Wait until all processes have called this as often as this one."""
        if self.group.size == 1:
            return
        self._write(meetings=self._mine["meetings"] + 1)
        pause = 0.02
        while True:
            self.check()
            late = {
                rank: peer.beat
                for rank, peer in self._peers.items()
                if peer.beat is None or peer.beat["meetings"] < self._mine["meetings"]
            }
            if not late:
                return
            for rank, beat in late.items():
                if beat is not None and beat["status"] == "finished":
                    raise ProcessLost(f"process {rank} of {self.group.size} ended early; start all with one command")
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)

    @property
    def alone(self) -> bool:
        """Whether all other processes have finished."""
        return all(peer.beat is not None and peer.beat["status"] == "finished" for peer in self._peers.values())

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """End this process if another one is lost during the block, in which PyTorch may wait for it without end.

        A connection that breaks is an error at once; a process that died before it connected gives none.
        """
        self._lost, self._watched = None, True
        try:
            yield
        finally:
            self._watched = False

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            self._write()
            if not self._watched:
                continue
            try:
                self.check()
            except ProcessLost as lost:
                now = time.monotonic()
                self._lost = now if self._lost is None else self._lost
                if now - self._lost > GRACE and self._watched:
                    self._write(status="failed", error=f"ProcessLost: {lost}")
                    print(f"occfast: {lost}; --resume continues", file=sys.stderr, flush=True)
                    os._exit(1)  # the thread that waits can't be interrupted

    def _write(self, **changes: Any) -> None:
        with self._lock:
            self._mine.update(changes, count=self._mine["count"] + 1)
            try:
                write_atomically(self._path(self.group.rank), json.dumps(self._mine).encode())
            except OSError:  # a full disk; the step at hand reports it
                return

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = read_json(self._path(rank))
        except (OSError, DataError):
            return None
        return found if self._mine.keys() <= found.keys() else None

    def _path(self, rank: int) -> Path:
        return self.folder / f".process-{rank}.json"


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")
