"""Occlusions by name, as the command line and recipes write them."""

from __future__ import annotations

from pathlib import Path

from .base import Compose, Occlusion
from .drawn import BANDS, Band, Block
from .face_masks import DRAWN_MASKS, FaceMask, MaskTemplate
from .hand import HAND_PLACES, Hand
from .locations import LocationDistribution
from .noisy import NoisyBlock
from .scarf import PATTERNS, Scarf
from .sunglasses import Sunglasses


def named_occlusion(text: str, seed: int = 0) -> Occlusion:
    """Return the occlusion with a name.

    - ``forehead``, ``eyes``, ``nose``, ``mouth``, ``chin``: a white band.
    - ``sunglasses``, or ``sunglasses:STYLE`` with the style ``round``, ``square``,
      ``aviator`` or ``wayfarer``; ``sunglasses:flat`` without frame and reflections.
    - ``mask`` (a drawn mask, chosen for each sample), ``mask:surgical``, ``mask:cloth``, ``mask:respirator``,
      ``mask:FOLDER`` (a template of a folder, chosen for each sample) or ``mask:FOLDER/NAME``.
    - ``scarf``, or ``scarf:PATTERN`` with the pattern ``plain``, ``striped`` or ``checked``.
    - ``hand``, or ``hand:PLACE`` with the place ``mouth``, ``eye`` or ``cheek``.
    - ``block:20x40`` (a black block at a random place), ``block:20x40@50,30`` (at a row and a column) or
      ``block:20x40@nose`` (at a landmark, see :data:`~occfast.occlude.drawn.PLACES`).
    - ``noisy:20x40``, ``noisy:20x40@50,30``: a noisy block; ``noisy:20x40@P.npz`` draws its center from a saved
      :class:`~occfast.LocationDistribution`.
    - Several names joined by ``+``, such as ``nose+mouth+chin``.

    Args:
        text: the name.
        seed: seed of the occlusion's random choices.

    Raises:
        ValueError: if there is no occlusion of this name.
        DataError: if a file that the name refers to cannot be read.
    """
    kind, _, rest = text.partition(":")
    if "+" in text:
        return Compose(tuple(named_occlusion(part, seed) for part in text.split("+")))
    if kind in BANDS and not rest:
        return Band(kind)
    if text == "sunglasses:flat":
        return Sunglasses(seed=seed, flat=True)
    if kind == "sunglasses":
        return Sunglasses(rest or None, seed=seed)
    if kind == "mask":
        if not rest or rest in DRAWN_MASKS:
            return FaceMask(rest or None, seed=seed)
        path = Path(rest)
        found = MaskTemplate.read_all(path) if path.is_dir() else [MaskTemplate.read(path.parent, path.name)]
        return FaceMask(found, seed=seed)
    if kind == "scarf" and (not rest or rest in PATTERNS):
        return Scarf(rest or None, seed=seed)
    if kind == "hand" and (not rest or rest in HAND_PLACES):
        return Hand(rest or None, seed=seed)
    if kind == "block":
        size, at = _size_and_place(text)
        return Block(size, at, seed=seed)
    if kind == "noisy":
        size, at = _size_and_place(text)
        if not isinstance(at, str):
            return NoisyBlock(size, None if at is None else (round(at[0]), round(at[1])), seed)
        if not Path(at).is_file():
            raise ValueError(f"occlusion: expected ROW,COLUMN or a file after the @, got {at!r}")
        return NoisyBlock(size, LocationDistribution.load(at), seed)
    raise ValueError(
        f"occlusion: expected {', '.join(BANDS)}, sunglasses[:STYLE], mask[:KIND or FOLDER[/NAME]], "
        f"scarf[:{'|'.join(PATTERNS)}], hand[:{'|'.join(HAND_PLACES)}], "
        f"block:HEIGHTxWIDTH[@ROW,COLUMN] or noisy:HEIGHTxWIDTH[@ROW,COLUMN], got {text!r}"
    )


def _size_and_place(text: str) -> tuple[tuple[int, int], tuple[float, float] | str | None]:
    """Parse the size and the place of ``name:20x40``, ``name:20x40@50,30`` or ``name:20x40@nose``."""
    size, _, at = text.partition(":")[2].partition("@")
    place: tuple[float, float] | str | None = at or None
    try:
        height, width = (int(v) for v in size.split("x"))
        if "," in at:
            row, column = (float(v) for v in at.split(","))
            place = row, column
    except ValueError:
        raise ValueError(
            f"occlusion: expected HEIGHTxWIDTH and optionally @ROW,COLUMN after the colon, got {text!r}"
        ) from None
    return (height, width), place
