"""Models that break the assumptions of a sweep are refused with the reason or swept densely with a log line."""

from __future__ import annotations

import logging
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import occfast
from occfast.sweep import explain
from tests import networks

GRID: Any = dict(occluder=(4, 5), stride=2, score="similarity_drop", progress=False)
ROUNDING: Any = dict(rtol=0, atol=2e-6)


class Model(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.change = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), change

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.change(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


def model(change: Callable[[Tensor], Tensor]) -> nn.Module:
    return networks.lively(Model(change))


def images(n: int = 3) -> Tensor:
    return torch.rand((n, 3, 16, 18), generator=torch.Generator().manual_seed(1))


def by_hand(net: nn.Module) -> np.ndarray[Any, Any]:
    """Return the map from single images, with scores in float64 and without an evaluator."""
    with torch.no_grad():
        grid = occfast.sweep.SweepGrid.over((16, 18), (4, 5), stride=2)
        drops = np.zeros((3, grid.positions))
        for n, image in enumerate(images()):
            clean = net(image[None])[0].double()
            for p in range(grid.positions):
                top, left, bottom, right = grid.window(p)
                covered = image.clone()
                covered[:, top:bottom, left:right] = 0
                drops[n, p] = 1 - F.cosine_similarity(net(covered[None])[0].double(), clean, dim=0)
    return drops.mean(0).reshape(grid.rows, grid.columns)


def assigned(x: Tensor) -> Tensor:
    x[:, ::2] = x[:, ::2].relu()
    return x


def viewed(x: Tensor) -> Tensor:
    x.view(x.size(0), -1).relu_()
    return x


def split(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a.mul_(2)
    return x * b.repeat(1, 2, 1, 1)


def augmented(x: Tensor) -> Tensor:
    y = x
    y *= 2
    return x + y


def shy(x: Tensor) -> Tensor:
    return x.relu() if float(x.sum()) >= -1e9 else x  # always the same branch, which a trace can't know


def hooked(kind: str) -> nn.Module:
    net = model(F.relu)
    module: Any = net.conv
    if kind == "forward":
        module.register_forward_hook(lambda *given: given[-1] * 2)
    elif kind == "pre":
        module.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    return net


DENSE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "data-dependent control flow": (lambda: model(shy), "torch.fx can't trace it"),
    "assignment to a part": (lambda: model(assigned), "item assignment"),
    "in place on a view": (lambda: model(viewed), "in place on a tensor that a view shows"),
    "in place on a chunk": (lambda: model(split), "in place on a tensor that a view shows"),
    "in place behind an alias": (lambda: model(augmented), "its trace computes something else"),
    "forward hook": (lambda: hooked("forward"), "forward hooks"),
    "forward pre-hook": (lambda: hooked("pre"), "forward hooks"),
}


@pytest.mark.parametrize("name", DENSE)
def test_swept_densely_and_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = DENSE[name]
    net = build()
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **GRID)  # type: ignore[arg-type]
    assert m.method == "dense" and "the sweep is dense: " in caplog.text and reason in caplog.text
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    assert m.values.max() > 1e-4
    with pytest.raises(ValueError, match=f"method: 'incremental' can't sweep this model: .*{reason}"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})  # type: ignore[arg-type]


def flattened(x: Tensor) -> Tensor:
    x = F.max_pool2d(x, 4)
    return x.view(x.size(0), -1).view(x.size(0), 8, 4, 4)


@pytest.mark.parametrize("method", ["auto", "dense", "incremental"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_view_of_a_map_is_no_obstacle(method: str, batch_size: int | None) -> None:
    """``x.view(x.size(0), -1)`` before the classifier is common, and raises on feature maps in channels_last."""
    net = model(flattened)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        net(images().contiguous(memory_format=torch.channels_last))
    m = occfast.occlusion_map(net, images(), **{**GRID, "method": method, "batch_size": batch_size})
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    assert method == "auto" or m.method == method
    if m.method == "dense":
        assert m.settings["layout"] == "contiguous"


WHOLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "group norm": (lambda: nn.GroupNorm(2, 8), "GroupNorm '1'"),
    "instance norm": (lambda: nn.InstanceNorm2d(8), "InstanceNorm2d '1'"),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), r"Upsample '1' \(bilinear\)"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_whole_maps_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    layer, reason = WHOLE[name]
    rest = [nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    net = networks.lively(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer(), *rest))
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **GRID)
    assert m.method == "dense" and re.search(
        f"the sweep is dense: .* times as fast; {reason} needs whole maps", caplog.text
    )
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    assert re.search(f"whole maps from {reason} on$", str(explain(net, (16, 18), (4, 5))))
    swept = occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})  # densely from there on
    np.testing.assert_allclose(swept.values, m.values, **ROUNDING)


class OfBatch(nn.Module):
    """Batch norm that takes the statistics of its batch even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8, track_running_stats=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def scaled_by(statistic: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    net = model(F.relu)
    return lambda: lambda x: net(x / statistic(x))


BATCH: dict[str, Callable[[], Any]] = {
    "maximum": scaled_by(lambda x: x.max()),
    "minimum": scaled_by(lambda x: x.min() + 1),
    "mean": scaled_by(lambda x: x.mean()),
    "median": scaled_by(lambda x: x.median() + 1),
    "quantization": lambda: (
        lambda x: model(F.relu)(torch.quantize_per_tensor_dynamic(x, torch.quint8, False).dequantize())
    ),
    "sorted images": lambda: lambda x: model(F.relu)(x[x.mean((1, 2, 3)).argsort()]),
    "batch norm without running statistics": lambda: OfBatch().eval(),
    "position in the batch": lambda: model(lambda x: x * torch.arange(1.0, len(x) + 1).view(-1, 1, 1, 1)),
    "other images": lambda: model(lambda x: x - x.mean(0, keepdim=True)),
    "a function": lambda: lambda x: torch.arange(4.0) + x.mean((1, 2, 3)).cumsum(0)[:, None],
}


@pytest.mark.parametrize("method", ["auto", "dense", "incremental", "adaptive", "sampled"])
@pytest.mark.parametrize("name", BATCH)
def test_outputs_that_depend_on_the_batch_are_refused(name: str, method: str) -> None:
    with pytest.raises(ValueError, match="model: the output for an image depends on the other images of its batch"):
        occfast.occlusion_map(BATCH[name](), images(), **{**GRID, "method": method})


@pytest.mark.parametrize("method", ["auto", "dense", "incremental"])
@pytest.mark.parametrize("brightest", [0, 1, 2])
@pytest.mark.parametrize("name", ["maximum", "mean"])
def test_whichever_image_sets_the_statistic(name: str, brightest: int, method: str) -> None:
    bright = images()
    bright[brightest, :, 3, 3] = 1.5
    with pytest.raises(ValueError, match="model: the output for an image depends on the other images of its batch"):
        occfast.occlusion_map(BATCH[name](), bright, **{**GRID, "method": method})


@pytest.mark.parametrize("method", ["auto", "dense", "incremental", "sampled"])
def test_training_mode_of_any_module_is_refused(method: str) -> None:
    net = model(F.relu)
    net.conv.train()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="model: expected evaluation mode, got training mode"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": method})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: F.dropout(x, 0.5), "drops at random"),
        (lambda x: x * torch.rand_like(x), "draws random numbers"),
        (lambda x: x + torch.randn(()), "not deterministic"),
    ],
)
def test_a_random_model_is_swept_densely_with_a_warning(
    change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = model(change)
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **GRID)  # type: ignore[arg-type]
    assert m.method == "dense" and reason in caplog.text
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "another sweep will give another map" in warning.getMessage()
    with pytest.raises(ValueError, match=f"'incremental' can't sweep this model: .*{reason}"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})  # type: ignore[arg-type]


def test_the_self_check_catches_a_wrong_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """An incremental sweep that is wrong raises, whatever earlier checks miss."""
    from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator

    net, right = model(F.relu), IncrementalEvaluator.outputs
    monkeypatch.setattr(IncrementalEvaluator, "outputs", lambda self, positions: right(self, positions) * 1.01)
    with pytest.raises(RuntimeError, match="the incremental sweep is not the dense one: outputs differ by"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})  # type: ignore[arg-type]


# -- models that keep something ------------------------------------------------------------------------


class Hooked(nn.Module):
    """Classifies what a forward hook stored, in a dictionary of the model or through a closure."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.fc = nn.Linear(8, 5)
        seen: dict[str, Tensor] = {}
        self.seen = seen
        owner = weakref.ref(self)
        if kind == "hook":
            self.body[1].register_forward_hook(lambda module, given, output: seen.update(x=output))
        elif kind == "hook of self":
            self.body[1].register_forward_hook(lambda module, given, output: self.seen.update(x=output))
        elif kind == "weak reference":
            self.body[1].register_forward_hook(lambda module, given, output: owner().seen.update(x=output))
        else:
            right, self.body[1].forward = self.body[1].forward, self.remember  # type: ignore[method-assign]
            self.right = right

    def remember(self, x: Tensor) -> Tensor:
        self.seen["x"] = self.right(x)
        return self.seen["x"]

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.fc(self.seen["x"].mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("method", ["auto", "dense"])
@pytest.mark.parametrize("kind", ["hook", "hook of self", "weak reference", "method"])
def test_what_a_model_stores_is_its_own(kind: str, method: str, batch_size: int | None) -> None:
    net = networks.lively(Hooked(kind))
    m = occfast.occlusion_map(net, images(), **{**GRID, "method": method, "batch_size": batch_size})
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    assert m.values.max() > 1e-4


@pytest.mark.parametrize("method", ["auto", "dense"])
def test_a_model_that_changes_its_input(method: str) -> None:
    inner = model(F.relu)
    net = networks.lively(Wrapped(inner, lambda net, x: net(x.sub_(0.5).mul_(2))))
    given, expected = images(), images()
    m = occfast.occlusion_map(net, given, **{**GRID, "method": method})
    assert torch.equal(given, expected)
    untouched = networks.lively(Wrapped(inner, lambda net, x: net((x - 0.5) * 2)))
    np.testing.assert_allclose(m.values, by_hand(untouched), **ROUNDING)


@pytest.mark.parametrize("method", ["auto", "dense"])
def test_a_model_that_returns_the_same_memory_again(method: str) -> None:
    inner, held = model(F.relu), torch.zeros(400, 5)
    net = Wrapped(inner, lambda net, x: held[: len(x)].copy_(net(x))).eval()
    m = occfast.occlusion_map(net, images(), **{**GRID, "method": method, "batch_size": 16})
    np.testing.assert_allclose(m.values, by_hand(inner), **ROUNDING)


def test_a_model_that_takes_one_image() -> None:
    def one(net: nn.Module, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise ValueError("one image")
        return net(x)  # type: ignore[no-any-return]

    inner = model(F.relu)
    m = occfast.occlusion_map(Wrapped(inner, one).eval(), images(), **{**GRID, "batch_size": 1})
    assert m.method == "dense"
    np.testing.assert_allclose(m.values, by_hand(inner), **ROUNDING)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.net, x)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_computed_weights_are_followed_and_stay(kind: str, new: bool) -> None:
    net = model(F.relu)
    place = nn.utils.parametrizations if new else nn.utils
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.conv = getattr(place, kind)(net.conv)  # type: ignore[arg-type]
    net.eval()
    with torch.no_grad():
        before = net(images())  # an old one can be copied only after a run without gradients
    types, names = [type(m) for m in net.modules()], list(net.state_dict())
    m = occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    with torch.no_grad():
        assert torch.equal(net(images()), before)
    assert types == [type(m) for m in net.modules()] and names == list(net.state_dict())


# -- idioms that are followed --------------------------------------------------------------------------


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


def padded(x: Tensor) -> Tensor:
    d = x.size(3) - F.max_pool2d(x, 3).size(3)
    return F.pad(F.max_pool2d(x, 3), [0, 0, d // 2, d - d // 2])


IDIOMS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.normalize": lambda x: F.normalize(x, dim=1),
    "torch.norm": lambda x: x / torch.norm(x, 2, 1, True),
    "group norm, then view": lambda x: F.adaptive_avg_pool2d(F.group_norm(x, 2), 1).view(x.size(0), -1)[
        :, :, None, None
    ],
    "pad by size": padded,
    "pool by size": lambda x: F.avg_pool2d(x, (x.size(2), x.size(3))),
    "max pool by size": lambda x: F.max_pool2d(x, kernel_size=x.size()[2:]),
    "mean by dim()": lambda x: x.mean(dim=(x.dim() - 2, x.dim() - 1), keepdim=True),
    "max of two maps": lambda x: torch.cat([torch.max(*x.chunk(2, 1))] * 2, 1),
    "slices": lambda x: torch.cat((x[:, 4:], x[:, :4] * 2), 1),
    "strided slice": lambda x: x[:, :, ::2, 1::2],
    "shuffle": shuffled,
    "another dtype": lambda x: x.to(torch.float64).exp().to(torch.float32),
    "F.batch_norm": lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8) * 2, torch.ones(8), torch.ones(8)),
    "local response norm": lambda x: F.local_response_norm(x, 3),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_idioms_are_followed(name: str) -> None:
    net = model(IDIOMS[name])
    assert explain(net, (16, 18), (4, 5)).reason == ""
    for method in ("incremental", "auto"):
        m = occfast.occlusion_map(net, images(), **{**GRID, "method": method})
        assert method == "auto" or m.method == "incremental"
        np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    if name not in ("group norm, then view", "pool by size", "max pool by size", "mean by dim()"):
        assert explain(net, (16, 18), (4, 5)).whole_from in ("mean", "mean_1", "")


class Optional(Model):
    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        out = super().forward(x)
        return out if label is None else out[:, label]


class Several(Model):
    def forward(self, *xs: Tensor) -> Tensor:
        return super().forward(xs[0])


def embedding() -> nn.Module:
    net: Any = model(F.relu)
    net.forward = lambda x: F.normalize(net.change(net.conv(x)).mean((2, 3)))  # a closure: dense
    return net  # type: ignore[no-any-return]


class Embeds(Model):
    def embed(self, x: Tensor) -> Tensor:
        return self.change(self.conv(x)).mean((2, 3))


def another_forward() -> nn.Module:
    net: Any = Embeds(F.relu)
    net.forward = net.embed
    return networks.lively(net)


WRAPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "defaulted argument": (lambda: networks.lively(Optional(F.relu)), ""),
    "several arguments": (lambda: networks.lively(Several(F.relu)), ""),
    "another forward": (another_forward, ""),
    "forward that is a closure": (embedding, "torch.fx can't trace it"),
    "DataParallel": (lambda: nn.DataParallel(model(F.relu)).eval(), ""),
    "torch.compile": (lambda: torch.compile(model(F.relu), backend="eager"), ""),
    "synchronized batch norm": (
        lambda: networks.lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.SyncBatchNorm(8), nn.ReLU(), *list(plain())[2:])),
        "",
    ),
    "scripted": (lambda: torch.jit.script(plain()), ""),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(plain())), ""),
    "exported": (
        lambda: torch.export.export(plain(), (images(),), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
        "",
    ),
}


def plain() -> nn.Module:
    return networks.lively(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("name", WRAPPED)
def test_ways_to_hand_a_model_over(name: str, batch_size: int | None, caplog: pytest.LogCaptureFixture) -> None:
    build, reason = WRAPPED[name]
    net = build()
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **{**GRID, "batch_size": batch_size})
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    if not reason:
        assert occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"}).method == "incremental"
    else:
        assert m.method == "dense" and f"the sweep is dense: {reason}" in caplog.text


# -- other errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "adaptive"])
@pytest.mark.parametrize(
    ("place", "name"),
    [("evaluator", "trace"), ("evaluator", "Analysis"), ("evaluator", "plan"), ("analysis", "follow")],
)
def test_a_planner_that_raises_costs_only_speed(
    place: str, name: str, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from occfast.sweep.evaluators.incremental import analysis, evaluator

    def fail(*given: Any, **more: Any) -> Any:
        raise KeyError("an idiom of next year")

    net = model(F.relu)
    monkeypatch.setattr({"evaluator": evaluator, "analysis": analysis}[place], name, fail)
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **{**GRID, "method": method})
    if method == "auto":
        assert m.method == "dense"
        np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    reason = "it can't be analyzed (KeyError: 'an idiom of next year')"
    assert caplog.text.count("the sweep is dense: ") == 1 and reason in caplog.text
    assert str(explain(net, (16, 18), (4, 5))) == f"swept densely: {reason}"
    with pytest.raises(ValueError, match="'incremental' can't sweep this model: it can't be analyzed"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})


@pytest.mark.parametrize("fault", ["raises", "is wrong", "is not finite"])
def test_an_evaluator_that_fails_costs_only_speed(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator

    net, right = model(F.relu), IncrementalEvaluator.outputs

    def outputs(self: IncrementalEvaluator, positions: Tensor) -> Tensor:
        if fault == "raises":
            raise IndexError("an idiom of next year")
        return right(self, positions) * (1.01 if fault == "is wrong" else float("nan"))

    monkeypatch.setattr(IncrementalEvaluator, "outputs", outputs)
    monkeypatch.setattr("occfast.sweep.evaluators.incremental.forecast.WORTH_IT", 0.0)
    with caplog.at_level(logging.INFO, "occfast"):
        m = occfast.occlusion_map(net, images(), **GRID)
    assert m.method == "dense" and caplog.text.count("the sweep is dense: ") == 1
    np.testing.assert_allclose(m.values, by_hand(net), **ROUNDING)
    with pytest.raises((RuntimeError, IndexError)):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})
