"""Lower resolution of some training images, for faces that are small where the network is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class LowResolution:
    """Reduces some images, with antialiasing, and enlarges them again; both bilinearly.

    Attributes:
        share: Probability of each image, in [0, 1].
        factor: Factor by which height and width are reduced, at least 1.

    Raises:
        TypeError, ValueError: If a value is no number or out of range.
    """

    share: float = 0.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        checks.number(self.share, "share", 0.0, 1.0)
        checks.number(self.factor, "factor", 1.0)

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Reduce and enlarge images at random.

        Args:
            images: Float [N, C, H, W].
            uniform: A random number in [0, 1) for each image, [N].

        Returns:
            Images of the same shape.
        """
        rows = (uniform.to(images.device) < self.share).nonzero()[:, 0]
        if not len(rows):
            return images
        size = images.shape[-2:]
        small = [max(1, round(side / self.factor)) for side in size]
        reduced = F.interpolate(images[rows], small, mode="bilinear", antialias=True)
        return images.index_copy(0, rows, F.interpolate(reduced, size, mode="bilinear"))
