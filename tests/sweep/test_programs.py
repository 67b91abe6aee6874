"""TorchScript and torch.export programs, and pooled maps: incremental sweeps equal single forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occfast.sweep.evaluators.behavior import NotIncremental
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.geometry import SweepGrid
from tests import networks

SIZE = (24, 20)


def images() -> Tensor:
    return torch.rand((2, 3, *SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def compared(model: nn.Module, original: nn.Module, stride: int = 3) -> IncrementalEvaluator:
    """Compare an incremental sweep of a program with the original on one image and one position at a time."""
    grid, given = SweepGrid.over(SIZE, (5, 6), stride=stride), images()
    fill = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    evaluator = IncrementalEvaluator(model, grid, given)
    evaluator.start(given, fill)
    got = evaluator.outputs(torch.arange(2 * grid.positions))
    expected = []
    for image in given.split(1):
        for p in range(grid.positions):
            top, left, bottom, right = grid.window(p)
            covered = image.clone()
            covered[:, :, top:bottom, left:right] = 0.3
            with torch.no_grad():
                expected.append(original(covered))
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-10, atol=1e-11)
    return evaluator


class Scripted(nn.Module):
    """What TorchScript programs hold: branches on sizes, a loop, lists, checks, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.fc = nn.Conv2d(16, 6, 3, 2), nn.Linear(6, 5)
        self.repeat: int = 2

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("expected images")
        x = self.first(x)
        for _ in range(self.repeat):
            x = F.relu(self.twice(x))
        if x.size(2) > 10:
            x = F.max_pool2d(x, [2, 2])
        halves = [x, x[:, :, :, :] * 0.5]
        x = self.down(torch.cat(halves, dim=1))
        x += 0.1
        return self.fc(F.adaptive_avg_pool2d(F.leaky_relu(x, 0.1), 1).view(x.size(0), -1))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    return networks.lively(make()).double().eval()


EXPORTED: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, images()),
    "frozen script": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "export": lambda net: torch.export.export(net, (images(),), **EXPORTED).module(),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "branches": Scripted,
    "residual": lambda: networks.ResNet((1, 1), 8, classes=5),
    "iresnet": lambda: nn.Sequential(networks.IBlock(3, 8, 2), nn.Flatten(), nn.Linear(8 * 12 * 10, 4)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("way", WAYS)
def test_programs_are_followed_exactly(way: str, name: str) -> None:
    net = built(NETS[name])
    program = WAYS[way](net)
    before = {key: value.clone() for key, value in program.state_dict().items()}
    evaluator = compared(program, net)
    assert all(torch.equal(value, before[key]) for key, value in program.state_dict().items())
    if name != "branches":  # which torch.fx can't trace
        eager = compared(net, net)
        assert [step.size for step in evaluator.plan.steps] == [step.size for step in eager.plan.steps]
    assert sum(step.conv is not None for step in evaluator.plan.steps) >= 3
    assert evaluator.plan.whole_from in ("mean", "adaptive_avg_pool2d", "flatten", "reshape")


class Reordered(nn.Module):
    """Its program holds a list of channels as a tensor in a list of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))[:, [5, 0, 2, 2]])).amax((2, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [*WAYS, "frozen trace"])
def test_lists_of_channels_are_followed(way: str) -> None:
    net = built(Reordered)
    program = torch.jit.freeze(torch.jit.trace(net, images())) if way == "frozen trace" else WAYS[way](net)
    assert sum(step.conv is not None for step in compared(program, net).plan.steps) >= 1


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.mean()) > 0.2:
            x = x * 2
        return x.mean((2, 3))


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_looks_at_the_images_is_swept_densely() -> None:
    with pytest.raises(NotIncremental, match=r"reads a number from a tensor|control flow depends on the images"):
        IncrementalEvaluator(torch.jit.script(Decides()).eval(), SweepGrid.over(SIZE, 4), images())


POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "kept dimensions": lambda x: x.mean((-1, -2), keepdim=True).flatten(1),
    "sum": lambda x: x.sum((2, 3)),
    "pool": lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
    "large": lambda x: (x + 1e6).mean((2, 3)) - 1e6,
    "excited": lambda x: (x * x.mean((2, 3), keepdim=True).sigmoid()).amax((2, 3)),
    "several readers": lambda x: torch.cat((x.mean((2, 3)), x.amax((2, 3)), x.mean([2, 3])), 1),
}


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3, padding=1), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv(x)))


@pytest.mark.parametrize("name", POOLED)
def test_pooled_maps_change_by_the_rectangle(name: str) -> None:
    net = networks.lively(Pooled(POOLED[name])).double().eval()
    grid = SweepGrid.over(SIZE, (5, 6), stride=3)
    evaluator = IncrementalEvaluator(net, grid, images())
    assert any(step.pooled is not None for step in evaluator.plan.steps)
    if name == "large":  # a millionth of it is the image
        covered = images()
        covered[:, :, :3, :3] = 0.3
        given = evaluator.start(images(), torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64))
        assert given.shape == (2, 6)
        torch.testing.assert_close(evaluator.outputs(torch.tensor([0])), net(covered[:1]), rtol=0, atol=1e-8)
        return
    compared(net, net)
