"""The incremental sweep equals the dense one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from occfast.native import ops
from occfast.sweep.evaluators.behavior import NotIncremental
from occfast.sweep.evaluators.incremental import layout, operations
from occfast.sweep.evaluators.incremental.analysis import Analysis
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.incremental.explain import explain
from occfast.sweep.geometry import SweepGrid
from tests import networks
from tests.fuzz import networks as fuzz

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

# name: (network, channels, image size)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, int]]] = {
    "yi": (lambda: networks.Yi(classes=20, width=8), 1, (100, 100)),
    "resnet18": (lambda: networks.ResNet(width=4, classes=20), 3, (64, 48)),
    "resnet34": (lambda: networks.ResNet((3, 4, 6, 3), width=4, classes=20), 3, (64, 48)),
    "resnet50": (lambda: networks.ResNet((3, 4, 6, 3), width=4, classes=20, bottleneck=True), 3, (64, 48)),
    "iresnet": (lambda: networks.IResNet((2, 2, 2, 2), width=4, size=56, features=16), 3, (56, 56)),
    "vgg16": (lambda: networks.VGG(), 3, (32, 32)),
    "mobilenet": (lambda: networks.MobileNet(), 3, (40, 36)),
    "squeeze": (lambda: networks.MobileNet(squeeze=True), 3, (40, 36)),
    "densenet": (lambda: networks.DenseNet(), 3, (24, 30)),
    "unet": (lambda: networks.UNet(), 3, (24, 32)),
    "odd": (lambda: networks.Odd(), 3, (31, 37)),
    "convnext": (lambda: networks.ConvNeXt(), 3, (36, 44)),
    "split": (lambda: networks.Split(), 3, (21, 26)),
}


def make(name: str, dtype: torch.dtype, n: int = 2) -> tuple[nn.Module, Tensor]:
    build, channels, size = NETWORKS[name]
    images = torch.rand((n, channels, *size), generator=torch.Generator().manual_seed(1))
    return networks.lively(build()).to(dtype), images.to(dtype)


def some(grid: SweepGrid, n: int, most: int) -> Tensor:
    """Return the four corners, the middles of the borders and random positions on all images, unordered."""
    r, c = grid.rows, grid.columns
    edges = {i * c + j for i in (0, r // 2, r - 1) for j in (0, c // 2, c - 1)}
    drawn = torch.randperm(n * grid.positions, generator=torch.Generator().manual_seed(2))[:most]
    return torch.tensor([k * grid.positions + p for k in range(n) for p in sorted(edges)] + drawn.tolist())


def compare(
    model: nn.Module, images: Tensor, grid: SweepGrid, fill: Tensor, positions: Tensor, **options: object
) -> None:
    evaluator = IncrementalEvaluator(model, grid, images, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        clean = model(images)
        copies = ops.occlude_positions(images, fill, positions, grid.native())
        expected = torch.cat([model(part) for part in copies.split(64)])
    tolerance = TOLERANCE[images.dtype]
    scale = float(expected.abs().max())
    assert float((evaluator.start(images, fill) - clean).abs().max()) <= tolerance * scale
    found = evaluator.outputs(positions)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= tolerance * scale
    assert torch.equal(found.argmax(1), expected.argmax(1))
    # The occluder has an effect, so the comparison can fail.
    if grid.occluder[0] * grid.occluder[1] > 20:
        assert float((expected - clean[positions // grid.positions]).abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_dense(name: str, dtype: torch.dtype) -> None:
    model, images = make(name, dtype)
    h, w = images.shape[-2:]
    for occluder, stride, border in (
        ((h // 4, w // 3), 1, "clip"),
        ((1, 1), 1, "clip"),
        ((h, w), 3, "clip"),
        ((h // 3, w // 5), 3, "valid"),
    ):
        grid = SweepGrid.over((h, w), occluder, stride=stride, border=border)  # type: ignore[arg-type]
        compare(model, images, grid, torch.full((1, 1, 1, 1), 0.25, dtype=dtype), some(grid, len(images), 24))


@pytest.mark.parametrize("name", ["yi", "resnet18", "odd"])
def test_fill_of_each_image_and_pixel(name: str) -> None:
    model, images = make(name, torch.float64)
    grid = SweepGrid.over(tuple(images.shape[-2:]), (9, 14), stride=1, border="clip")
    compare(model, images, grid, torch.rand_like(images), some(grid, len(images), 24))


def test_every_position_of_a_map() -> None:
    model, images = make("split", torch.float32)
    grid = SweepGrid.over((21, 26), (6, 5), stride=1, border="clip")
    compare(model, images, grid, torch.zeros(1, 3, 1, 1), torch.arange(2 * grid.positions))


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 7}, {"most_classes": 1}, {"most_classes": 100}])
def test_batches_and_classes_change_nothing(options: dict[str, int]) -> None:
    model, images = make("resnet18", torch.float64)
    grid = SweepGrid.over((64, 48), (10, 20))
    compare(model, images, grid, torch.zeros(1, 1, 1, 1, dtype=torch.float64), some(grid, 2, 30), **options)


def test_reference_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCFAST_BACKEND", "reference")
    model, images = make("odd", torch.float64)
    grid = SweepGrid.over((31, 37), (8, 9))
    compare(model, images, grid, torch.zeros(1, 1, 1, 1, dtype=torch.float64), some(grid, 2, 16))


@pytest.mark.parametrize("options", [{"fuse": False}, {"fold_tail": False}, {"share_early": False}, {"expected": 50}])
def test_each_optimization_can_be_left_out(options: dict[str, int]) -> None:
    model, images = make("yi", torch.float64)
    grid = SweepGrid.over((100, 100), (40, 30))
    compare(model, images, grid, torch.zeros(1, 1, 1, 1, dtype=torch.float64), some(grid, 2, 30), **options)


def test_explain_and_the_limit_of_memory() -> None:
    plan = explain(networks.Yi().eval(), 100, (20, 20))
    # 8.3 times less work at best; common sizes of rectangles cost a little of it.
    assert 7 < plan.speedup < 8.4
    assert plan.layers[0].label == "conv 3x3" and 0 < plan.layers[0].cost < plan.layers[0].dense
    assert plan.layers[1].shared and not plan.layers[-1].shared
    assert "predicted speed-up" in str(plan) and len(str(plan).splitlines()) == len(plan.layers) + 2
    refused = explain(networks.Yi(), 100, 20)
    assert refused.speedup == 1 and "training mode" in str(refused)
    images = torch.rand(1, 1, 100, 100)
    sizes = {}
    for limit in (None, 128 << 20):
        evaluator = IncrementalEvaluator(networks.Yi().eval(), SweepGrid.over(100, 40), images, memory_limit=limit)
        evaluator.start(images, torch.zeros(1, 1, 1, 1))
        sizes[limit] = evaluator.plan.bytes_of_strips
        assert 1 <= evaluator.tune(10_000, limit) <= 10_000
    assert sizes[128 << 20] <= 64 << 20 < sizes[None]
    with pytest.raises(NotIncremental, match="MiB do not hold"):
        evaluator.tune(10_000, 1 << 20)


# -- random architectures ------------------------------------------------------------------------------


@st.composite
def architectures(draw: st.DrawFn) -> tuple[list[tuple[object, ...]], tuple[int, int]]:
    layers: list[tuple[object, ...]] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(
            st.sampled_from(["conv", "conv", "conv", "max", "avg", "act", "residual", "cat", "norm", "up", "pad"])
        )
        if kind == "conv":
            kernel = [draw(st.integers(1, 5)) for _ in range(2)]
            dilation = [draw(st.integers(1, 3)) for _ in range(2)]
            # Padding beyond the kernel's reach crashes oneDNN (torch 2.13: a padded 1x1 kernel on a 1x1 map).
            padding = [draw(st.integers(0, min(3, (k - 1) * d))) for k, d in zip(kernel, dilation, strict=True)]
            stride = [draw(st.integers(1, 3)) for _ in range(2)]
            layers.append(
                (kind, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), draw(st.sampled_from([1, 2, 4])))
            )
        elif kind in ("max", "avg"):
            kernel = draw(st.integers(2, 4))
            layers.append(
                (
                    kind,
                    kernel,
                    draw(st.integers(1, 3)),
                    draw(st.integers(0, kernel // 2)),
                    draw(st.booleans()),
                    draw(st.booleans()),
                )
            )
        elif kind == "pad":
            layers.append((kind, tuple(draw(st.integers(-1, 3)) for _ in range(4)), draw(st.sampled_from([0.0, 0.7]))))
        elif kind == "up":
            layers.append(
                (kind, draw(st.integers(2, 3)), draw(st.booleans()), draw(st.integers(1, 4)), draw(st.integers(0, 1)))
            )
        else:
            layers.append((kind, draw(st.integers(0, 5))))
    return layers, (draw(st.integers(6, 23)), draw(st.integers(6, 23)))


class Random(nn.Module):
    """Four channels throughout; ``spec`` as drawn above."""

    def __init__(self, spec: list[tuple[object, ...]]) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(self.layer(*entry) for entry in spec)
        self.stem, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 6)

    @staticmethod
    def layer(kind: str, *given: object) -> nn.Module:
        if kind == "conv":
            kernel, stride, padding, dilation, groups = given
            return nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups)  # type: ignore[arg-type]
        if kind == "max":
            kernel, stride, padding, ceil, _ = given
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)  # type: ignore[arg-type]
        if kind == "avg":
            kernel, stride, padding, ceil, include = given
            return nn.AvgPool2d(kernel, stride, padding, ceil, include)  # type: ignore[arg-type]
        if kind == "pad":
            return nn.ConstantPad2d(given[0], given[1])  # type: ignore[arg-type]
        if kind == "up":
            factor, nearest, kernel, padding = given
            if nearest:
                return nn.Upsample(scale_factor=factor)  # type: ignore[arg-type]
            padding = min(padding, (kernel - 1) // 2)  # type: ignore[call-overload,operator]
            return nn.ConvTranspose2d(4, 4, kernel, factor, padding)  # type: ignore[arg-type]
        if kind == "act":
            choices = [nn.ReLU(inplace=True), nn.PReLU(4), nn.GELU(), nn.Hardswish(), nn.Tanh(), nn.SiLU()]
            return choices[int(given[0])]  # type: ignore[call-overload,no-any-return]
        if kind == "norm":
            return nn.BatchNorm2d(4)
        return (
            nn.Conv2d(4, 4, 3, padding=1)
            if kind == "residual"
            else nn.Conv2d(4, 2, 1 + 2 * (int(given[0]) % 2), padding=int(given[0]) % 2)
        )  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, *_), layer in zip(self.spec, self.layers, strict=True):
            if kind == "residual":
                x = F.relu(layer(x)) + x
            elif kind == "cat":
                x = torch.cat((layer(x), x.mean(1, keepdim=True), layer(x).amax(1, keepdim=True)), 1)
            else:
                x = layer(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    architectures(),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(["clip", "valid"]),
    st.booleans(),
)
def test_random_architectures(
    drawn: tuple[list[tuple[object, ...]], tuple[int, int]], h: int, w: int, stride: int, border: str, double: bool
) -> None:
    spec, size = drawn
    dtype = torch.float64 if double else torch.float32
    model = networks.lively(Random(spec)).to(dtype)
    images = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(3)).to(dtype)
    try:
        with torch.no_grad():
            model(images)
    except RuntimeError:
        return  # the map shrank to nothing
    grid = SweepGrid.over(size, (min(h, size[0]), min(w, size[1])), stride=stride, border=border)  # type: ignore[arg-type]
    evaluator = IncrementalEvaluator(model, grid, images)
    fill = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(4)).to(dtype)
    positions = some(grid, 2, 40)
    with torch.no_grad():
        expected = model(ops.occlude_positions(images, fill, positions, grid.native()))
    evaluator.start(images, fill)
    difference = float((evaluator.outputs(positions) - expected).abs().max())
    assert difference <= TOLERANCE[dtype] * float(expected.abs().max())


# -- random networks -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, 150, 15))
def test_random_networks(first: int) -> None:
    endings = [fuzz.check(seed) for seed in range(first, first + 15)]
    assert sum(ending.startswith("incremental") for ending in endings) >= 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["rectangle", "start", "padding", "last use"])
def test_random_networks_find_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right_extent, right_window = layout.extent, operations._conv
    if fault == "rectangle":

        def shorter(intervals: Any, members: Any, size: int) -> Any:
            found = right_extent(intervals, members, size)
            return replace(found, length=max(1, found.length - 1))

        monkeypatch.setattr(layout, "extent", shorter)
    elif fault == "start":

        def later(intervals: Any, members: Any, size: int) -> Any:
            found = right_extent(intervals, members, size)
            return replace(found, start=np.minimum(found.start + 1, size - found.length))

        monkeypatch.setattr(layout, "extent", later)
    elif fault == "padding":

        def unpadded(
            b: Any, node: Any, ref: Any, weight: Any, bias: Any, stride: Any, padding: Any, *rest: Any
        ) -> None:
            right_window(b, node, ref, weight, bias, stride, 0, *rest)

        monkeypatch.setattr(operations, "_conv", unpadded)
    else:
        monkeypatch.setattr(Analysis, "_last_uses", lambda self: {k: [k - 1] for k in range(1, len(self.program))})
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(60):
            fuzz.check(seed)


# -- what is refused -----------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.change = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), change

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.change(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def assign(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def on_clone(x: Tensor) -> Tensor:
    y = x.clone().relu_()
    return x - y


def through_alias(x: Tensor) -> Tensor:
    y = F.dropout(x, 0.5, False)  # x itself
    y.mul_(2)
    return x + 1


def stepwise(x: Tensor) -> Tensor:
    y = x * 1
    z = y.add_(1)
    y.mul_(2)
    return torch.cat((x, y - 0.5 * z), 1)[:, 2:6]


@pytest.mark.parametrize("change", [on_clone, through_alias, stepwise])
def test_in_place_operations_keep_their_meaning(change: Callable[[Tensor], Tensor]) -> None:
    model = networks.lively(Wrapped(change)).double()
    images = torch.rand((2, 3, 12, 13), generator=torch.Generator().manual_seed(8)).double()
    grid = SweepGrid.over((12, 13), (5, 6))
    compare(model, images, grid, torch.zeros(1, 1, 1, 1).double(), torch.arange(2 * grid.positions))


def on_view(x: Tensor) -> Tensor:
    x.view(x.size(0), -1).relu_()
    return x


def augmented(x: Tensor) -> Tensor:
    y = x
    y *= 2  # torch.fx records a product and leaves x unchanged
    return x + y


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "control flow": (lambda x: x if x.sum() > 0 else -x, "trace"),
    "assignment": (assign, "assignment"),
    "view": (on_view, "view"),
    "batch": (lambda x: x - x.mean(0, keepdim=True), "other images"),
    "position in the batch": (lambda x: x * torch.arange(x.shape[0]).view(-1, 1, 1, 1), "other images"),
    "random": (lambda x: x + torch.randn(1), "not deterministic"),
    "augmented assignment": (augmented, "something else than the model"),
    "random like": (lambda x: x * torch.rand_like(x), "random"),
    "dropout": (lambda x: F.dropout(x, 0.5), "drops at random"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, reason = REFUSED[name]
    with pytest.raises(NotIncremental, match=reason):
        IncrementalEvaluator(Wrapped(change).eval(), SweepGrid.over(12, 3), torch.rand(2, 3, 12, 12))


def test_refuses_training_mode_hooks_and_batch_statistics() -> None:
    grid, images = SweepGrid.over(12, 3), torch.rand(2, 3, 12, 12)
    with pytest.raises(NotIncremental, match="training mode"):
        IncrementalEvaluator(Wrapped(F.relu), grid, images)
    hooked = Wrapped(F.relu).eval()
    hooked.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(NotIncremental, match="hooks"):
        IncrementalEvaluator(hooked, grid, images)
    with pytest.raises(NotIncremental, match="running statistics"):
        IncrementalEvaluator(
            nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).eval(), grid, images
        )


def test_the_model_is_left_alone() -> None:
    model, images = make("resnet18", torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inplace = [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)]
    grid = SweepGrid.over((64, 48), 10)
    evaluator = IncrementalEvaluator(model, grid, images)
    kept = images.clone()
    evaluator.start(images, torch.zeros(1, 1, 1, 1))
    evaluator.outputs(torch.arange(5))
    assert torch.equal(images, kept)
    assert [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)] == inplace
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- the native op -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", [0.0, -np.inf])
def test_gather_windows(dtype: torch.dtype, padding: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    for channels in (1, 3, 16):
        maps = torch.randn((3, channels, 9, 11), generator=generator).to(dtype)
        images = torch.randint(0, 3, (60,), generator=generator)
        origins, places = (torch.randint(-8, 13, (60, 2), generator=generator) for _ in range(2))
        patches = torch.randn((60, channels, 5, 4), generator=generator).to(dtype)
        for patch in ((None, None), (patches, places)):
            arguments = (maps, images, origins, 6, 7, *patch, padding)
            native = ops.gather_windows(*arguments)
            assert native.is_contiguous(memory_format=torch.channels_last)
            with monkeypatch.context() as patched:
                patched.setenv("OCCFAST_BACKEND", "reference")
                assert torch.equal(native, ops.gather_windows(*arguments))


def test_gather_windows_by_hand() -> None:
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    out = ops.gather_windows(
        maps,
        torch.tensor([0]),
        torch.tensor([[-1, 2]]),
        3,
        3,
        torch.full((1, 1, 2, 1), 9.0),
        torch.tensor([[0, 3]]),
        -1.0,
    )
    assert out[0, 0].tolist() == [[-1, -1, -1], [2, 9, -1], [6, 9, -1]]


def test_gather_windows_checks_its_arguments() -> None:
    maps, images, origins = torch.zeros(2, 1, 3, 3), torch.tensor([0, 2]), torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="positions"):
        ops.gather_windows(maps, images, origins, 2, 2, None, None, 0.0)
    with pytest.raises(TypeError, match="origins"):
        ops.gather_windows(maps, images.clamp(max=1), origins.int(), 2, 2, None, None, 0.0)
    torch.library.opcheck(ops.gather_windows, (maps, images.clamp(max=1), origins, 2, 2, None, None, 0.0))


def pieces(channels: int, dtype: torch.dtype, edges: tuple[int, int, int, int]) -> tuple[object, ...]:
    """Random arguments of ``gather_pieces`` whose cuts only ask for pieces that are there."""
    g = torch.Generator().manual_seed(6)
    h, w, rows, columns, m = 9, 11, 3, 4, 13
    r, c, nr, nc = edges

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    def cuts(count: int, first: int, number: int, size: int) -> Tensor:
        # low, full_low, full_high, high with ends of at most two, and where pieces of two begin
        low = torch.randint(1, 3, (count,), generator=g)
        full = low + (0 if first else 2)
        last = full + torch.randint(0, 3, (count,), generator=g)
        high = (last + (2 if first + number == 2 else 0)).clamp(max=size)
        starts = torch.stack(((full - 2).clamp(0, size - 2), last.clamp(0, size - 2)), 1)
        return torch.cat((torch.stack((low, full, last, high), 1), starts, starts), 1)

    indices = [torch.randint(0, k, (m,), generator=g) for k in (2, rows, columns)]
    return (
        random(2, channels, h, w),
        random(2, channels, h, w),
        *indices,
        cuts(rows, r, nr, h),
        cuts(columns, c, nc, w),
        torch.randint(-3, 8, (2 * m, 2), generator=g),
        5,
        6,
        random(2 * rows, channels, 2, w),
        random(2 * columns, channels, h, 2),
        random(nr * nc * m, channels, 2, 2),
        list(edges),
        -1.0,
    )


@pytest.mark.parametrize("edges", [(0, 0, 2, 2), (1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 7])
def test_gather_pieces(channels: int, edges: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = pieces(channels, dtype, edges)
        native = ops.gather_pieces(*arguments)
        with monkeypatch.context() as patched:
            patched.setenv("OCCFAST_BACKEND", "reference")
            assert torch.equal(native, ops.gather_pieces(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels, out", [(1, 3), (3, 32), (5, 70)])
def test_convolutions_of_windows(channels: int, out: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(7)
    maps = torch.randn((2, channels, 12, 13), generator=g).to(dtype)
    images, origins = torch.randint(0, 2, (17,), generator=g), torch.randint(-4, 9, (17, 2), generator=g)
    weight, bias = torch.randn((out, channels, 3, 2), generator=g).to(dtype), torch.randn(out, generator=g).to(dtype)
    packed = ops.pack_convolution(weight, bias, ops.convolution_block(maps))
    for relu in (0, 1):
        arguments = (maps, images, origins, 9, 10, None, None, 0.0, *packed, out, [3, 2, 2, 1, 2, 3, relu])
        found = ops.gather_windows(*arguments)
        windows = ops.gather_windows(*arguments[:8])
        expected = F.conv2d(windows.double(), weight.double(), bias.double(), (2, 1), 0, (2, 3))
        expected = expected.relu() if relu else expected
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())
        with monkeypatch.context() as patched:
            patched.setenv("OCCFAST_BACKEND", "reference")
            twin = ops.gather_windows(*arguments)
        assert float((twin - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())
    torch.library.opcheck(ops.gather_windows, arguments)
    # Rectified or not, NaN stays NaN.
    poisoned = torch.full_like(maps, float("nan"))
    read = F.conv2d(ops.gather_windows(poisoned, *arguments[1:8]), weight, None, (2, 1), 0, (2, 3))
    assert torch.equal(ops.gather_windows(poisoned, *arguments[1:]).isnan(), read.isnan()) and read.isnan().any()
