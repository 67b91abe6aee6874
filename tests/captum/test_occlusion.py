"""``occfast.captum.Occlusion`` against Captum's, which is the definition, and against a slow one in float64."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import occfast
from occfast.captum import Occlusion, swept
from occfast.captum.windows import Windows
from tests import networks
from tests.conftest import TinyNet

# name: (network, shape of an image)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "yi": (lambda: networks.Yi(classes=20, width=8), (1, 100, 100)),
    "resnet18": (lambda: networks.ResNet(width=4, classes=20), (3, 64, 48)),
    "iresnet": (lambda: networks.IResNet((1, 1, 1, 1), width=4, size=56, features=16), (3, 56, 56)),
    "vgg16": (lambda: networks.VGG(), (3, 32, 32)),
    "squeeze": (lambda: networks.MobileNet(squeeze=True), (3, 40, 36)),
    "densenet": (lambda: networks.DenseNet(), (3, 24, 30)),
    "split": (lambda: networks.Split(), (3, 21, 26)),
}


def both(function: Any, inputs: Any, windows: Any, **options: Any) -> tuple[Any, Any]:
    peers = pytest.importorskip("captum.attr")
    theirs = peers.Occlusion(function).attribute(inputs, sliding_window_shapes=windows, **options)
    return Occlusion(function).attribute(inputs, sliding_window_shapes=windows, **options), theirs


def close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.device == expected.device
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    assert float(expected.abs().max()) > 1e-3 * scale  # the comparison can fail


@torch.no_grad()
def largest(model: nn.Module, images: Tensor) -> float:
    return float(model(images).abs().max())


def make(name: str, n: int = 2) -> tuple[nn.Module, Tensor]:
    build, shape = NETWORKS[name]
    images = torch.rand((n, *shape), generator=torch.Generator().manual_seed(1))
    return networks.lively(build()), images


def compare(name: str, step: int) -> None:
    model, images = make(name)
    channels, height, width = images.shape[1:]
    window = (channels, height // 3, width // 4 + 3)
    found, expected = both(
        model,
        images,
        window,
        strides=(channels, step, min(step + 1, window[2])),
        target=[3, 1],
        baselines=0.2,
        perturbations_per_eval=32,
    )
    close(found, expected, largest(model, images))


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_captum(name: str) -> None:
    for step in {"yi": (23,), "resnet18": (13,), "iresnet": (9,)}.get(name, (5, 7)):
        compare(name, step)


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_captum_at_finer_strides(name: str, step: int) -> None:
    compare(name, step)


def slow(
    net: nn.Module, image: Tensor, window: tuple[int, ...], stride: tuple[int, ...], fill: Tensor, target: int
) -> Any:
    """Return the attribution of one image [C, H, W] from its definition."""
    total, count = np.zeros(image.shape), np.zeros(image.shape)
    with torch.no_grad():
        clean = net(image[None])[0, target]
        places = [
            range(0, size - part + step, step) for size, part, step in zip(image.shape, window, stride, strict=True)
        ]
        for corner in itertools.product(*places):
            place = tuple(slice(start, start + part) for start, part in zip(corner, window, strict=True))
            copy = image.clone()
            copy[place] = fill.expand_as(image)[place]
            total[place] += float(clean - net(copy[None])[0, target])
            count[place] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize(
    ("window", "stride"), [((2, 5, 4), (1, 2, 3)), ((3, 4, 9), (3, 4, 2)), ((1, 17, 3), (1, 1, 3))]
)
def test_equals_the_definition(window: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net, images = TinyNet(channels=3).eval().double(), torch.rand(2, 3, 17, 14, dtype=torch.float64)
    fill = torch.rand(2, 3, 17, 14, dtype=torch.float64)
    found = Occlusion(net).attribute(images, window, stride, baselines=fill, target=torch.tensor([1, 4]))
    for k, target in enumerate((1, 4)):
        np.testing.assert_allclose(
            found[k], slow(net, images[k], window, stride, fill[k], target), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_windows_cover_everything_and_end_at_the_edge(size: int) -> None:
    for window in range(1, size + 1):
        for stride in range(1, window + 1):
            box = Windows((size, size), (window, window), (stride, stride))
            seen = torch.zeros(size, size)
            values = torch.rand(1, *box.counts, dtype=torch.float64)
            total = torch.zeros(size, size, dtype=torch.float64)
            for number in range(box.count):
                place = box.place(number)
                seen[place] += 1
                total[place] += values[0, number % box.counts[0], number // box.counts[0]]
            assert seen.min() >= 1
            grid = box.grid()
            assert grid.positions == box.count
            corners = {tuple(place.start for place in box.place(number)) for number in range(box.count)}
            assert corners == {grid.window(p)[:2] for p in range(grid.positions)}
            assert torch.allclose(box.averaged(values)[0], total / seen)


CHANNELS = {
    "each": ((1, 6, 5), (1, 3, 4)),
    "two of three": ((2, 6, 5), (1, 3, 4)),
    "two of three, cut": ((2, 6, 5), (2, 5, 5)),
    "one int": ((3, 6, 5), 3),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", CHANNELS)
def test_windows_over_channels(name: str, caplog: pytest.LogCaptureFixture) -> None:
    window, stride = CHANNELS[name]
    model, images = make("split")
    with caplog.at_level(logging.INFO, "occfast"):
        found, expected = both(model, images, window, strides=stride, target=2, perturbations_per_eval=8)
    close(found, expected, largest(model, images))
    assert "window by window" not in caplog.text


BASELINES = {
    "none": None,
    "int": 1,
    "tensor of no dimension": torch.tensor(0.5),
    "row": torch.linspace(0, 1, 26),
    "channels": torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1),
    "one image": torch.rand(1, 3, 21, 26),
    "each image": torch.rand(2, 3, 21, 26),
    "tuple": (0.25,),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name: str) -> None:
    model, images = make("split")
    found, expected = both(model, images, (3, 7, 8), strides=5, baselines=BASELINES[name], target=1)
    close(found, expected, largest(model, images))


class Segments(nn.Module):
    """Outputs [N, 4, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.body(x) * factor


class OneNumber(nn.Module):
    """Outputs [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((1, 2, 3))


TARGETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "int": (networks.Split, 3),
    "negative int": (networks.Split, -1),
    "tensor of one": (networks.Split, torch.tensor(3)),
    "tensor": (networks.Split, torch.tensor([3, 0])),
    "list": (networks.Split, [3, 0]),
    "list of tuples": (networks.Split, [(3,), (0,)]),
    "tuple": (networks.Split, (2,)),
    "all outputs": (networks.Split, None),
    "pixel": (Segments, (1, 4, 5)),
    "pixels": (Segments, [(1, 4, 5), (0, 3, 9)]),
    "slice": (Segments, (1, slice(3, 5), 2)),
    "part": (Segments, (slice(0, 2), 3, 9)),
    "one number": (OneNumber, None),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", TARGETS)
def test_targets(name: str, caplog: pytest.LogCaptureFixture) -> None:
    build, target = TARGETS[name]
    model, images = networks.lively(build()), torch.rand(2, 3, 12, 15)
    with caplog.at_level(logging.INFO, "occfast"):
        found, expected = both(model, images, (3, 5, 6), strides=(3, 3, 4), target=target, perturbations_per_eval=3)
    close(found, expected, largest(model, images))
    assert "window by window" not in caplog.text


class Pair(nn.Module):
    """Takes two images and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        return factor * self.body(x) - self.body(y)


class Batchwise(nn.Module):
    """Outputs depend on the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / x.amax()).mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0])


class Words(nn.Module):
    """Takes indices [N, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1)


def _images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


DENSE: dict[str, tuple[Any, Any, Any, dict[str, Any], str]] = {
    "rows of numbers": (
        nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)),
        _images(4, 9),
        (3,),
        dict(strides=2, target=1, perturbations_per_eval=2),
        "not made of images",
    ),
    "gray images": (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        _images(2, 4, 4),
        (3, 3),
        dict(target=1),
        "not made of images",
    ),
    "volumes": (
        nn.Sequential(nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 3 * 5, 4)),
        _images(2, 1, 6, 5, 7),
        (1, 3, 2, 4),
        dict(strides=(1, 2, 2, 3), target=[1, 0], perturbations_per_eval=5),
        "not made of images",
    ),
    "two images": (
        Pair(),
        (_images(2, 3, 8, 7), _images(2, 3, 6, 9)),
        ((3, 3, 3), (2, 4, 3)),
        dict(strides=(2, (1, 2, 3)), baselines=(0.5, _images(1, 3, 6, 9)), target=5, perturbations_per_eval=7),
        "several inputs",
    ),
    "a tensor as argument": (
        Pair(),
        _images(2, 3, 8, 7),
        (3, 3, 3),
        dict(additional_forward_args=(_images(2, 3, 6, 9), 2.0), strides=2, target=5, perturbations_per_eval=2),
        "an additional argument is a tensor",
    ),
    "the batch": (Batchwise(), _images(1, 3, 9, 8), (3, 3, 3), dict(strides=2, target=2), "other images of its batch"),
    "a number for the batch": (
        lambda x: x.square().sum(),
        _images(3, 3, 6, 7),
        (3, 2, 3),
        dict(strides=2),
        "a row for each image",
    ),
    "a Python number": (lambda x: float(x.double().sum()), _images(2, 1, 5, 5), (1, 2, 2), {}, "a row for each image"),
    "words": (Words(), torch.arange(10).view(2, 5) % 7, (2,), dict(target=1, baselines=6), "not made of images"),
    "training": (
        nn.Sequential(nn.Flatten(), nn.Linear(75, 3)).train(),
        _images(2, 3, 5, 5),
        (3, 2, 2),
        dict(target=0),
        "training mode",
    ),
}


@pytest.mark.peers
@pytest.mark.parametrize("name", DENSE)
def test_what_is_not_swept_is_computed_as_captum_does(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, inputs, windows, options, reason = DENSE[name]
    if isinstance(function, nn.Module) and name != "training":
        function = networks.lively(function)
    with caplog.at_level(logging.INFO, "occfast"):
        found, expected = both(function, inputs, windows, **options)
    pairs = zip(found, expected, strict=True) if isinstance(inputs, tuple) else [(found, expected)]
    for one, other in pairs:
        close(one, other)
    lines = [line for line in caplog.messages if "window by window" in line]
    assert len(lines) == 1 and reason in lines[0]


@pytest.mark.peers
def test_functions_and_additional_arguments(caplog: pytest.LogCaptureFixture) -> None:
    model, images = networks.lively(Segments()), _images(2, 3, 12, 15)
    with caplog.at_level(logging.INFO, "occfast"):
        for function in (model, model.forward, lambda x, factor: model(x, factor)):
            found, expected = both(
                function, images, (3, 5, 6), strides=4, target=(1, 4, 5), additional_forward_args=2.5
            )
            close(found, expected, largest(model, images))
    assert "window by window" not in caplog.text


@pytest.mark.peers
def test_autocast_is_as_in_captum() -> None:
    model, images = make("split")
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = both(model, images, (3, 7, 8), strides=6, target=1)
    close(found, expected, largest(model, images))


@pytest.mark.peers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, images = make("split")
    model, images = model.to(dtype), images.to(dtype)
    found, expected = both(model, images, (3, 7, 8), strides=6, target=1)
    scale = largest(model, images)
    if dtype == torch.float64:
        close(found, expected, scale)
    else:  # Captum adds up in bfloat16
        assert found.dtype == expected.dtype and float((found - expected).abs().max()) <= 0.04 * scale


def test_the_model_and_the_inputs_are_left_alone() -> None:
    class Spoils(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).mean((2, 3))

    images = _images(2, 3, 9, 8)
    before = images.clone()
    found = Occlusion(Spoils()).attribute(images, (3, 3, 3), 2, target=1)
    assert torch.equal(images, before) and not found.requires_grad
    again = Occlusion(lambda x: (2 * x).mean((2, 3))).attribute(images.requires_grad_(), (3, 3, 3), 2, target=1)
    assert torch.allclose(found, again) and not again.requires_grad


def test_progress_and_many_images(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def recorded(what: str, unit: str, show: bool, note: Any) -> Iterator[Any]:
        yield lambda done, total: calls.append((done, total)) if show else None

    monkeypatch.setattr("occfast.captum.occlusion.progress", recorded)
    model, images = make("split", 20)
    whole = Occlusion(model).attribute(images, (3, 7, 8), 6, target=1, show_progress=True)
    assert calls[-1] == (16, 16) and calls == sorted(calls)
    calls.clear()
    Occlusion(lambda x: x.sum()).attribute(images, (3, 7, 8), 6, show_progress=True)
    assert calls == [(k, 16) for k in range(1, 17)]
    monkeypatch.undo()
    single = [Occlusion(model).attribute(image[None], (3, 7, 8), 6, target=1) for image in images]
    assert torch.allclose(whole, torch.cat(single), atol=1e-6)
    assert capfd.readouterr().err == ""


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "function": (dict(function=3), TypeError, "forward_func: expected a model or a function, got int"),
    "inputs": (dict(inputs=[1, 2]), TypeError, "inputs: expected a tensor or a tuple of tensors, got list"),
    "examples": (
        dict(inputs=(torch.rand(2, 3), torch.rand(3, 3)), windows=((1,), (1,))),
        ValueError,
        "inputs: expected one number of examples",
    ),
    "empty": (dict(inputs=torch.rand(0, 3, 5, 5)), ValueError, "inputs: expected at least one element"),
    "window type": (dict(windows=3), TypeError, "sliding_window_shapes: expected a tuple, got int"),
    "window rank": (dict(windows=(3, 3)), ValueError, "sliding_window_shapes: expected a tuple of 3 ints"),
    "window size": (dict(windows=(3, 9, 3)), ValueError, "sliding_window_shapes: expected windows that fit"),
    "window zero": (dict(windows=(3, 0, 3)), ValueError, "sliding_window_shapes: expected numbers of at least 1"),
    "strides": (dict(strides=4), ValueError, "strides: expected steps of at most the window"),
    "strides rank": (dict(strides=(1, 1)), ValueError, "strides: expected a tuple of 3 ints"),
    "strides type": (dict(strides=1.5), ValueError, "strides: expected a tuple of 3 ints"),
    "baselines": (dict(baselines="mean"), TypeError, "baselines: expected numbers or tensors, got str"),
    "baseline shape": (dict(baselines=torch.rand(3, 2)), ValueError, "baselines: expected a tensor that broadcasts"),
    "baseline count": (dict(baselines=(0, 0)), ValueError, "baselines: expected one for each of the 1 inputs, got 2"),
    "target": (dict(target=3), ValueError, r"target: expected an index into outputs of shape \[2, 3\], got 3"),
    "target type": (dict(target=1.5), TypeError, "target: expected an int, a tuple, a tensor or a list, got float"),
    "target dtype": (dict(target=torch.rand(2)), TypeError, "target: expected integers, got float32"),
    "target count": (dict(target=[0, 1, 2]), ValueError, "target: expected one index, or one for each of the 2"),
    "target list": (dict(target=[0, "a"]), TypeError, "target: expected a list of ints or of tuples"),
    "target rank": (dict(target=(0, 1)), ValueError, "target: expected an index into outputs"),
    "batch": (dict(perturbations_per_eval=0), ValueError, "perturbations_per_eval: expected an int of at least 1"),
    "output": (
        dict(function=lambda x: [x]),
        TypeError,
        "forward_func: expected to return a tensor or a number, got list",
    ),
    "aggregate": (
        dict(function=lambda x: x.sum(), target=None, perturbations_per_eval=2),
        ValueError,
        "perturbations_per_eval: expected 1 for an output that does not grow",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(name: str) -> None:
    change, error, message = BAD[name]
    arguments = dict(function=lambda x: x.mean((2, 3)), inputs=torch.rand(2, 3, 5, 5), windows=(3, 2, 2), target=0)
    given = {**arguments, **change}
    function, inputs, windows = (given.pop(key) for key in ("function", "inputs", "windows"))
    with pytest.raises(error, match=message):
        Occlusion(function).attribute(inputs, windows, **given)


def _changes() -> dict[str, Callable[[nn.Module], Any]]:
    def weight(model: nn.Module) -> None:
        next(model.parameters()).data.mul_(1.5)

    def hook(model: nn.Module) -> None:
        model.register_forward_hook(lambda module, inputs, output: 2 * output)

    def forward(model: nn.Module) -> None:
        before = model.forward
        model.forward = lambda x: before(x).square()  # type: ignore[method-assign]

    def module(model: nn.Module) -> None:
        model.classifier = nn.Sequential(model.classifier, nn.Tanh()).eval()

    return {"weight": weight, "hook": hook, "forward": forward, "module": module, "nothing": lambda model: None}


@pytest.mark.parametrize("name", _changes())
def test_a_kept_plan_is_of_the_same_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = TinyNet(channels=3).eval(), _images(2, 3, 17, 14)
    windows, strides = (3, 5, 4), 3
    kept = Occlusion(model)
    first = kept.attribute(images, windows, strides, target=1)
    _changes()[name](model)
    plans = []
    real = swept._runner
    monkeypatch.setattr(swept, "_runner", lambda *given: plans.append(given) or real(*given))
    again = kept.attribute(images, windows, strides, target=1)
    assert len(plans) == (name != "nothing") and torch.equal(first, again) == (name == "nothing")
    assert torch.allclose(again, Occlusion(model).attribute(images, windows, strides, target=1), atol=1e-7)
    # Other images, other targets and other numbers of images need no other plan; other windows do.
    plans.clear()
    other = kept.attribute(images[:1].flip(-1), windows, strides, target=3)
    assert not plans
    assert torch.allclose(other, Occlusion(model).attribute(images[:1].flip(-1), windows, strides, target=3), atol=1e-7)
    plans.clear()
    kept.attribute(images, (3, 5, 5), strides, target=1)
    assert len(plans) == 1
    assert pickle.loads(pickle.dumps(Occlusion(nn.Flatten()))).forward_func(images).shape == (2, 714)


def test_a_network_that_reads_a_number_from_elsewhere() -> None:
    factor = [1.0]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15 * 12, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * factor[0]

    model, images = networks.lively(Reads()), _images(2, 3, 17, 14)
    kept = Occlusion(model)
    first = kept.attribute(images, (3, 5, 4), 3, target=1)
    factor[0] = 3.0
    assert torch.allclose(kept.attribute(images, (3, 5, 4), 3, target=1), 3 * first, rtol=1e-4, atol=1e-6)


def test_it_is_a_subpackage() -> None:
    assert occfast.captum.Occlusion is Occlusion
