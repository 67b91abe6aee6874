"""Start several processes that work together, as users do or at little cost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

ROOT = Path(__file__).resolve().parents[1]
_SLOW_TO_IMPORT = (
    "tests.processes",
    "torch._dynamo",
    "accelerate",
    "omegaconf",
    "occfast.train",
    "occfast.train.engine",
)


def torchrun(*command: str | Path, processes: int = 2, launcher: Sequence[str] = ("--standalone",)) -> str:
    """Run ``torchrun`` on a script, or on ``-m MODULE ...``, with one thread each; return what it printed."""
    run = [sys.executable, "-m", "torch.distributed.run", *launcher, f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*run, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def together(function: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Call a function of a module in several processes with the environment that ``torchrun`` sets, one thread each.

    A server imports what is slow once and forks them, which takes a fraction of what ``torchrun`` takes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(_SLOW_TO_IMPORT))
    multiprocessing.start_processes(
        _call, (processes, port, function, arguments), nprocs=processes, start_method="forkserver"
    )


def _call(rank: int, processes: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
    os.environ |= {name: str(value) for name, value in here.items()}
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # a process that leaves while another still talks to it aborts that one
        torch.distributed.destroy_process_group()
