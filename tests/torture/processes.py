"""Commands in forked children of a process that has imported everything, so that a kill costs tenths of a second.

A child counts its file operations under the output folder (opening for writing, renaming, removing, making folders,
fsync). It can be told to kill itself just before one of them, which hits every moment between two states of the disk;
the parent kills at random times too, which hits the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from occfast import cli
from occfast.sweep import checkpoint

_OPERATIONS = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: Seconds between two checkpoints of a sweep; by default they are 30.
CHECKPOINT_EVERY = 0.05


class Child:
    """A running command.

    Args:
        words: Command line of occfast.
        work: Working directory.
        folder: Output, whose operations count.
        log: File for standard output and error.
        environment: Further variables.
        at: Number of the operation before which the child kills itself; None: never.
    """

    def __init__(
        self, words: list[str], work: Path, folder: Path, log: Path, environment: dict[str, str], at: int | None = None
    ) -> None:
        self.log, self.counted = log, log.with_suffix(".count")
        self.counted.unlink(missing_ok=True)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, work, folder, environment, at)

    def _run(self, words: list[str], work: Path, folder: Path, environment: dict[str, str], at: int | None) -> None:
        code = 70
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for stream in (1, 2):
                os.dup2(out, stream)
            os.chdir(work)
            os.environ.update({name: value.replace("{}", str(folder)) for name, value in environment.items()})
            checkpoint.Checkpoint.due = lambda self: (  # type: ignore[method-assign]
                time.monotonic() - self._last >= CHECKPOINT_EVERY
            )
            count = _count(folder, at)
            sys.argv = ["occfast", *words]
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except BaseException:
                traceback.print_exc()
            self.counted.write_text(str(count[0]))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit status as :mod:`subprocess` does (negative: a signal), or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float) -> int | None:
        """Wait at most so long; return the status or None."""
        until, pause = time.monotonic() + seconds, 0.001
        while self.poll() is None and time.monotonic() < until:
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(0.02, 1.5 * pause)
        return self.status

    def kill(self, *, group: bool) -> None:
        """Send SIGKILL to the child, or to it and all programs that it started, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL) if group else os.kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.001)

    def operations(self) -> int:
        """Return how many operations a child counted that was not killed."""
        return int(self.counted.read_text())

    def said(self) -> str:
        """Return its output."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _count(folder: Path, at: int | None) -> list[int]:
    """Count this process's operations under a folder from now on, and end it before number ``at``."""
    count, root, me, fsync = [0], str(folder), os.getpid(), os.fsync

    def next_one() -> None:
        if os.getpid() != me:
            return
        count[0] += 1
        if count[0] == at:
            os.kill(me, signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, flags = arguments[0], arguments[2]
            if not isinstance(path, str) or not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in _OPERATIONS:
            path = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else ""
        else:
            return
        if str(path).startswith(root):
            next_one()

    def counted_fsync(handle: int) -> None:
        next_one()
        fsync(handle)

    sys.addaudithook(hook)
    os.fsync = counted_fsync  # type: ignore[assignment]
    return count


def warm() -> None:
    """Import what the commands import, before the first fork."""
    import importlib

    import matplotlib
    import torch

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    names = (
        *("occfast.sweep", "occfast.sweep.page", "occfast.train", "occfast.evaluate", "occfast.evaluate.page"),
        *("occfast.data.convert", "occfast.reproduce", "occfast.pdsn", "matplotlib.figure", "omegaconf", "accelerate"),
        *("scipy.special", "scipy.linalg", "rich.progress", "jinja2", "torch.utils.cpp_extension"),
        *("matplotlib.backends.backend_agg", "torch.fx", "safetensors.torch", "torch.distributed"),
    )
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
