"""What a sweep takes from the machine, read from the operating system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SWEEP = r"""
import json, re, torch, occfast
from pathlib import Path
from occfast.models import PaperNet
# (ru_maxrss would begin with that of the process that this one was forked from.)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
torch.manual_seed(0)
model = PaperNet(1000).eval()
images, labels = torch.rand({images}, 1, 100, 100), torch.zeros({images}, dtype=torch.long)
warm = occfast.occlusion_map(model, images[:1], labels[:1], 20, stride=25, method="{method}", progress=False,
                             skip_misclassified=False)
before = peak()
m = occfast.occlusion_map(model, images, labels, 40, stride={stride}, method="{method}", memory_limit="{limit}",
                          progress=False, skip_misclassified=False)
after = peak()
print(json.dumps([m.method, m.n_evaluations, (after - before) * 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM of Linux")
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
    """The paper's network at 100×100 (W1), 40×40: what the process grows by at most, in a process of its own."""
    code = _SWEEP.format(method=method, limit=limit, images=2, stride=stride)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    used, evaluations, grown = json.loads(done.stdout)
    assert (used, evaluations) == (method, 2 * len(range(0, 100, stride)) ** 2)
    assert 0 < grown <= int(limit[:3]) << 20
