"""Sweeps in memory that holds NaN wherever nothing was written.

``test_poisoned_memory.py`` runs this file in a process with such memory. Its name hides it from pytest, because in
an ordinary process it shows nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import occfast
from occfast import models
from occfast.native import ops
from occfast.sweep.evaluators.dense import DenseEvaluator
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from tests.networks import lively
from tests.sweep.test_incremental import NETWORKS, make, some

#: Largest difference from float64, relative to the largest output.
TOLERANCE = {torch.bfloat16: 0.04, torch.float32: 1e-4, torch.float64: 1e-12}
DTYPES = list(TOLERANCE)

#: Those in another type than bfloat16 that are quick enough for every run.
QUICK = ("split", "odd")


def test_memory_is_poisoned() -> None:
    for size in (1, 100, 10_000, 3_000_000):
        for dtype in DTYPES:
            assert torch.empty(size, dtype=dtype).isnan().all()


def compare(model: nn.Module, images: Tensor, occluder: tuple[int, int], most: int) -> None:
    """Compare the dense sweep in both layouts and the incremental one with forward passes in float64."""
    grid = SweepGrid.over(tuple(images.shape[-2:]), occluder)  # type: ignore[arg-type]
    fill = torch.full((1, 1, 1, 1), 0.25, dtype=images.dtype)
    positions = some(grid, len(images), most)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()
        expected = exact(ops.occlude_positions(images.double(), fill.double(), positions, grid.native()))
    scale = float(expected.abs().max())
    bound = TOLERANCE[images.dtype] * scale
    assert np.isfinite(scale) and scale > 0
    dense, incremental = DenseEvaluator(model, grid), IncrementalEvaluator(model, grid, images)
    with torch.no_grad():
        dense.start(images, fill)
        assert float((incremental.start(images, fill).double() - exact(images.double())).abs().max()) <= bound
        for layout in ("contiguous", "channels_last", "incremental"):
            evaluator: Any = incremental if layout == "incremental" else dense
            if layout != "incremental":
                dense.set_layout(layout)
            for part in (slice(None), slice(0, 1), slice(3, 8)):
                found = evaluator.outputs(positions[part]).double()
                assert float((found - expected[part]).abs().max()) <= bound, (layout, part)  # false for NaN


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name in QUICK or dtype == torch.bfloat16 else pytest.mark.slow)
        for name in NETWORKS
        for dtype in DTYPES
    ],
)
def test_small_networks(name: str, dtype: torch.dtype) -> None:
    model, images = make(name, dtype)
    compare(model, images, (images.shape[-2] // 4, images.shape[-1] // 3), 12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", models.NETWORKS)
def test_models(name: str, dtype: torch.dtype) -> None:
    channels, size = (1, (100, 100)) if name == "paper" else (3, (112, 96))
    model = lively(models.build(name, 20, channels=channels, size=size))
    images = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(1))
    compare(model.to(dtype), images.to(dtype), (size[0] // 4, size[1] // 3), 0)


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("method", ["exact", "adaptive", "sampled"])
@pytest.mark.parametrize("name", ["split", *(pytest.param(n, marks=pytest.mark.slow) for n in ("convnext", "squeeze"))])
def test_maps(name: str, method: str, precision: Any) -> None:
    model, images = make(name, torch.float32)
    with torch.no_grad():
        outputs = model(images)
    labels, largest = outputs.argmax(1), float(outputs.abs().max())
    arguments: dict[str, Any] = dict(occluder=(6, 6), stride=2, score="score_drop", progress=False)
    chosen = {} if method == "exact" else {"method": method}
    found = occfast.occlusion_map(model, images, labels, precision=precision, **chosen, **arguments)
    exact = occfast.occlusion_map(model.double(), images.double(), labels, method="dense", **arguments)
    assert np.isfinite(found.values).all()
    if method == "exact":
        # Rounding grows with the outputs, not with their drops.
        atol = largest * (torch.finfo(torch.bfloat16).eps if precision else 2e-6)
        np.testing.assert_allclose(found.values, exact.values, rtol=0, atol=atol)
