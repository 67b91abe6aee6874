"""Models that break what a sweep takes for granted: refused with the reason, or swept densely and said; no wrong map."""

from __future__ import annotations

import logging
import re
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
    """The map, an image at a time, in float64 and with no evaluator of ours."""
    with torch.no_grad():
        grid = occfast.sweep.SweepGrid.over((16, 18), (4, 5), 2)
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
    return x.relu() if float(x.sum()) >= -1e9 else x  # the branch is always the same, but a trace can't know


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
    """``x.view(x.size(0), -1)`` before the classifier is everywhere, and raises on feature maps in channels_last."""
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


BATCH: dict[str, Callable[[], Any]] = {
    "batch norm without running statistics": lambda: OfBatch().eval(),
    "position in the batch": lambda: model(lambda x: x * torch.arange(1.0, len(x) + 1).view(-1, 1, 1, 1)),
    "other images": lambda: model(lambda x: x - x.mean(0, keepdim=True)),
    "a function": lambda: lambda x: torch.arange(4.0) + x.mean((1, 2, 3)).cumsum(0)[:, None],
}


@pytest.mark.parametrize("method", ["auto", "dense", "incremental", "adaptive", "sampled"])
@pytest.mark.parametrize("name", BATCH)
def test_an_output_that_depends_on_its_batch_has_no_map(name: str, method: str) -> None:
    with pytest.raises(ValueError, match="model: the output for an image depends on the other images of its batch"):
        occfast.occlusion_map(BATCH[name](), images(), **{**GRID, "method": method})


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


def test_a_model_that_changes_its_mind_is_caught_by_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checks beforehand overlook: an incremental sweep that is wrong raises."""
    from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator

    net, right = model(F.relu), IncrementalEvaluator.outputs
    monkeypatch.setattr(IncrementalEvaluator, "outputs", lambda self, positions: right(self, positions) * 1.01)
    with pytest.raises(RuntimeError, match="the incremental sweep is not the dense one: outputs differ by"):
        occfast.occlusion_map(net, images(), **{**GRID, "method": "incremental"})  # type: ignore[arg-type]
