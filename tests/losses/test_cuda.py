"""The CUDA kernels of the batch triplet loss: emulated here, and on a GPU where there is one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from occfast.losses.triplet import BatchTripletLoss
from occfast.native import loader, ops
from tests.emulator import build


@pytest.mark.slow
@pytest.mark.skipif(bool(build.missing()), reason=str(build.missing()))
def test_kernels_against_the_cpu_and_the_twin() -> None:
    loader.module("cpu")  # built here: no compiler is to run under the sanitizer
    check = build.HERE / "check_triplet.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", str(check)],
        env={**build.environment(), "OCCFAST_EMULATED": str(build.module())},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[:6000]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 60 and "skipped" not in done.stdout, done.stdout[-2000:]


@pytest.mark.cuda
@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_on_a_gpu(mining: str, dtype: torch.dtype) -> None:
    x, y = F.normalize(torch.randn(300, 64, dtype=dtype)), torch.arange(300) // 5
    results = []
    for device in ("cpu", "cuda", "cuda"):
        loss_fn = BatchTripletLoss(mining=mining)
        at = x.to(device, copy=True).requires_grad_()
        loss = loss_fn(at, y.to(device))
        loss.backward()
        results.append((loss.detach(), at.grad, loss_fn.stats.totals))
    cpu, first, second = results
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    tight = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    for a, b in zip(cpu[:2], first[:2], strict=True):
        torch.testing.assert_close(a, b.cpu(), **tight)
