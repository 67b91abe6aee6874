"""CUDA graphs simulated on the CPU: a recording holds operations and addresses but no values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from occfast.native import ops
from occfast.sweep.evaluators.incremental.cuda_graphs import Graphs, OnCuda
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from tests.sweep.test_incremental import NETWORKS, TOLERANCE, make, some

_WAITS = ("_local_scalar_dense", "nonzero", "lift_fresh", "unique", "masked_select", "is_nonzero", "equal")


class Recording(TorchDispatchMode):
    """Records operations as a capturing stream does. Moving a value from or to the host is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name in _WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Run the same operations on the same memory."""
        for func, args, kwargs, result in self.calls:
            if func.is_view:
                continue  # its base is replayed
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(function: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
    with Recording() as recording:
        out = function()
    assert recording.calls
    return out, recording.replay


def graphed(evaluator: IncrementalEvaluator, capture: Any = record) -> Graphs:
    evaluator.graphs = Graphs(evaluator._run, lambda: capture)
    return evaluator.graphs


@pytest.mark.parametrize(("name", "fuse"), [*((name, False) for name in NETWORKS), ("yi", True), ("resnet18", True)])
def test_replayed_batches_equal_the_dense_sweep(name: str, fuse: bool) -> None:
    """Nothing of the first block of images is left for the next, which is smaller and has other pixels.

    On a GPU, convolutions are fused with gathering only where that was measured to be faster.
    """
    model, images = make(name, torch.float64, 3)
    h, w = images.shape[-2:]
    grid, fill = SweepGrid.over((h, w), (h // 3, w // 3), stride=2), torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64)
    evaluator = IncrementalEvaluator(model, grid, images, fuse=fuse, most_classes=2, batch=8)
    graphs = graphed(evaluator)
    for block in (images, images.flip(0)[:2].sqrt(), images[:1].square()):
        positions = some(grid, len(block), 40)
        evaluator.start(block, fill)
        before = graphs.replayed
        found = evaluator.outputs(positions)
        with torch.no_grad():
            copies = ops.occlude_positions(block, fill, positions, grid.native())
            expected = torch.cat([model(part) for part in copies.split(32)])
        assert float((found - expected).abs().max()) <= TOLERANCE[torch.float64] * float(expected.abs().max())
        assert graphs.replayed > before
    assert len({size for _, size in graphs._graphs}) <= 8
    evaluator.graphs = None
    assert torch.allclose(found, evaluator.outputs(positions), rtol=1e-12, atol=1e-14)


def test_growing_blocks_are_recorded_anew() -> None:
    model, images = make("yi", torch.float64, 4)
    grid, fill = SweepGrid.over((100, 100), (20, 20), stride=10), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    evaluator = IncrementalEvaluator(model, grid, images, most_classes=1)
    graphs = graphed(evaluator)
    for count in (1, 2, 4, 3):
        block = images[:count].clone()
        evaluator.start(block, fill)
        positions = torch.arange(count * grid.positions)
        evaluator.outputs(positions[: grid.positions])  # warms up, so that the rest is replayed
        found = evaluator.outputs(positions)
        chosen = positions[:: 7 * count]
        with torch.no_grad():
            expected = model(ops.occlude_positions(block, fill, chosen, grid.native()))
        assert float((found[chosen] - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert graphs.replayed > 0


def test_a_failed_capture_is_logged_once_and_the_sweep_continues(caplog: pytest.LogCaptureFixture) -> None:
    model, images = make("resnet18", torch.float64)
    grid, fill = SweepGrid.over((64, 48), (20, 20), stride=4), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    positions = torch.arange(2 * grid.positions)
    evaluator = IncrementalEvaluator(model, grid, images, batch=16)
    evaluator.start(images, fill)
    expected = evaluator.outputs(positions)

    def fail(function: Callable[[], Tensor]) -> Any:
        function()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    graphs = graphed(evaluator, fail)
    with caplog.at_level(logging.WARNING, "occfast"):
        found = [evaluator.outputs(positions) for _ in range(3)][-1]
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14) and graphs.replayed == 0
    assert caplog.text.count("without CUDA graphs, capturing one failed: CUDA error: operation not permitted") == 1
    assert "more" not in caplog.text


def test_a_model_that_reads_a_value_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="stream is capturing: _local_scalar_dense"):
        record(lambda: torch.ones(2) * float(torch.ones(2).sum()))
    with pytest.raises(RuntimeError, match="stream is capturing: lift_fresh"):
        record(lambda: torch.ones(2) * torch.tensor([1.0, 2.0]))


class Device:
    """CUDA's streams and graphs, of which only the order of the calls is kept."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.calls

        class Stream:
            def __init__(self, name: str) -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                calls.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                calls.append(f"begin in {pool}, {capture_error_mode}")

            def capture_end(self) -> None:
                calls.append("end")

            def replay(self) -> None:
                calls.append("replay")

        @contextmanager
        def inside(what: object) -> Iterator[None]:
            name = what.name if isinstance(what, Stream) else str(what)
            calls.append(f"into {name}")
            yield
            calls.append(f"out of {name}")

        outside = Stream("outside")
        for name, value in {
            "Stream": lambda device: Stream("side"),
            "CUDAGraph": CUDAGraph,
            "graph_pool_handle": lambda: "one pool",
            "current_stream": lambda device: outside,
            "device": inside,
            "stream": inside,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_a_capture_is_raw_and_all_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Device()
    made.install(monkeypatch)
    capture = OnCuda(torch.device("cuda", 0))
    expected = ["side waits for outside", "into cuda:0", "into side", "begin in one pool, thread_local"]
    for _ in range(2):
        made.calls.clear()
        out, replay = capture(lambda: torch.ones(3))
        assert made.calls == [*expected, "end", "out of side", "out of cuda:0", "outside waits for side"]
        assert out.tolist() == [1.0] * 3
        replay()
        assert made.calls[-1] == "replay"


def test_a_broken_capture_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Device()
    made.install(monkeypatch)

    def fail() -> Tensor:
        raise ValueError("of the model")

    with pytest.raises(ValueError, match="of the model"):
        OnCuda(torch.device("cuda", 0))(fail)
    assert made.calls[-1] == "end"


def test_off_by_default_and_on_a_cpu() -> None:
    model, images = make("split", torch.float32)
    grid = SweepGrid.over((21, 26), 5)
    assert IncrementalEvaluator(model, grid, images).graphs is None
    assert IncrementalEvaluator(model, grid, images, cuda_graphs=True).graphs is None
