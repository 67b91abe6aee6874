"""Noisy occluders compared with plain PyTorch, kornia, albumentations, scikit-image and a copy of the batch.

Each image must be read and written once and about 800 of its pixels drawn, so ``clone()`` is the floor. RandomErasing
of kornia and CoarseDropout of albumentations do less: one gray value, no noise, uniform locations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bench.conftest import Compare
from occfast import LocationDistribution, NoisyOccluder
from occfast.native import ops, reference

BATCHES = {
    "gray 100×100 float32": (torch.float32, (256, 1, 100, 100)),
    "gray 100×100 uint8": (torch.uint8, (256, 1, 100, 100)),
    "RGB 112×112 float32": (torch.float32, (256, 3, 112, 112)),
    "RGB 112×112 uint8": (torch.uint8, (256, 3, 112, 112)),
}


def plain_pytorch(images: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Apply the transform in batched PyTorch as a user would write it, with PyTorch's random numbers."""
    n, c, h, w = images.shape
    unit = images.float() / 255 if images.dtype == torch.uint8 else images
    at = torch.multinomial(p, n, replacement=True)
    top, left = (at // w - 10).view(-1, 1, 1, 1), (at % w - 20).view(-1, 1, 1, 1)
    i, j = torch.arange(h).view(1, 1, -1, 1), torch.arange(w).view(1, 1, 1, -1)
    inside = (i >= top) & (i < top + 20) & (j >= left) & (j < left + 40)
    kind = torch.randint(0, 3, (n, 1, 1, 1))
    level, gray = torch.rand(n, 1, 1, 1) * 0.3, torch.rand(n, c, 1, 1).expand(n, c, h, w)
    z, u = torch.randn(n, c, h, w), torch.rand(n, c, h, w)
    noisy = torch.where(
        kind == 0,
        torch.where(u < level, (u < level / 2).float(), gray),
        torch.where(kind == 1, gray + gray * level * z, gray + level * z),
    ).clamp(0, 1)
    out = torch.where(inside, noisy, unit)
    return (out * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else out


def scikit_image(images: torch.Tensor, p: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    from skimage.util import random_noise

    out = images.numpy().copy()
    n, c, h, w = out.shape
    modes = ("s&p", "speckle", "gaussian")
    for k in range(n):
        i, j = divmod(int(generator.choice(h * w, p=p)), w)
        box = slice(max(i - 10, 0), i + 10), slice(max(j - 20, 0), j + 20)
        level, mode = generator.uniform(0, 0.3), modes[generator.integers(3)]
        block = np.broadcast_to(generator.uniform(0, 1, (c, 1, 1)), out[k][:, box[0], box[1]].shape)
        amount = {"amount": level} if mode == "s&p" else {"var": level**2}
        noisy = random_noise(block, mode=mode, rng=generator, **amount)
        out[k][:, box[0], box[1]] = noisy * 255 if out.dtype == np.uint8 else noisy
    return out


def albumentations(images: torch.Tensor, size: tuple[int, int]) -> Callable[[], object]:
    """Return a function that applies CoarseDropout to one image at a time: one gray hole of the same size, no noise."""
    import albumentations as peer

    drop = peer.CoarseDropout(
        num_holes_range=(1, 1),
        hole_height_range=(20 / size[0], 20 / size[0]),
        hole_width_range=(40 / size[1], 40 / size[1]),
        fill=0.5 if images.is_floating_point() else 127,
        p=1.0,
    )
    pictures = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    return lambda: [drop(image=picture)["image"] for picture in pictures]


WHO = [
    "occfast",
    "occfast in place",
    "PyTorch twin",
    "plain PyTorch",
    "kornia RandomErasing",
    "albumentations",
    "scikit-image",
    "clone()",
]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", BATCHES)
def test_noisy_occluder(compare: Compare, who: str, name: str) -> None:
    dtype, shape = BATCHES[name]
    images = (torch.rand(shape) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    size = shape[-2:]
    locations = LocationDistribution.normal(size)
    p = locations.probabilities.flatten()
    if who == "occfast":
        occluder = NoisyOccluder((20, 40), locations)
        run = lambda: occluder(images)  # noqa: E731
    elif who == "occfast in place":
        occluder = NoisyOccluder((20, 40), locations)
        run = lambda: occluder.apply_(images)  # noqa: E731
    elif who == "PyTorch twin":
        ids, out = torch.arange(shape[0]), torch.empty_like(images)
        kinds = [ops.KINDS[k] for k in ("salt_and_pepper", "speckle", "gaussian")]
        params: tuple[Any, ...] = (shape[1], *size, 0, 1.0, [20, 20, 40, 40], [0.0, 0.3, 0.0, 1.0], kinds, False)

        def run() -> None:
            drawn = reference.draw_occluders(ids, *locations.tables(images.device), *params)
            reference.paint_occluders(images, out, ids, *drawn, 0, 0.0, 1.0)
    elif who == "plain PyTorch":
        run = lambda: plain_pytorch(images, p)  # noqa: E731
    elif who == "kornia RandomErasing":
        from kornia.augmentation import RandomErasing

        if dtype == torch.uint8:
            pytest.skip("kornia takes floating-point images only")
        area = 20 * 40 / (size[0] * size[1])
        erase = RandomErasing(scale=(area, area), ratio=(0.5, 0.5), value=0.5, p=1.0)
        run = lambda: erase(images)  # noqa: E731
    elif who == "albumentations":
        pytest.importorskip("albumentations", reason="a peer for this row only: pip install albumentations")
        run = albumentations(images, size)
    elif who == "scikit-image":
        generator = np.random.default_rng(0)
        run = lambda: scikit_image(images, p.numpy(), generator)  # noqa: E731
    else:
        run = images.clone
    compare(
        run, workload=f"noisy occluder 20×40, {name}", who=who, items=shape[0], unit="images", moved=2 * images.nbytes
    )
