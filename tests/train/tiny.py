"""Faces and a network small enough to train in a second: also for processes that tests start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occfast.data import Face, FaceDataset
from occfast.train import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
SIZE = (20, 16)


class Patterns(FaceDataset):
    """Each person is a pattern, each image of it has noise: gray [1, 20, 16]."""

    def __init__(self, people: int = 6, each: int = 10, noise: float = 0.15, bad: int | None = None) -> None:
        random = torch.Generator().manual_seed(7)
        means = F.interpolate(torch.rand(people, 1, 5, 4, generator=random), SIZE)
        images = means.repeat_interleave(each, 0) + noise * torch.randn(people * each, 1, *SIZE, generator=random)
        self.images = (255 * images.clamp(0, 1)).round().to(torch.uint8)
        self.labels = torch.arange(people).repeat_interleave(each)
        self.people = [f"person {k}" for k in range(people)]
        self.names = [f"person {k // each}/{k % each}.png" for k in range(people * each)]

    def __getitem__(self, k: int) -> Face:
        return Face(self.images[k], int(self.labels[k]), self.names[k], None)


class Colors(Patterns):
    """The same in three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.images = torch.cat([self.images, self.images, 255 - self.images], 1)


class Net(nn.Module):
    """Two convolutions; with norm and dropout if wanted."""

    classifier_name = "classifier"

    def __init__(self, classes: int | None, channels: int, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 5 * 4, 24),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = None if classes is None else nn.Linear(24, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        features = self.dropout(self.features(x))
        return features if self.classifier is None else self.classifier(features)


class Flat(nn.Module):
    """Calls ``view`` on a feature map, as many networks do: it can't run in channels_last."""

    def __init__(self, classes: int | None, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8 * 10 * 8, classes or 24)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        return self.classifier(maps.view(x.size(0), -1))


def recipe(stage: str = "classify", *overrides: str, **arguments: Any) -> Recipe:
    """A recipe over :class:`Patterns` and :class:`Net` in which everything that can be random is."""
    common = [
        "data.name=tests.train.tiny:Patterns",
        "network.name=tests.train.tiny:Net",
        "data.template=null",
        "seed=3",
        "epochs=3",
        "validation.share=0.18",  # 48 images to train on, four batches an epoch
        "log.every=2",
        "log.checkpoint=1000",
        "log.tensorboard=false",
        "optimizer.name=adamw",
        "optimizer.learning_rate=0.01",
        "occluder.share=0.5",
        "occluder.size=[6,6]",
        "jitter={flip: 0.5, shift: 0.05, scale: 0.1, turn: 8.0, gain: 0.2, offset: 0.1}",
        "batch.size=12",
    ]
    if stage == "classify":
        return load_recipe("A", [*common, *overrides])
    embed = ["batch.images_each=3", "loss.mining=semihard_random", "start=null", "validation.share=0.3"]
    return load_recipe("C", [*common, *embed, *overrides])
