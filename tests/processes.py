"""Start a command on several processes, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
