"""Augmentation: from a batch of stored training images to the network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_npz
from ..models import Preprocessing
from ..occlude.locations import NORMAL_SPREAD, LocationDistribution
from ..occlude.noisy import NoisyOccluder
from ..sweep import OcclusionMap
from .drawn import DrawnOccluders
from .jitter import Jitter
from .recipe import OccluderPart
from .resolution import LowResolution

#: Temperatures of Eq. 4 in trigueros2018, by occluder (height, width).
TEMPERATURES = {(20, 20): 0.25, (20, 40): 0.4, (40, 40): 0.6}


#: Images that a CPU changes at a time: what all steps do to them stays in its cache.
_CHUNK = 8


@dataclass(frozen=True)
class Augment:
    """Drawn occlusions, jitter, noisy occluder, low resolution and scaling to the network's range.

    All of it happens on the images' device.

    Accessories are drawn on the stored image, where its landmarks are, and move with it under jitter.

    Attributes:
        preprocessing: Preparation that the network expects.
        jitter: Jitter, or None.
        occluder: Noisy occluder, keyed by the sample ids, or None.
        drawn: Drawn occlusions, or None; the noisy occluder then gets the images that they leave to it.
        low_resolution: Loss of resolution of occluded and other images, or None.
    """

    preprocessing: Preprocessing
    jitter: Jitter | None = None
    occluder: NoisyOccluder | None = None
    drawn: DrawnOccluders | None = None
    low_resolution: LowResolution | None = None

    @property
    def needs_landmarks(self) -> bool:
        """Whether a call needs landmarks."""
        return self.drawn is not None and self.drawn.needs_landmarks

    @property
    def draws(self) -> int:
        """Number of random numbers per image."""
        return self._jitter_draws + (self.low_resolution is not None)

    @property
    def _jitter_draws(self) -> int:
        return 0 if self.jitter is None else self.jitter.draws

    def __call__(self, images: Tensor, sample_ids: Tensor, uniform: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Convert stored images to the network's input.

        Args:
            images: uint8 [B, C, H, W].
            sample_ids: int64 [B].
            uniform: Random numbers in [0, 1), float32 [B, draws].
            landmarks: float64 [B, 5, 2], (row, column) in pixels, if :attr:`needs_landmarks`.

        Returns:
            float32 [B, C, H, W].
        """
        self.preprocessing.check(images)
        if images.device.type != "cpu" or len(images) <= _CHUNK:
            return self._changed(images, sample_ids, uniform, landmarks)
        parts = []
        for k in range(0, len(images), _CHUNK):
            rows = slice(k, k + _CHUNK)
            own = None if landmarks is None else landmarks[rows]
            parts.append(self._changed(images[rows], sample_ids[rows], uniform[rows], own))
        return torch.cat(parts)

    def _changed(self, images: Tensor, sample_ids: Tensor, uniform: Tensor, landmarks: Tensor | None) -> Tensor:
        """Convert some images of a batch; each depends on its own sample id and random numbers alone."""
        batch = images.float().div_(255)
        if self.drawn is not None:
            batch = self.drawn(batch, landmarks, sample_ids)
        batch = self.preprocessing.order(batch)
        if self.jitter is not None:
            batch = self.jitter(batch, uniform[:, : self._jitter_draws])
        if self.occluder is not None and self.drawn is None:
            batch = self.occluder(batch, sample_ids)
        elif self.occluder is not None and self.drawn is not None:
            rows = (self.drawn.kinds(sample_ids) == 0).nonzero()[:, 0]
            if len(rows):
                covered = self.occluder(batch[rows], sample_ids[rows])
                batch = batch.index_copy(0, rows, covered)
        if self.low_resolution is not None:
            batch = self.low_resolution(batch, uniform[:, self._jitter_draws])
        return self.preprocessing.scale(batch)


def occlusions_of(
    part: OccluderPart, drawn: dict[str, float], size: tuple[int, int], seed: int
) -> tuple[NoisyOccluder | None, DrawnOccluders | None]:
    """Create the noisy occluder and the drawn occlusions of a recipe; None for those without a share.

    Args:
        part: Settings of the noisy occluder.
        drawn: Shares of the drawn occlusions.
        size: (height, width) of the images.
        seed: Seed of all of them.

    Raises:
        ValueError: As :func:`occluder_of` and :class:`~occfast.train.drawn.DrawnOccluders`.
    """
    if not any(drawn.values()):
        return occluder_of(part, size, seed), None
    kinds = DrawnOccluders(drawn, part.share, seed)
    return occluder_of(replace(part, share=1.0) if part.share else part, size, seed), kinds


def occluder_of(part: OccluderPart, size: tuple[int, int], seed: int) -> NoisyOccluder | None:
    """Create the occluder of a recipe; return None if no image is occluded.

    Args:
        part: Settings.
        size: (height, width) of the images.
        seed: Seed of the occluder.

    Raises:
        ValueError: As :class:`~occfast.NoisyOccluder` and :func:`locations`.
    """
    if part.share == 0:
        return None
    occluder_size = part.size if any(isinstance(side, list) for side in part.size) else tuple(part.size)
    where: Any = part.locations
    if where == "normal" and part.spread != NORMAL_SPREAD:
        where = LocationDistribution.normal(size, part.spread)
    elif where not in ("uniform", "normal"):
        where = locations(where, part.temperature, occluder_size)
        if where.image_size != size:
            raise ValueError(f"occluder.locations: {part.locations} is for images of {where.image_size}, not {size}")
    noise: Any = tuple(part.noise)
    return NoisyOccluder(
        occluder_size, where, noise=noise, level=part.level, intensity=part.intensity, p=part.share, seed=seed
    )


def locations(path: str | Path, temperature: float | None, size: object = None) -> LocationDistribution:
    """Read the location distribution of occluders: a saved one, or Eq. 4 of a saved occlusion map.

    Args:
        path: ``.npz`` file.
        temperature: T of Eq. 4 for a map; None for the paper's value at ``size``.
        size: (height, width) of the occluder.

    Raises:
        ValueError: If a map has no temperature, or a distribution has one.
        DataError: If the file is missing, damaged or of another kind.
    """
    try:
        kind = str(read_npz(path).get("kind", ""))
    except FileNotFoundError as error:
        raise DataError(f"occluder.locations: there is no file {path}") from error
    if kind == "occfast.LocationDistribution":
        if temperature is not None:
            raise ValueError(f"occluder.temperature: {path} is a distribution already, expected None")
        return LocationDistribution.load(path)
    found = OcclusionMap.load(path)
    if temperature is None:
        temperature = TEMPERATURES.get(size) if isinstance(size, tuple) else None
        if temperature is None:
            raise ValueError("occluder.temperature: expected T of Eq. 4 for a map and this size of occluder, got None")
    return found.distribution(temperature)
