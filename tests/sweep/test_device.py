"""Plans and batches for a GPU, run on the CPU with the GPU's settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from occfast.models import PaperNet
from occfast.sweep import calibrate, occlusion_map
from occfast.sweep.evaluators import runner, trial
from occfast.sweep.evaluators.dense import DenseEvaluator
from occfast.sweep.evaluators.incremental import device, rates
from occfast.sweep.evaluators.incremental.defaults import SECONDS
from occfast.sweep.evaluators.incremental.device import CPU, CUDA, profile_of
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.runner import Runner
from occfast.sweep.geometry import SweepGrid
from tests.sweep.test_incremental import NETWORKS, compare, make, some

GPU = torch.device("cuda", 0)
NARROW = 16  # times fewer channels than W1


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked for; ``launches`` are those that a GPU runs a kernel for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.all[name] += 1
        if not func.is_view and "empty" not in name:
            with_bias = "convolution" in name and args[2] is not None
            self.launches += 2 if with_bias else 1
        return func(*args, **(kwargs or {}))


def w1(width: float, profile: Any, fuse: bool = False) -> tuple[IncrementalEvaluator, Tensor]:
    """Return an evaluator of workload W1 or a narrower one, 20x20, and an image."""
    torch.manual_seed(0)
    net, image = PaperNet(100, width=width).eval(), torch.rand(1, 1, 100, 100)
    grid = SweepGrid.over((100, 100), (20, 20))
    return IncrementalEvaluator(net, grid, image, fuse=fuse, profile=profile), image


@pytest.mark.parametrize(("fuse", "launches", "operations"), [(False, 400, 720), (True, 250, 600)])
def test_a_map_of_w1_takes_few_launches(fuse: bool, launches: int, operations: int) -> None:
    """The whole map of one image: its activations, strips and all positions.

    A narrow network with as many times smaller batches runs the operations of the real one. Copies of indices on the
    host count as launches too.
    """
    real, _ = w1(1.0, CUDA, fuse)
    less = replace(CUDA, layer_bytes=CUDA.layer_bytes // NARROW, call=CUDA.call / NARROW**2)
    narrow, image = w1(1 / NARROW, less, fuse)
    plans = real.plan, narrow.plan
    counts = torch.bincount(plans[0].group_of(torch.arange(10_000))).tolist()
    sizes = [[p.batch_size(n, p.largest_batch(g)) for g, n in enumerate(counts)] for p in plans]
    assert plans[0].shared == plans[1].shared and sizes[0] == sizes[1]
    assert plans[0].batches == len(counts) == 4 and sum(sizes[0]) < 1.06 * 10_000
    narrow.start(image, torch.zeros(1, 1, 1, 1))  # buffers are made once
    with Operations() as count:
        narrow.start(image, torch.zeros(1, 1, 1, 1))
        found = narrow.outputs(torch.arange(10_000))
    assert count.launches <= launches and sum(count.all.values()) <= operations
    usual, _ = w1(1 / NARROW, CPU)
    usual.start(image, torch.zeros(1, 1, 1, 1))
    positions = torch.arange(0, 10_000, 37)
    expected = usual.outputs(positions)
    assert float((found[positions] - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_settings_of_a_gpu_change_nothing(name: str) -> None:
    model, images = make(name, torch.float64)
    h, w = images.shape[-2:]
    grid = SweepGrid.over((h, w), (h // 3, w // 4), stride=2)
    fill = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64)
    compare(model, images, grid, fill, some(grid, len(images), 24), fuse=False, profile=CUDA)


@pytest.mark.parametrize("name", ["vgg16", "odd"])
def test_batches_span_images(name: str) -> None:
    """Strips of all images of a block are kept; a smaller and a larger block follow."""
    model, images = make(name, torch.float64, 4)
    h, w = images.shape[-2:]
    grid = SweepGrid.over((h, w), (h // 3, w // 3), stride=5)
    fill = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64)
    spanning = IncrementalEvaluator(model, grid, images, fuse=False, profile=CUDA, most_classes=2, together=4)
    single = IncrementalEvaluator(
        model, grid, images, fuse=False, profile=replace(CUDA, spans_images=False), most_classes=2
    )
    assert spanning.plan.shared > 1
    for block in (images[:2], images[:1].sqrt(), images):
        everything = torch.arange(len(block) * grid.positions)
        ran = []
        for evaluator in (spanning, single):
            evaluator.start(block, fill)
            assert evaluator.tune(len(everything), None) == grid.positions * (
                len(block) if evaluator is spanning else 1
            )
            with Operations() as count:
                out = evaluator.outputs(everything[evaluator.order(everything)])
            ran.append((out[torch.argsort(evaluator.order(everything))], count.all["occfast::gather_windows"]))
        (found, few), (expected, many) = ran
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
        assert few * len(block) == many
    each = spanning.plan.bytes_per_image + spanning.plan.bytes_of_strips
    assert spanning.images_at_once(images, 2 * 3 * each + 1) == 3
    assert spanning.plan.batches < single.plan.batches


def test_batches_are_filled_up_to_few_sizes() -> None:
    plan = w1(1 / NARROW, CUDA)[0].plan
    sizes = {plan.batch_size(count, 8192) for count in range(1, 8193)}
    assert len(sizes) == 31 + 8 * 16 + 1 and max(sizes) == 8192
    assert all(count <= plan.batch_size(count, 8192) <= 1.07 * count for count in range(1, 8193))
    assert plan.batch_size(10_000, 8192) == 5120 and plan.batch_size(10, 8) == 5


def test_the_cost_of_calls_follows_the_speed_and_not_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert profile_of(torch.device("cpu"), torch.float32) is CPU
    measured = {**SECONDS, "conv 9 64 64": 2e-14, "step": 2e-5, "call": 5e-6}
    monkeypatch.setattr(device, "is_calibrated", lambda device: True)
    monkeypatch.setattr(device, "rates", lambda device, dtype: measured)
    monkeypatch.setattr(device, "arithmetic", lambda device, dtype: str(dtype).removeprefix("torch."))
    assert profile_of(GPU, torch.float32, measured=False).call == 3e9
    assert profile_of(GPU, torch.bfloat16, measured=False).call == 16e9
    first = profile_of(GPU, torch.float32)
    assert replace(first, call=0.0) == replace(CUDA, call=0.0) and 2.75e9 / 2 <= first.call <= 2.75e9 * 2
    measured = {kind: value * 1.1 for kind, value in measured.items()} | {"step": 1.9e-5}
    assert profile_of(GPU, torch.float32) == first
    measured = {**measured, "conv 9 64 64": 2e-15}
    assert profile_of(GPU, torch.float32).call >= 4 * first.call


def test_a_gpu_is_measured_once_for_each_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[torch.dtype, str]] = []

    def measure(dtype: torch.dtype, device: torch.device) -> tuple[dict[str, float], bool]:
        done.append((dtype, str(device)))
        return dict(SECONDS), True

    monkeypatch.setenv("OCCFAST_CALIBRATION", "on")
    monkeypatch.setattr(rates.loader, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(rates, "measure", measure)
    monkeypatch.setattr(rates, "_known", {})
    monkeypatch.setattr(rates.ops, "has_kernels", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(rates, "arithmetic", lambda device, dtype: switched[0])
    switched = ["float32"]
    for name in ("float32", "tf32", "float32"):
        switched[0] = name
        assert rates.rates(GPU, torch.float32) == SECONDS
    rates._known.clear()  # as a new process
    assert rates.rates(GPU, torch.float32) == SECONDS
    assert done == [(torch.float32, "cuda:0")] * 2 and len(list(tmp_path.iterdir())) == 2
    assert calibrate(torch.float32, "cuda:0") in tmp_path.iterdir() and len(done) == 3
    monkeypatch.setenv("OCCFAST_CALIBRATION", "off")
    assert rates.rates(GPU, torch.float32) == rates.built_in(GPU, torch.float32)


def test_every_kind_has_an_example_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_ON_GPU", dict.fromkeys(rates._ON_GPU, 1))
    monkeypatch.setattr(rates.ops, "convolution_block", lambda tensor: 0)
    examples = rates._examples(torch.float32, on_gpu=True)
    for _, run, amount in examples:
        run()
        assert amount > 0
    assert {kind for kind, _, _ in examples} == {kind for kind in SECONDS if not kind.startswith("fused")}
    monkeypatch.undo()
    assert {kind for kind, _, _ in rates._examples(torch.float32)} == set(SECONDS)  # as on a GPU with the kernels


def test_cudnn_times_no_algorithms_inside_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen: list[bool] = []
    images = torch.rand(1, 3, 12, 12)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval()
    evaluator = IncrementalEvaluator(net, SweepGrid.over((12, 12), 4), images, fuse=False)
    plain = evaluator._runner.compute

    def compute(*args: Any) -> Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return plain(*args)

    evaluator._runner.compute = compute  # type: ignore[method-assign]
    evaluator.start(images, torch.zeros(1, 1, 1, 1))
    assert torch.backends.cudnn.benchmark
    evaluator.outputs(torch.arange(5))
    assert seen and not any(seen) and torch.backends.cudnn.benchmark
    with pytest.raises(ValueError, match="positions"):
        evaluator.outputs(torch.tensor([10**6]))
    assert torch.backends.cudnn.benchmark


# -- the choice by measuring -----------------------------------------------------------------------------


class Clock:
    """Runs what it is given and says how long it took."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self, run: Callable[[], object]) -> float:
        run()
        return self.times.pop(0)


@pytest.mark.parametrize(("rate", "wins"), [(1000.0, "incremental"), (100_000.0, "dense")])
def test_the_faster_one_is_taken(rate: float, wins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("split", torch.float32)
    grid = SweepGrid.over((21, 26), 5)
    dense, incremental = DenseEvaluator(model, grid), IncrementalEvaluator(model, grid, images)

    def tune(self: DenseEvaluator, total: int, memory_limit: int | None) -> int:
        self.rate = rate
        return 8

    monkeypatch.setattr(DenseEvaluator, "tune", tune)
    clock = Clock(0.9, 0.1)  # the first run loads libraries
    chosen = trial.faster(dense, [incremental], images[:1], 8, None, clock)
    assert chosen is not None and chosen.method == wins and not clock.times
    with pytest.raises(RuntimeError, match="start"):
        incremental.outputs(torch.arange(2))  # released


def test_the_fastest_incremental_one_is_taken() -> None:
    model, images = make("split", torch.float32)
    grid = SweepGrid.over((21, 26), 5)
    plain, fused = (IncrementalEvaluator(model, grid, images, fuse=fuse) for fuse in (False, True))
    for times, wins in (((0.3, 0.2, 0.5, 0.1), fused), ((0.3, 0.1, 0.5, 0.2), plain)):
        clock = Clock(*times)
        assert trial.faster(None, [plain, fused], images[:1], 8, None, clock) is wins and not clock.times


@pytest.mark.parametrize("method", ["auto", "incremental"])
def test_a_map_takes_what_was_measured(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU an exact sweep offers both convolutions, and "auto" the dense sweep too."""
    offered: list[Any] = []

    def choose(dense: Any, candidates: Any, image: Tensor, count: int, limit: int | None) -> Any:
        offered.append((dense, [len(each._runner.fused) for each in candidates], len(image), count))
        return dense or candidates[-1]

    monkeypatch.setattr(runner, "faster", choose)
    monkeypatch.setattr(Runner, "_chooses", lambda self, images, count: True)
    model, images = make("split", torch.float32, 5)
    made = occlusion_map(model, images, [0] * 5, 5, stride=4, score="score_drop", method=method, progress=False)
    assert made.method == ("dense" if method == "auto" else "incremental")
    ((dense, fused, shown, count),) = offered
    assert (dense is not None) == (method == "auto") and fused[0] == 0 < fused[1] and (shown, count) == (1, 5)
    monkeypatch.undo()
    usual = occlusion_map(model, images, [0] * 5, 5, stride=4, score="score_drop", method=method, progress=False)
    assert abs(made.values - usual.values).max() <= 1e-5 * abs(usual.values).max()


def test_only_long_exact_sweeps_on_a_gpu_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "faster", lambda *_: pytest.fail("nothing is measured on a CPU"))
    model, images = make("split", torch.float32, 5)
    occlusion_map(model, images, [0] * 5, 5, stride=8, score="score_drop", progress=False)


def test_a_choice_that_runs_out_of_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make("split", torch.float32)
    grid = SweepGrid.over((21, 26), 5)

    def fail(run: Callable[[], object]) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    incremental = IncrementalEvaluator(model, grid, images)
    assert trial.faster(DenseEvaluator(model, grid), [incremental], images[:1], 8, None, fail) is None


@pytest.mark.parametrize(("images", "replaying", "kept"), [(64, 0.05, True), (1, 0.05, False), (64, 0.2, False)])
def test_graphs_are_kept_where_they_are_repaid(
    images: int, replaying: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from occfast.sweep.evaluators.incremental.cuda_graphs import Graphs
    from tests.sweep.test_graphs import record

    def use_graphs(self: IncrementalEvaluator, wanted: bool) -> None:
        self.graphs = Graphs(self._run, lambda: record) if wanted else None

    monkeypatch.setattr(IncrementalEvaluator, "use_graphs", use_graphs)
    model, given = make("split", torch.float32)
    incremental = IncrementalEvaluator(model, SweepGrid.over((21, 26), 5), given)
    clock = Clock(0.9, 0.1, 0.3, 0.5, replaying)  # 0.6 s more than two maps without graphs
    chosen = trial.faster(None, [incremental], given[:1], images, None, clock)
    assert chosen is incremental and not clock.times
    assert (incremental.graphs is not None) == kept
