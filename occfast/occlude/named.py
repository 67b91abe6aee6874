"""Noisy blocks (trigueros2018) as a test occlusion: at a place, or where an occlusion map says that covering hurts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Cover, Occlusion, OcclusionResult
from .drawn import BANDS, Band, Block, Sunglasses
from .locations import LocationDistribution
from .masks import DRAWN_MASKS, FaceMask, MaskTemplate
from .noisy import NoisyOccluder


class NoisyBlock:
    """Covers each face with one noisy block, as training does; draws depend on (seed, sample id) alone.

    Args:
        size: (height, width) in pixels.
        at: (row, column) of the center in pixels, a distribution to draw it from (P of Eq. 4), or None: anywhere.
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

    def __call__(self, images: Any, landmarks: Any = None, sample_ids: Any = None) -> OcclusionResult:
        """As :class:`occfast.occlude.Occlusion`'s."""
        batch = torch.as_tensor(images)
        if isinstance(self.at, tuple):
            row, column = (torch.tensor([v]) for v in self.at)
            one = torch.ones(1, 1, dtype=torch.float64)
            height, width = batch.shape[-2:]
            self.occluder.locations = LocationDistribution.from_weights(one, (height, width), (row, column))
        ids = torch.arange(len(batch), device=batch.device) if sample_ids is None else sample_ids
        out, info = self.occluder(batch, ids, return_info=True)
        return OcclusionResult(out, info.mask(*batch.shape[2:]))

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
    """An occlusion from its name: those of :func:`occfast.occlude.occlusion`, and noisy blocks.

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


@dataclass(frozen=True)
class Compose(Occlusion):
    """Several occlusions, one over the other; the mask is where any of them covers."""

    parts: tuple[Occlusion, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: expected at least one occlusion, got none")

    @property
    def needs_landmarks(self) -> bool:  # type: ignore[override]
        return any(part.needs_landmarks for part in self.parts)

    def _cover(self, images: Tensor, landmarks: Tensor | None, ids: Tensor) -> OcclusionResult:
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        for part in self.parts:
            images, covered = part(images, landmarks, ids)
            mask = mask | covered
        return OcclusionResult(images, mask)


def occlusion(text: str, seed: int = 0) -> Occlusion:
    """An occlusion from its name, as the command line takes it.

    - ``forehead``, ``eyes``, ``nose``, ``mouth``, ``chin``: a white band;
    - ``sunglasses``, ``sunglasses:round`` (``square``, ``aviator``);
    - ``mask`` (drawn masks in turn by sample), ``mask:surgical`` (``cloth``, ``respirator``), ``mask:FOLDER`` (all
      templates of a folder, drawn by sample) or ``mask:FOLDER/NAME``;
    - ``block:20x40`` (anywhere), ``block:20x40@50,30`` (row, column), ``block:20x40@nose`` (see :data:`PLACES`);
    - several joined by ``+``: ``nose+mouth+chin``.

    Raises:
        ValueError: none of these.
    """
    if "+" in text:
        return Compose(tuple(occlusion(part, seed) for part in text.split("+")))
    kind, _, rest = text.partition(":")
    if kind in BANDS and not rest:
        return Band(kind)
    if kind == "sunglasses":
        return Sunglasses(rest or None, seed=seed)
    if kind == "mask":
        if not rest or rest in DRAWN_MASKS:
            return FaceMask(rest or None, seed=seed)
        path = Path(rest)
        found = MaskTemplate.read_all(path) if path.is_dir() else [MaskTemplate.read(path.parent, path.name)]
        return FaceMask(found, seed=seed)
    if kind == "block":
        size, at = parse_block(text)
        return Block(size, at, seed=seed)
    raise ValueError(
        f"occlusion: expected {', '.join(BANDS)}, sunglasses[:STYLE], mask[:KIND or FOLDER[/NAME]] or "
        f"block:HEIGHTxWIDTH[@ROW,COLUMN], got {text!r}"
    )


def parse_block(text: str) -> tuple[tuple[int, int], tuple[float, float] | str | None]:
    """Size and place of ``name:20x40``, ``name:20x40@50,30`` or ``name:20x40@nose``."""
    size, _, at = text.partition(":")[2].partition("@")
    place: tuple[float, float] | str | None = at or None
    try:
        height, width = (int(v) for v in size.split("x"))
        if "," in at:
            row, column = (float(v) for v in at.split(","))
            place = row, column
    except ValueError:
        raise ValueError(
            f"occlusion: expected HEIGHTxWIDTH and perhaps @ROW,COLUMN after the colon, got {text!r}"
        ) from None
    return (height, width), place


def describe(cover: Occlusion) -> dict[str, Any]:
    """The settings of an occlusion, for JSON."""
    about: dict[str, Any] = {"kind": type(cover).__name__}
    for field in fields(cover):
        value = getattr(cover, field.name)
        if isinstance(cover, FaceMask) and field.name == "template":
            value = [template.name for template in cover.templates]
        elif isinstance(cover, Compose):
            value = [describe(part) for part in cover.parts]
        about[field.name] = value
    return about
