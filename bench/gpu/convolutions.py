"""The fused convolution on the windows of an exact sweep of W1, compared with gathering and PyTorch's convolution.

``python -m bench.gpu.convolutions`` counts the work of each layer for a position, which takes no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.clocks import Clock
from bench.gpu.kernels import _pixels
from bench.gpu.sweeps import w1_network
from occfast.models.paper_net import STAGES
from occfast.native import ops
from occfast.sweep.evaluators.incremental.device import CUDA
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.precision import float32_as

#: Arithmetic of the convolution: dtype, and whether it is rounded to TF32.
KINDS: dict[str, tuple[torch.dtype, bool]] = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}


@dataclass
class Call:
    """One fused convolution of a sweep.

    Attributes:
        step: Number of the step in the network.
        op: ``gather_windows`` or ``gather_pieces``.
        arguments: Those of the op.
        size: Of the result, (windows, channels, height, width).
    """

    step: int
    op: Any
    arguments: tuple[Any, ...]
    size: tuple[int, ...]

    @property
    def products(self) -> int:
        """Multiply-adds for one number of the result."""
        return int(self.arguments[-4].shape[1])

    @property
    def flop(self) -> int:
        """Floating-point operations, with a multiply-add as two."""
        windows, channels, height, width = self.size
        return 2 * windows * channels * height * width * self.products

    @property
    def bytes(self) -> int:
        """Bytes to read and write at least: each argument once, and the result."""
        given = sum(t.numel() * t.element_size() for t in self.arguments if isinstance(t, Tensor))
        return int(given + torch.Size(self.size).numel() * self.arguments[0].element_size())

    def run(self) -> Tensor:
        """Gather and convolve in one pass."""
        return self.op(*self.arguments)  # type: ignore[no-any-return]

    def apart(self) -> Tensor:
        """Gather windows, and convolve them by PyTorch."""
        weights, _, channels, geometry = self.arguments[-4:]
        inputs = self.arguments[0].shape[1]
        weight = weights.permute(0, 2, 1).reshape(-1, *geometry[:2], inputs)[:channels].permute(0, 3, 1, 2)
        bias = self.arguments[-3].flatten()[:channels]
        out = F.conv2d(self.op(*self.arguments[:-4]), weight, bias, geometry[2:4], 0, geometry[4:6])
        return F.relu(out) if geometry[6] else out


@contextmanager
def recorded(evaluator: IncrementalEvaluator, keep: bool) -> Iterator[list[Call]]:
    """Record the fused convolutions of a sweep; without ``keep``, what they are given is replaced by its shape."""
    steps = {packed[0].data_ptr(): step for step, packed in evaluator._runner.fused.items()}
    calls: list[Call] = []
    before = ops.gather_windows, ops.gather_pieces

    def recording(op: Any) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            out: Tensor = op(*arguments)
            if isinstance(arguments[-1], list) and len(arguments[-1]) == 7:
                step = steps[arguments[-4].data_ptr()]
                if not keep:
                    arguments = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
                calls.append(Call(step, op, arguments, tuple(out.shape)))
            return out

        return run

    ops.gather_windows, ops.gather_pieces = (recording(op) for op in before)
    try:
        yield calls
    finally:
        ops.gather_windows, ops.gather_pieces = before


@torch.no_grad()
def fused_convolutions(device: str, clock: Clock, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Measure the convolutions of a batch of W1 with a 20x20 occluder, in each arithmetic.

    Args:
        device: "cuda" or "cpu".
        clock: Timer of calls.
        rates: Ceilings of the device.
    """
    small = device == "cpu"
    network = w1_network(0.125 if small else 1.0).to(device)
    grid = SweepGrid.over((100, 100), 20, stride=5 if small else 1)
    rows = []
    for kind, (dtype, tf32) in KINDS.items():
        given = _pixels((1, 1, 100, 100), torch.float32, device).to(dtype)
        low, fill = w1_network(0.125 if small else 1.0).to(device, dtype), torch.zeros_like(given)
        low.load_state_dict(network.state_dict())
        with float32_as("tf32" if tf32 else "ieee"):
            evaluator = IncrementalEvaluator(low, grid, given, fuse=True, profile=CUDA)
            evaluator.start(given, fill)
            everything = torch.arange(grid.positions, device=device)
            groups = evaluator.plan.group_of(everything.cpu())
            batch = everything[(groups == groups.mode().values).to(device)][: CUDA.positions]
            evaluator.outputs(batch)  # strips
            with recorded(evaluator, keep=True) as calls:
                evaluator.outputs(batch)
            for call in calls:
                fused, apart = clock(call.run).device, clock(call.apart).device
                difference = (call.run().double() - call.apart().double()).abs().max()
                floor = max(call.flop / rates[f"{kind}_flop_per_s"], call.bytes / rates["copy_bytes_per_s"])
                rows.append(
                    {
                        "as": kind,
                        "layer": call.step,
                        "op": str(call.op).split(".")[1],
                        "windows": call.size[0],
                        "size": list(call.size[2:]),
                        "channels": [call.arguments[0].shape[1], call.size[1]],
                        "flop": call.flop,
                        "bytes": call.bytes,
                        "seconds": fused,
                        "apart_seconds": apart,
                        "share_of_peak": call.flop / rates[f"{kind}_flop_per_s"] / fused,
                        "share_of_floor": floor / fused,
                        "difference": float(difference / call.apart().double().abs().max()),
                    }
                )
    return rows


@torch.no_grad()
def floors(occluder: int = 20) -> list[dict[str, float]]:
    """Count the work of each convolution of W1 for a position of a map, and the numbers that it must read and write.

    Rectangles do not depend on the number of channels, so those of a narrow network are counted. What positions share
    (the clean map, strips, weights) is left out: a batch reads it once.
    """
    full = [1, *(channels for stage in STAGES for channels in stage)]
    network, image = w1_network(1 / 32), torch.rand(1, 1, 100, 100)
    grid = SweepGrid.over((100, 100), occluder)
    evaluator = IncrementalEvaluator(network, grid, image, fuse=True, profile=CUDA)
    evaluator.start(image, torch.zeros_like(image))
    evaluator.outputs(torch.arange(1))  # strips
    with recorded(evaluator, keep=False) as calls:
        evaluator.outputs(torch.arange(grid.positions))
    found = []
    for number, step in enumerate(sorted({call.step for call in calls})):
        mine = [call for call in calls if call.step == step]
        inputs, outputs = full[number], full[number + 1]
        pixels = sum(call.size[0] * call.size[2] * call.size[3] for call in mine) / grid.positions
        windows = sum(call.size[0] for call in mine) / grid.positions
        own = [call.arguments[12 if "pieces" in str(call.op) else 5] for call in mine]  # corners or patches
        read = sum(len(t) * t.shape[2] * t.shape[3] for t in own if t is not None) / grid.positions
        found.append(
            {
                "inputs": inputs,
                "outputs": outputs,
                "windows": windows,
                "pixels": pixels,
                "products": 9 * inputs,
                "flop": 2 * pixels * outputs * 9 * inputs,
                "read": read * inputs,
                "written": pixels * outputs,
            }
        )
    return found


def main() -> None:
    """Print the floors as a table, with float32 numbers."""
    rows = floors()
    print(f"{'layer':>5} {'windows':>7} {'pixels':>7} {'K':>5} {'N':>4} {'MFLOP':>7} {'read KiB':>8} {'written':>8}")
    for number, row in enumerate(rows, 1):
        print(
            f"{number:5d} {row['windows']:7.2f} {row['pixels']:7.1f} {row['products']:5d} {row['outputs']:4d} "
            f"{row['flop'] / 1e6:7.2f} {row['read'] / 256:8.1f} {row['written'] / 256:8.1f}"
        )
    total = {key: sum(row[key] for row in rows) for key in ("flop", "read", "written")}
    print(
        f"{'all':>5} {'':7} {'':7} {'':5} {'':4} {total['flop'] / 1e6:7.2f} {total['read'] / 256:8.1f} "
        f"{total['written'] / 256:8.1f}"
    )


if __name__ == "__main__":
    main()
