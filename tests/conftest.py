"""Fixtures of all tests: small networks and seeded images."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Predictions with the built-in speeds: the same on every machine, and no time is spent on measuring.
os.environ.setdefault("OCCFAST_CALIBRATION", "off")

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

settings.register_profile("occfast", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("occfast")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class TinyNet(nn.Module):
    """A classifier small enough for a map in a fraction of a second, large enough to have opinions."""

    def __init__(self, channels: int = 1, classes: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
        )
        self.classifier = nn.Linear(72, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).flatten(1))


@pytest.fixture
def tiny_net() -> nn.Module:
    """Weights large enough that an occluder changes some of its decisions."""
    net = TinyNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net.eval()


@pytest.fixture
def faces() -> Tensor:
    """Float32 [6, 1, 17, 14] in [0, 1]: not faces, but as good for geometry."""
    return torch.rand(6, 1, 17, 14, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(tiny_net: nn.Module, faces: Tensor) -> Tensor:
    """Return the network's classes without an occluder, so that no image is left out."""
    with torch.no_grad():
        return tiny_net(faces).argmax(1)
