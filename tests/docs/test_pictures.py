"""The script that draws the pictures of the docs uses public names, and draws."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from occfast import occlusion_map
from tools import figures

from .test_code import check

SOURCE = Path(figures.__file__).read_text()
ROOT = Path(figures.__file__).parents[1]


def test_names_exist_and_are_public() -> None:
    assert check(SOURCE) == []
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("occfast"):
            assert not any(part.startswith("_") for part in (node.module or "").split("."))
            assert "native" not in (node.module or "") and "methods" not in (node.module or "")


@pytest.mark.parametrize("name", ["occluders", "temperatures", "rectangles", "covers", "alignment"])
def test_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is the one in docs/images, but for how fonts are rendered."""
    pinned = re.search(r"^matplotlib==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    if not matplotlib.__version__.startswith(f"{pinned[1]}."):
        pytest.skip(f"the pictures were drawn by Matplotlib {pinned[1]}, this is {matplotlib.__version__}")
    committed = figures.IMAGES / f"{name}.png"
    monkeypatch.setattr(figures, "IMAGES", tmp_path)
    getattr(figures, name)()
    drawn, shown = (np.asarray(Image.open(p).convert("RGB"), float) for p in (tmp_path / f"{name}.png", committed))
    assert drawn.shape == shown.shape
    difference = np.abs(drawn - shown).mean() / 255
    assert difference < 0.01, f"{difference:.3f}: run python -m tools.figures {name}"


def test_watched_records_every_center() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30 * 24, 3)).eval()
    image = torch.rand(1, 1, 30, 24) + 0.1
    watched = figures.Watched(network)
    with torch.no_grad():
        label = network(image).argmax(1)
    m = occlusion_map(watched, image, label, (5, 5), border="valid", stride=4, method="dense", progress=False)
    rows, columns = m.centers
    assert {(float(r), float(c)) for r in rows for c in columns} <= set(watched.centers)
