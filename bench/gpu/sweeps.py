"""Dense and exact sweeps of W1 compared with plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.clocks import Clock
from bench.gpu.kernels import _name, _pixels
from occfast.models import PaperNet
from occfast.native import ops
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.precision import float32_as


def w1_network(width: float = 1.0) -> nn.Module:
    """Build the network of workload W1: the paper's, with 1,000 classes."""
    torch.manual_seed(0)
    return PaperNet(1000, width=width).eval()


def _graphed(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Capture a function as one CUDA graph."""
    if device == "cpu":
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _sweepers(network: nn.Module, images: Tensor, positions: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return two functions that score one batch of positions of a 20x20 occluder with a center on every pixel."""
    n_images, _, height, width = images.shape
    per_image, device = height * width, images.device
    grid = [height, width, 0, 0, 1, 1, 20, 20]
    fill = torch.zeros(1, 1, 1, 1, dtype=images.dtype, device=device)
    labels = torch.zeros(n_images, dtype=torch.int64, device=device)
    scores = torch.zeros(n_images, per_image, dtype=torch.float64, device=device)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    i, j = torch.arange(height, device=device).view(-1, 1), torch.arange(width, device=device).view(1, -1)

    def pytorch() -> Tensor:
        n, place = positions // per_image, positions % per_image
        top, left = ((edge - 10).view(-1, 1, 1, 1) for edge in (place // width, place % width))
        inside = (i >= top) & (i < top + 20) & (j >= left) & (j < left + 20)
        outputs = network(images[n].masked_fill_(inside, 0))
        scores.view(-1)[positions] = (outputs.argmax(1) != labels[n]).double()
        return scores

    def occfast() -> Tensor:
        outputs = network(ops.occlude_positions(images, fill, positions, grid)).float()
        ops.sweep_score(outputs, positions, per_image, 0, scores, bad, labels, None, None)
        return scores

    return {"pytorch": pytorch, "occfast": occfast}


@torch.no_grad()
def dense_sweep(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Measure positions per second of a dense sweep of W1 with plain PyTorch and with occfast's dense ops.

    Both use the same network, precision and batch size, channels_last and a CUDA graph.
    """
    small = device == "cpu"
    rows = []
    for dtype in (torch.float32,) if small else (torch.float32, torch.bfloat16):
        network = w1_network(0.125 if small else 1.0).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = _pixels((4, 1, 100, 100), dtype, device)
        for batch in (8,) if small else (256, 1024):
            positions = torch.randint(0, 40_000, (batch,), device=device)
            row: dict[str, Any] = {"network": "W1", "dtype": _name(dtype), "batch": batch}
            with float32_as("ieee"):
                for name, function in _sweepers(network, images, positions).items():
                    row[f"{name}_positions_per_s"] = batch / clock(_graphed(function, device)).device
            rows.append(row)
    return rows


# Variants of the exact sweep: dtype, whether in TF32, whether as CUDA graphs, whether with the fused convolution.
EXACT: dict[str, tuple[torch.dtype, bool, bool, bool]] = {
    "float32": (torch.float32, False, False, False),
    "float32, graphs": (torch.float32, False, True, False),
    "float32, graphs, fused": (torch.float32, False, True, True),
    "tf32": (torch.float32, True, False, False),
    "tf32, graphs": (torch.float32, True, True, False),
    "tf32, graphs, fused": (torch.float32, True, True, True),
    "bf16": (torch.bfloat16, False, False, False),
    "bf16, graphs": (torch.bfloat16, False, True, False),
    "bf16, graphs, fused": (torch.bfloat16, False, True, True),
}


@torch.no_grad()
def exact_sweep(device: str, clock: Clock) -> list[dict[str, Any]]:
    """Measure positions per second of the exact incremental sweep of W1.

    It is compared with PyTorch's dense sweep in the same precision, at the better of two batch sizes. The errors of the
    outputs are relative to the dense ones in float32.
    """
    small = device == "cpu"
    network = w1_network(0.125 if small else 1.0).to(device)
    image = _pixels((1, 1, 100, 100), torch.float32, device)
    dense: dict[tuple[torch.dtype, bool], float] = {}
    rows = []
    for occluder in ((20, 20),) if small else ((20, 20), (20, 40), (40, 40)):
        grid = SweepGrid.over((100, 100), occluder, stride=25 if small else 1)
        everything, some = (torch.arange(grid.positions, device=device)[::step] for step in (1, 1 if small else 97))
        with float32_as("ieee"):
            fill = torch.zeros(1, 1, 1, 1, device=device)
            expected = network(ops.occlude_positions(image, fill, some, grid.native()))
        for name, (dtype, tf32, graphs, fuse) in EXACT.items():
            if occluder != (20, 20) and not name.startswith("float32"):
                continue
            low, given, nothing = copy.deepcopy(network).to(dtype), image.to(dtype), fill.to(dtype)
            with float32_as("tf32" if tf32 else "ieee"):
                if (dtype, tf32) not in dense:
                    dense[dtype, tf32] = _dense_rate(low, given, (8,) if small else (256, 1024), clock)
                evaluator = IncrementalEvaluator(low, grid, given, cuda_graphs=graphs, fuse=fuse)
                evaluator.start(given, nothing)
                evaluator.outputs(everything)  # warm-up; the second call records the graphs
                outputs = evaluator.outputs(everything)[some].float()

                def whole(
                    e: IncrementalEvaluator = evaluator, x: Tensor = given, f: Tensor = nothing, p: Tensor = everything
                ) -> None:
                    e.start(x, f)
                    e.outputs(p)

                timing = clock(whole)
            rows.append(
                {
                    "network": "W1",
                    "occluder": f"{occluder[0]}x{occluder[1]}",
                    "as": name,
                    "predicted": evaluator.forecast().speedup,
                    "dense_positions_per_s": dense[dtype, tf32],
                    "positions_per_s": grid.positions / timing.device,
                    "host_share": timing.host / timing.device,
                    "replayed": evaluator.graphs.replayed if evaluator.graphs else 0,
                    "difference": float((outputs - expected).abs().max() / expected.abs().max()),
                    "same_class": float((outputs.argmax(1) == expected.argmax(1)).double().mean()),
                }
            )
    return rows


def _dense_rate(network: nn.Module, image: Tensor, batches: tuple[int, ...], clock: Clock) -> float:
    """Measure positions per second of PyTorch's dense sweep, in channels_last, as a CUDA graph, at its best batch."""
    network, best = network.to(memory_format=torch.channels_last), 0.0  # type: ignore[call-overload]
    for batch in batches:
        positions = torch.randint(0, 10_000, (batch,), device=image.device)
        sweep = _graphed(_sweepers(network, image, positions)["pytorch"], image.device.type)
        best = max(best, batch / clock(sweep).device)
    return best
