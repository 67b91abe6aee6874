"""The preset that is found by trying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from occfast.cli.networks import load_recognizer
from occfast.data import Folder
from occfast.data.resize import Resized
from occfast.evaluate import try_presets
from occfast.models import Recognizer, load
from tests.evaluate.test_protocols import Done, occfast  # noqa: F401 - a fixture


class Saturating(nn.Module):
    """Tells people apart while its input stays within about [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(7)

    def forward(self, x: Tensor) -> Tensor:
        return (self.pool(torch.tanh(2 * x)) + 0.01).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, place = np.random.default_rng(0), tmp_path_factory.mktemp("faces")
    for k in range(12):
        (place / f"person {k:02d}").mkdir()
        pattern = random.integers(0, 200, (7, 7, 3)).repeat(16, 0).repeat(16, 1)
        for j in range(3):
            pixels = np.clip(pattern + random.integers(-60, 60, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"person {k:02d}" / f"{j}.png")
    return place


def prepare(source, preset):
    return Resized(source, preset.preprocessing.size, gray=False)


def test_the_right_scaling_separates_best(folder: Path) -> None:
    found = Recognizer(Saturating().eval(), "function", channels=3, size=(112, 112))
    trials = try_presets(found, Folder(folder), prepare, progress=False)
    by_name = {trial.preset: trial for trial in trials}
    assert trials[0].preset in ("insightface", "adaface")
    assert trials[0].separation > 1.5 * by_name["arcface"].separation > 0
    for name in ("facenet", "dlib", "sphereface"):
        assert by_name[name].separation is None and "another size" in str(by_name[name])


def test_no_preset_fits(folder: Path) -> None:
    gray = Recognizer(Saturating().eval(), "function", channels=1, size=(100, 100))
    with pytest.raises(ValueError, match="preset: none can be tried: insightface: another size"):
        try_presets(gray, Folder(folder), prepare, progress=False)


def test_one_image_each(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / name / "0.png")
    found = Recognizer(Saturating().eval(), "function")
    with pytest.raises(ValueError, match="preset: auto needs faces of at least two people with two images each"):
        try_presets(found, Folder(tmp_path), prepare, progress=False)


def test_scalings_of_channels_reach_the_network(folder: Path, tmp_path: Path) -> None:
    torch.jit.script(Saturating()).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    given = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}
    found, how = load_recognizer(str(tmp_path / "net.pt"), Folder(folder), **given)  # type: ignore[arg-type]
    image = Folder(folder)[0].image[None]
    mean, std = (torch.tensor([float(v) for v in text.split(",")])[:, None, None] for text in given.values())
    torch.testing.assert_close(how(image), (image.float() / 255 - mean) / std)
    assert torch.equal(found.embed(how(image)), load(tmp_path / "net.pt").embed(how(image)))
    for wrong in ("0.5,0.5", "x", ""):
        with pytest.raises(ValueError, match="--mean: expected a number, or three"):
            load_recognizer(str(tmp_path / "net.pt"), Folder(folder), mean=wrong)


def test_auto_on_the_command_line(folder: Path, tmp_path: Path, occfast) -> None:  # noqa: F811
    torch.jit.script(Saturating()).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    done: Done = occfast(
        "evaluate", "folder", folder, "-m", tmp_path / "net.pt", "--preset", "auto", "--resize", "-q", "--folds", 3
    )
    assert done.returncode == 0, done.stderr
    assert "net.pt: --preset " in done.stderr and "separates best" in done.stderr and "arcface: d'" in done.stderr
