"""A small network that knows the ORL faces, and its full sweeps: made once for all tests that need a real map."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import occfast
from occfast.data import ORL
from occfast.sweep.geometry import SweepGrid
from occfast.sweep.incremental import IncrementalEvaluator

STRIDE = 2  # of the full sweeps; faces are 50×50
SIZE = (12, 12)  # of the occluder


class SmallNet(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((1, 12), (12, 24), (24, 48)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
                       nn.MaxPool2d(2, ceil_mode=True)]  # fmt: skip
        super().__init__(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(48, 40))


@dataclass
class Known:
    """Attributes: network; images, labels: held out and right uncovered; maps: uint8 [N, rows, columns]; margins: float64 of that
    shape, the largest other output less the label's; full: the sweep that they are of."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    maps: Tensor
    margins: Tensor
    full: occfast.OcclusionMap


@functools.cache
def known(epochs: int = 30) -> Known:
    """Trains for some seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        faces = ORL()
        images = F.avg_pool2d(faces.images.float() / 63.75 - 2, 2)
        train, held = faces.split((5, 5))
        network = SmallNet()
        optimiser = torch.optim.Adam(network.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * 10)
        for _ in range(epochs):
            for part in train[torch.randperm(len(train))].split(20):
                x = torch.roll(images[part], torch.randint(-2, 3, (2,)).tolist(), (2, 3))
                loss = F.cross_entropy(network(x), faces.labels[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        network.eval()
    with torch.no_grad():
        held = held[network(images[held]).argmax(1) == faces.labels[held]]
    images, labels = images[held], faces.labels[held]
    full = occfast.occlusion_map(network, images, labels, SIZE, STRIDE, progress=False)
    torch.set_num_threads(before)
    assert full.per_image is not None
    return Known(network, images, labels, torch.from_numpy(full.per_image), margins(network, images, labels), full)


@torch.no_grad()
def margins(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of every position of every image."""
    grid = SweepGrid.over(images.shape[-2:], SIZE, STRIDE)
    evaluator = IncrementalEvaluator(network, grid, images)
    evaluator.start(images, torch.zeros(1, 1, 1, 1))
    outputs = evaluator.outputs(torch.arange(len(images) * grid.positions)).double()
    own = labels.repeat_interleave(grid.positions)[:, None]
    found = outputs.scatter(1, own, -torch.inf).amax(1) - outputs.gather(1, own)[:, 0]
    return found.view(len(images), grid.rows, grid.columns)
