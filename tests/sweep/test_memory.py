"""Memory of a sweep, as the operating system reports it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A heap that keeps freed memory hides the memory of a sweep. It is trimmed first, and a tensor of 96 MiB shows that
# the measurement sees allocations.
_SWEEP = r"""
import json, torch, occfast
from bench.sweep import Peak, trim
from occfast.models import PaperNet
torch.manual_seed(0)
model = PaperNet(1000).eval()
images, labels = torch.rand({images}, 1, 100, 100), torch.zeros({images}, dtype=torch.long)
warm = occfast.occlusion_map(model, images[:1], labels[:1], 20, stride=25, method="{method}", progress=False,
                             skip_misclassified=False)
trim()
with Peak() as sweep:
    m = occfast.occlusion_map(model, images, labels, 40, stride={stride}, method="{method}", memory_limit="{limit}",
                              progress=False, skip_misclassified=False)
trim()
with Peak() as control:
    torch.ones(24 << 20).add_(1)
print(json.dumps([m.method, m.n_evaluations, sweep.mib, control.mib]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads statm of Linux")
@pytest.mark.parametrize(
    ("method", "limit", "stride"),
    [
        ("incremental", "512MiB", 8),
        ("dense", "128MiB", 12),
        *(
            pytest.param(method, limit, 4, marks=pytest.mark.slow)
            for method in ("incremental", "dense")
            for limit in ("128MiB", "512MiB")
        ),
    ],
)
def test_peak_memory_stays_within_the_limit(method: str, limit: str, stride: int) -> None:
    """Measure the peak growth of a separate process with the paper's network at 100×100 (W1), 40×40."""
    code = _SWEEP.format(method=method, limit=limit, images=2, stride=stride)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    used, evaluations, grown, control = json.loads(done.stdout)
    assert (used, evaluations) == (method, 2 * len(range(0, 100, stride)) ** 2)
    assert 0 < grown <= int(limit[:3])
    assert 64 < control < 128
