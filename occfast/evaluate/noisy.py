"""Noisy blocks (trigueros2018) as a test occlusion: at a place, or where an occlusion map says that covering hurts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..augment import LocationDistribution, NoisyOccluder
from ..data.occlusions import Covered, occlusion, parse_block
from .embedding import Cover


class NoisyBlock:
    """Covers each face with one noisy block, as training does; draws depend on (seed, sample id) alone.

    Args:
        size: (height, width) in pixels.
        at: (row, column) of the centre in pixels, a distribution to draw it from (P of Eq. 4), or None: anywhere.
        seed: of all draws.
        settings: noise, level and intensity of :class:`~occfast.NoisyOccluder`.
    """

    needs_landmarks = False

    def __init__(
        self,
        size: tuple[int, int] = (20, 40),
        at: tuple[int, int] | LocationDistribution | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.at = at
        self.occluder = NoisyOccluder(
            size, at if isinstance(at, LocationDistribution) else "uniform", seed=seed, **settings
        )

    def __call__(self, images: Any, landmarks: Any = None, sample_ids: Any = None) -> Covered:
        """As :class:`occfast.data.occlusions.Occlusion`'s."""
        batch = torch.as_tensor(images)
        if isinstance(self.at, tuple):
            row, column = (torch.tensor([v]) for v in self.at)
            one = torch.ones(1, 1, dtype=torch.float64)
            height, width = batch.shape[-2:]
            self.occluder.locations = LocationDistribution.from_weights(one, (height, width), (row, column))
        ids = torch.arange(len(batch), device=batch.device) if sample_ids is None else sample_ids
        out, info = self.occluder(batch, ids, return_info=True)
        return Covered(out, info.mask(*batch.shape[2:]))

    def about(self) -> dict[str, Any]:
        """Settings, for JSON."""
        o = self.occluder
        at = list(self.at) if isinstance(self.at, tuple) else repr(o.locations)
        return {
            "kind": "NoisyBlock",
            "size": o.sizes,
            "at": at,
            "noise": o.noise,
            "level": o.level,
            "intensity": o.intensity,
            "seed": o.seed,
        }


def named_occlusion(text: str, seed: int = 0) -> Cover:
    """An occlusion from its name: those of :func:`occfast.data.occlusions.occlusion`, and noisy blocks.

    - ``noisy:20x40``: anywhere; ``noisy:20x40@50,30``: at a row and column;
    - ``noisy:20x40@P.npz``: sampled from a saved :class:`~occfast.LocationDistribution`.

    Raises:
        ValueError: none of these.  DataError: the file is something else.
    """
    if not text.startswith("noisy"):
        return occlusion(text, seed)
    size, at = parse_block(text)
    if not isinstance(at, str):
        return NoisyBlock(size, None if at is None else (round(at[0]), round(at[1])), seed)
    if not Path(at).is_file():
        raise ValueError(f"occlusion: expected ROW,COLUMN or a file after the @, got {at!r}")
    return NoisyBlock(size, LocationDistribution.load(at), seed)
