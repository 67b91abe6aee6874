"""A base network whose receptive fields are known: each feature sees one 4×4 patch and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from occfast.pdsn import Base, Regions, boxes

SIZE, PATCH, CHANNELS, CLASSES = (16, 12), 4, 6, 5


def toy_images(each: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 [5 · each, 1, 16, 12] in [0, 1]: a pattern for each of five people, and noise."""
    random = torch.Generator().manual_seed(99)
    patterns = torch.rand(CLASSES, 1, *SIZE, generator=random)
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(each)
    noise = torch.randn(len(labels), 1, *SIZE, generator=random)
    return (patterns[labels] + 0.15 * noise).clamp(0, 1), labels


def toy_base() -> Base:
    """Patches → 6 features each, [N, 6, 4, 3] → flattened → five people; the classifier is fitted."""
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(1, CHANNELS, PATCH, PATCH), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    base = Base(trunk, nn.Flatten(), nn.Linear(CHANNELS * 12, CLASSES))
    images, labels = toy_images()
    base.train()
    optimizer = torch.optim.Adam(base.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(base(images), labels).backward()
        optimizer.step()
    base.zero_grad()
    return base.eval()


def toy_regions() -> Regions:
    """Three bands that end where patches end; they cover 1, 2 and 1 of the 4 rows of features."""
    return boxes({"top": (0, 0, 4, 12), "middle": (4, 0, 12, 12), "bottom": (12, 0, 16, 12)}, SIZE, percentile=50)


#: Rows of features that each band corrupts.
DIRTY = (slice(0, 1), slice(1, 3), slice(3, 4))
