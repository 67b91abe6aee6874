"""Occlusion maps compared with Captum and MONAI on the paper's network (W1), with the same occluder and threads.

occfast sweeps every position of one image. Dense sweeps, whose time per position is constant, visit a coarse grid.
``python -m bench.sweep`` measures the optimizations one by one.
"""

from __future__ import annotations

import pytest
import torch

import occfast
from bench.conftest import Compare
from occfast.models import PaperNet

OCCLUDER, STRIDE = (20, 40), 4


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return PaperNet(classes=1000).eval()


WORKLOAD = "occlusion map, W1, 20×40, one image"


def test_occfast(compare: Compare, network: torch.nn.Module) -> None:
    image, label = torch.rand(1, 1, 100, 100), torch.zeros(1, dtype=torch.int64)
    compare(
        lambda: occfast.occlusion_map(network, image, label, OCCLUDER, progress=False, skip_misclassified=False),
        workload=WORKLOAD,
        who="occfast",
        items=10_000,
        unit="positions",
        setting="method auto: incremental, 10,000 positions",
    )


@pytest.mark.parametrize("batch", [8, 32, 64])
def test_occfast_dense(compare: Compare, network: torch.nn.Module, batch: int) -> None:
    image, label = torch.rand(1, 1, 100, 100), torch.zeros(1, dtype=torch.int64)
    grid = occfast.SweepGrid.over((100, 100), OCCLUDER, stride=STRIDE, border="valid")
    compare(
        lambda: occfast.occlusion_map(
            network,
            image,
            label,
            OCCLUDER,
            stride=STRIDE,
            border="valid",
            method="dense",
            batch_size=batch,
            progress=False,
            skip_misclassified=False,
        ),
        workload=WORKLOAD,
        who="occfast, dense",
        items=grid.positions,
        unit="positions",
        setting=f"batch {batch}",
    )


@pytest.mark.parametrize("batch", [1, 8, 16, 64])
def test_captum(compare: Compare, network: torch.nn.Module, batch: int) -> None:
    from captum.attr import Occlusion

    image = torch.rand(1, 1, 100, 100)
    rows, columns = ((100 - OCCLUDER[0] + STRIDE - 1) // STRIDE + 1, (100 - OCCLUDER[1] + STRIDE - 1) // STRIDE + 1)
    compare(
        lambda: Occlusion(network).attribute(
            image,
            sliding_window_shapes=(1, *OCCLUDER),
            target=0,
            baselines=0,
            strides=(1, STRIDE, STRIDE),
            perturbations_per_eval=batch,
        ),
        workload=WORKLOAD,
        who="Captum Occlusion",
        items=rows * columns,
        unit="positions",
        setting=f"perturbations_per_eval {batch}",
    )


@pytest.mark.parametrize("batch", [8, 64])
def test_monai(compare: Compare, network: torch.nn.Module, batch: int) -> None:
    from monai.visualize.occlusion_sensitivity import OcclusionSensitivity

    image = torch.rand(1, 1, 100, 100)
    # MONAI's stride is a share of the window, so its positions differ; the rate per position is comparable.
    sensitivity = OcclusionSensitivity(
        network, mask_size=OCCLUDER, n_batch=batch, overlap=0.6, activate=False, verbose=False
    )
    counted = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counted.append(inputs[0].shape[0])

    handle = network.register_forward_pre_hook(count)
    sensitivity(image)
    handle.remove()
    compare(
        lambda: sensitivity(image),
        workload=WORKLOAD,
        who="MONAI OcclusionSensitivity",
        items=sum(counted),
        unit="positions",
        setting=f"n_batch {batch}",
    )


@pytest.mark.parametrize("batch", [8, 32, 64])
def test_plain_pytorch(compare: Compare, network: torch.nn.Module, batch: int) -> None:
    image = torch.rand(1, 1, 100, 100)
    grid = occfast.SweepGrid.over((100, 100), OCCLUDER, stride=STRIDE, border="valid")
    windows = [grid.window(p) for p in range(grid.positions)]
    last = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run() -> None:
        for start in range(0, len(windows), batch):
            part = windows[start : start + batch]
            copies = image.repeat(len(part), 1, 1, 1)
            for copy, (top, left, bottom, right) in zip(copies, part, strict=True):
                copy[:, top:bottom, left:right] = 0
            last(copies).argmax(1)

    compare(
        run,
        workload=WORKLOAD,
        who="plain PyTorch",
        items=grid.positions,
        unit="positions",
        setting=f"channels_last, batch {batch}",
    )
