"""The occluder needs PyTorch and NumPy alone."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"PIL", "scipy", "matplotlib", "yaml", "typer", "rich", "sklearn", "cv2"}:
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())
import torch
import occfast.occlude as o

images, points = torch.zeros(2, 3, 60, 60), torch.tensor([[[20, 20], [20, 40], [30, 30], [42, 22], [42, 38.0]]] * 2)
o.NoisyOccluder((9, 9))(images, torch.arange(2))
for name in ("noisy:5x5", "block:3x4@nose", "eyes+sunglasses", "mask"):
    assert o.named_occlusion(name)(images, points).mask.any()
assert "occfast.data" not in sys.modules
"""


def test_occlusions_need_torch_and_numpy_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
