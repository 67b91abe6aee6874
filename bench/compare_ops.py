"""Native ops compared with their PyTorch twins, at the sizes of the papers."""

from __future__ import annotations

import pytest
import torch

from bench.conftest import Compare
from occfast.native import ops, reference
from occfast.sweep import SweepGrid

WHO = ["occfast", "PyTorch twin"]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("name", "shape"), [("gray 100×100", (4, 1, 100, 100)), ("RGB 112×112", (4, 3, 112, 112))])
def test_occlude_positions(compare: Compare, who: str, layout: str, name: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    if layout == "NHWC":
        images = images.contiguous(memory_format=torch.channels_last)
    grid = SweepGrid.over(shape[-2:], (20, 40))
    positions = torch.randint(0, 4 * grid.positions, (256,))
    fill = torch.zeros(1, 1, 1, 1)
    run = ops.occlude_positions if who == "occfast" else reference.occlude_positions
    compare(
        lambda: run(images, fill, positions, grid.native()),
        workload=f"occluded copies, {name} {layout}",
        who=who,
        items=256,
        unit="copies",
    )


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("classes", [40, 10_575])
def test_sweep_score(compare: Compare, who: str, classes: int) -> None:
    outputs, labels = torch.randn(256, classes), torch.randint(0, classes, (4,))
    scores, bad = torch.zeros(4, 10_000, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    positions = torch.randint(0, 40_000, (256,))
    run = ops.sweep_score if who == "occfast" else reference.sweep_score
    compare(
        lambda: run(outputs, positions, 10_000, 0, scores, bad, labels, None, None),
        workload=f"sweep score, {classes} classes",
        who=who,
        items=256,
        unit="positions",
    )


@pytest.mark.parametrize("who", WHO)
def test_sweep_accumulate(compare: Compare, who: str) -> None:
    scores = torch.rand(64, 10_000, dtype=torch.float64)
    total, squares = torch.zeros(10_000, dtype=torch.float64), torch.zeros(10_000, dtype=torch.float64)
    run = ops.sweep_accumulate if who == "occfast" else reference.sweep_accumulate
    compare(lambda: run(scores, total, squares), workload="running sums, 64 images", who=who, items=64, unit="images")
