"""Low resolution of training images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from occfast.models import Preprocessing
from occfast.occlude import NoisyOccluder
from occfast.train import Augment, Jitter
from occfast.train.resolution import LowResolution


def test_the_share_of_images_loses_its_resolution() -> None:
    images = torch.rand(200, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(1))
    out = LowResolution(0.5, 2.5)(images, uniform)
    low = uniform < 0.5
    assert 70 < int(low.sum()) < 130 and torch.equal(out[~low], images[~low])
    small = F.interpolate(images[low], (16, 12), mode="bilinear", antialias=True)
    assert torch.equal(out[low], F.interpolate(small, (40, 30), mode="bilinear"))
    # White noise averaged over 2.5 x 2.5 pixels and more.
    assert float(out[low].var()) < float(images[low].var()) / 6


def test_occluders_lose_it_too() -> None:
    p = Preprocessing(size=(40, 40), color="gray", mean=0.0, std=1.0)
    images = torch.full((8, 1, 40, 40), 128, dtype=torch.uint8)
    occluder = NoisyOccluder((20, 20), noise=("salt_and_pepper",), level=(1.0, 1.0))
    ids, uniform = torch.arange(8), torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    jitter = Jitter(0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
    sharp = Augment(p, jitter, occluder)(images, ids, uniform[:, :7])
    low = Augment(p, jitter, occluder, low_resolution=LowResolution(1.0, 4.0))(images, ids, uniform)
    assert {0.0, 1.0} <= set(sharp.unique().tolist()) and float(low.min()) > 0 and float(low.max()) < 1
    assert torch.equal(low, LowResolution(1.0, 4.0)(sharp, uniform[:, 7]))


def test_nothing_is_reduced_without_a_share() -> None:
    images = torch.rand(3, 1, 8, 8)
    assert LowResolution(0.0)(images, torch.zeros(3)) is images


@pytest.mark.parametrize(
    ("values", "match"),
    [((1.5, 2.0), r"share: expected a number in \[0, 1\]"), ((0.5, 0.9), "factor: expected a number")],
)
def test_values_out_of_range(values: tuple[float, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LowResolution(*values)
