"""What happens to a batch of stored training images before the network sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..files import read_npz
from ..models import Preprocessing
from ..occlude.locations import LocationDistribution
from ..occlude.noisy import NoisyOccluder
from ..sweep import OcclusionMap
from .jitter import Jitter
from .recipe import OccluderPart

#: Temperatures of Eq. 4 in trigueros2018, by occluder (height, width).
TEMPERATURES = {(20, 20): 0.25, (20, 40): 0.4, (40, 40): 0.6}


@dataclass(frozen=True)
class Augment:
    """Jitter, an occluder, and the network's range, all on the images' device.

    Attributes:
        preprocessing: what the network expects.
        jitter: None: none.
        occluder: None: none; it is keyed by the samples' ids.
    """

    preprocessing: Preprocessing
    jitter: Jitter | None = None
    occluder: NoisyOccluder | None = None

    @property
    def draws(self) -> int:
        """Random numbers that an image takes."""
        return 0 if self.jitter is None else self.jitter.draws

    def __call__(self, images: Tensor, sample_ids: Tensor, uniform: Tensor) -> Tensor:
        """uint8 [B, C, H, W], int64 [B] and float32 [B, draws] in [0, 1) to the network's input, float32."""
        self.preprocessing.check(images)
        batch = self.preprocessing.order(images.float() / 255)
        if self.jitter is not None:
            batch = self.jitter(batch, uniform)
        if self.occluder is not None:
            batch = self.occluder(batch, sample_ids)
        return self.preprocessing.scale(batch)


def occluder_of(part: OccluderPart, size: tuple[int, int], seed: int) -> NoisyOccluder | None:
    """The occluder that a recipe asks for, for images of ``size``; None where no image gets one.

    Raises:
        ValueError: as of :class:`~occfast.NoisyOccluder` and :func:`locations`.
    """
    if part.share == 0:
        return None
    occluder_size = part.size if any(isinstance(side, list) for side in part.size) else tuple(part.size)
    where: Any = part.locations
    if where not in ("uniform", "normal"):
        where = locations(where, part.temperature, occluder_size)
        if where.image_size != size:
            raise ValueError(f"occluder.locations: {part.locations} is for images of {where.image_size}, not {size}")
    noise: Any = tuple(part.noise)
    return NoisyOccluder(
        occluder_size, where, noise=noise, level=part.level, intensity=part.intensity, p=part.share, seed=seed
    )


def locations(path: str | Path, temperature: float | None, size: Any = None) -> LocationDistribution:
    """Where occluders are placed: a saved ``LocationDistribution``, or a saved occlusion map by Eq. 4.

    Args:
        path: ``.npz``.
        temperature: T, for a map; None: the paper's for the occluder's ``size``.

    Raises:
        ValueError: a temperature that is not stated, or that is stated for a distribution, which has none.
        DataError: the file is damaged, or something else.
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
