"""``import occfast``, the occluder and the losses need PyTorch and NumPy alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHERS = (
    "scipy",
    "PIL",
    "matplotlib",
    "rich",
    "skimage",
    "typer",
    "jinja2",
    "yaml",
    "safetensors",
    "omegaconf",
    "tqdm",
)


def python(code: str, blocked: tuple[str, ...] = OTHERS) -> str:
    """Run a program to which some packages are not installed."""
    program = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_torch_and_numpy_alone() -> None:
    out = python(
        "import torch; before = set(sys.modules); import occfast; import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(out)}
    assert "occfast" in loaded and not loaded & set(OTHERS)
    # Nothing but occfast, PyTorch, NumPy and the standard library.
    assert loaded <= {"occfast", "torch", "numpy", *sys.stdlib_module_names}, loaded


def test_subpackages_are_imported_at_first_use() -> None:
    out = python(
        "import occfast; rooms = [n for n in ('data', 'evaluate', 'models', 'pdsn', 'reproduce', 'train') "
        "if 'occfast.' + n in sys.modules]; print(rooms)"
    )
    assert out == "[]"


def test_every_documented_subpackage_is_an_attribute() -> None:
    table = (ROOT / "docs" / "api" / "index.md").read_text()
    names = sorted(set(re.findall(r"(?m)^\| \[`occfast\.(\w+)`\]", table)))
    folders = {path.parent.name for path in (ROOT / "occfast").glob("*/__init__.py")}
    assert set(names) == folders - {"cli", "native"}
    out = python(f"import occfast; print(all(n in dir(occfast) and getattr(occfast, n).__doc__ for n in {names}))", ())
    assert out == "True"


def test_the_occluder_and_the_losses_work_without_other_packages() -> None:
    out = python(
        """
import torch, occfast
occluder = occfast.NoisyOccluder(size=(5, 6), seed=1)
images = torch.rand(4, 3, 20, 16)
out = occluder(images, torch.arange(4))
assert out.shape == images.shape and not torch.equal(out, images)
loss = occfast.BatchTripletLoss(margin=0.2)
features = torch.randn(8, 16, requires_grad=True)
found = loss(features, torch.arange(8) // 2)
found.backward()
assert torch.isfinite(found) and features.grad.abs().sum() > 0
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(960, 3)).eval()
m = occfast.occlusion_map(model, images, [0, 1, 2, 0], (5, 5), progress=False, skip_misclassified=False)
assert m.distribution(0.4).probabilities.shape == (20, 16)
print("works")
"""
    )
    assert out == "works"


def test_a_missing_package_is_named_before_the_work() -> None:
    out = python(
        """
import torch, occfast
calls = []
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(320, 3)).eval()
model.register_forward_hook(lambda *a: calls.append(1))
images = torch.rand(4, 1, 20, 16)
m = occfast.occlusion_map(model, images, [0, 1, 2, 0], (5, 5), stride=4, progress=False, skip_misclassified=False)
calls.clear()
for call in (
    lambda: occfast.occlusion_map(model, images, [0, 1, 2, 0], (5, 5), method="adaptive"),
    lambda: occfast.occlusion_map(model, images, [0, 1, 2, 0], (5, 5), method="sampled"),
    lambda: m.plot(),
    lambda: m.save("map.png"),
    lambda: m.to_html("map.html"),
):
    try:
        call()
    except occfast.MissingPackage as error:
        print(error)
assert not calls
"""
    )
    assert out.splitlines() == [
        "method='adaptive' needs the package scipy: pip install scipy",
        "method='sampled' needs the package scipy: pip install scipy",
        "a picture needs the package matplotlib: pip install matplotlib",
        "a picture needs the package matplotlib: pip install matplotlib",
        "a page needs the package jinja2: pip install jinja2",
    ]


def test_dir_shows_public_names_only() -> None:
    import occfast

    names = dir(occfast)
    assert names == sorted(occfast.__all__)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    for name in ("explain", "Adaptive", "Sampled", "occlude", "losses", "reproduce", "train"):
        assert name in names
    assert occfast.reproduce.__name__ == "occfast.reproduce" and occfast.occlude.__name__ == "occfast.occlude"
    for name in names:
        assert getattr(occfast, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    import pytest

    import occfast

    with pytest.raises(AttributeError, match="has no attribute 'importlib_'"):
        occfast.importlib_  # noqa: B018
