"""Small networks trained on real faces, and their full sweeps, made once for all tests.

``python -m tests.sweep.face_maps`` trains them again (with $OCCFAST_DATA for LFW) and writes ``face_networks.json``. They
are kept because training amplifies the last bits: another processor or version of PyTorch gives another network.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import occfast
from occfast.data import LFW, ORL, Aligned, FaceDataset
from occfast.sweep.evaluators.incremental.evaluator import IncrementalEvaluator
from occfast.sweep.evaluators.scorer import Scorer
from occfast.sweep.geometry import SweepGrid

NETWORKS = Path(__file__).with_name("face_networks.json")
STRIDE = 2  # of the full sweeps; faces are 50×50
SIZE = (12, 12)  # of the occluder, where it does not matter
WIDE, FLAT = (20, 20), (10, 20)  # occluders as large for these faces as 40×40 and 20×40 for 100×100

no_lfw = pytest.mark.skipif(
    not (Path(os.environ.get("OCCFAST_DATA", "")) / "lfw").is_dir() or "OCCFAST_DATA" not in os.environ,
    reason="needs LFW: a folder lfw in $OCCFAST_DATA",
)
DATA = ["orl", pytest.param("lfw", marks=no_lfw)]


class SmallNet(nn.Sequential):
    def __init__(self, people: int) -> None:
        layers: list[nn.Module] = []
        for before, after in ((1, 12), (12, 24), (24, 48)):
            layers += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        super().__init__(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(48, people))


@dataclass
class Known:
    """A network with held-out images, and their labels, that it classifies correctly without an occluder."""

    network: nn.Module
    images: Tensor
    labels: Tensor


def _orl() -> tuple[FaceDataset, Tensor, Tensor]:
    """Return five images of each person for training and five held out."""
    faces = ORL()
    train, held = faces.split((5, 5))
    return faces, train, held


def _lfw() -> tuple[FaceDataset, Tensor, Tensor]:
    """Return half of the images of people with 30 or more for training and a quarter held out. The quarter between
    them served to choose settings."""
    faces = Aligned(LFW(min_images=30), gray=True)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))
    return faces, order[: len(faces) // 2], order[3 * len(faces) // 4 :]


_FACES = {"orl": _orl, "lfw": _lfw}


def _inputs(faces: FaceDataset, chosen: Tensor) -> Tensor:
    """Return images as the networks take them, float32 [n, 1, 50, 50]."""
    images = torch.stack([faces[int(k)].image for k in chosen])
    return F.avg_pool2d(images.float() / 63.75 - 2, 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def known(data: str = "orl") -> Known:
    """Read the network and the images that it classifies correctly."""
    return _known(data)


@functools.cache
def _known(data: str) -> Known:
    stored = json.loads(NETWORKS.read_text())[data]
    faces, _, _ = _FACES[data]()
    held = torch.tensor(stored["images"])
    network = SmallNet(int(faces.labels.max()) + 1)
    network.load_state_dict({name: _restored(entry) for name, entry in stored["network"].items()})
    return Known(network.eval(), _inputs(faces, held), faces.labels[held])


def _train(data: str) -> dict[str, Any]:
    """Train a network for some seconds; return its weights and its images, as they are stored."""
    epochs, batch, at_most = {"orl": (30, 20, 200), "lfw": (12, 32, 160)}[data]
    torch.manual_seed(0)
    faces, train, held = _FACES[data]()
    images, labels = _inputs(faces, torch.arange(len(faces))), faces.labels
    network = SmallNet(int(labels.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    steps = len(train) // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for _ in range(epochs):
        for part in train[torch.randperm(len(train))][: steps * batch].split(batch):
            x = torch.roll(images[part], torch.randint(-2, 3, (2,)).tolist(), (2, 3))
            loss = F.cross_entropy(network(x), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    stored = {name: _rounded(tensor) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: _restored(entry) for name, entry in stored.items()})
    with torch.no_grad():
        right = held[network.eval()(images[held]).argmax(1) == labels[held]]
    return {"images": right[:at_most].tolist(), "network": stored}


def _rounded(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor in steps of a 1,000th of its largest value."""
    step = float(tensor.abs().max()) / 1000 or 1.0
    return {"shape": list(tensor.shape), "step": step, "values": (tensor / step).round().int().flatten().tolist()}


def _restored(entry: dict[str, Any]) -> Tensor:
    return (torch.tensor(entry["values"]).double() * entry["step"]).float().view(entry["shape"])


def full(data: str = "orl", occluder: tuple[int, int] = SIZE) -> occfast.OcclusionMap:
    """Return the full sweep of the correctly classified images, made once."""
    return _full(data, occluder)


@functools.cache
def _full(data: str, occluder: tuple[int, int]) -> occfast.OcclusionMap:
    k = known(data)
    with _one_thread():
        return occfast.occlusion_map(k.network, k.images, k.labels, occluder, stride=STRIDE, progress=False)


def margins(data: str = "orl", occluder: tuple[int, int] = SIZE) -> NDArray[np.float64]:
    """Return the largest other output minus the label's at every position of every image; made once."""
    return _margins(data, occluder)


@functools.cache
@torch.no_grad()
def _margins(data: str, occluder: tuple[int, int]) -> NDArray[np.float64]:
    k = known(data)
    grid = SweepGrid.over(k.images.shape[-2:], occluder, stride=STRIDE)
    evaluator = IncrementalEvaluator(k.network, grid, k.images)
    evaluator.start(k.images, torch.zeros(1, 1, 1, 1))
    with _one_thread():
        outputs = evaluator.outputs(torch.arange(len(k.images) * grid.positions)).double()
    own = k.labels.repeat_interleave(grid.positions)[:, None]
    found = outputs.scatter(1, own, -torch.inf).amax(1) - outputs.gather(1, own)[:, 0]
    return found.view(len(k.images), grid.rows, grid.columns).numpy()


@contextmanager
def looked_up(data: str, occluder: tuple[int, int]) -> Iterator[Callable[..., occfast.OcclusionMap]]:
    """Yield a function like occlusion_map that looks scores up in the full sweep of the correctly classified images, so
    that many seeds cost little."""
    sweep = full(data, occluder)
    assert sweep.per_image is not None
    maps = torch.from_numpy(sweep.per_image).double().flatten(1)

    def score(self: Scorer, positions: Tensor) -> None:
        numbers = self.images[positions // self.grid.positions, 0, 0, 0].long()
        table = torch.from_numpy(margins(data, occluder)).flatten(1) if self.margins else maps
        self.scores.view(-1)[positions] = table[numbers, positions % self.grid.positions]

    faces = torch.zeros(len(maps), 1, *sweep.grid.image)
    faces[:, 0, 0, 0] = torch.arange(len(maps))

    def call(count: int | None = None, report: Any = False, **arguments: Any) -> occfast.OcclusionMap:
        count = len(maps) if count is None else count
        return occfast.occlusion_map(
            lambda x: torch.eye(2)[torch.zeros(len(x), dtype=torch.long)],
            faces[:count],
            torch.zeros(count, dtype=torch.long),
            sweep.grid.occluder,
            stride=sweep.grid.stride,
            progress=report,
            batch_size=64,
            **arguments,
        )

    with patch.object(Scorer, "score", score):
        yield call


if __name__ == "__main__":
    with _one_thread():
        NETWORKS.write_text(json.dumps({data: _train(data) for data in _FACES}, separators=(",", ":")) + "\n")
