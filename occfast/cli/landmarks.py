"""Faces on photographs that come without landmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import FaceDataset

#: Why an image of a table of landmarks has none.
NO_LANDMARKS = "no landmarks"


def with_faces(source: FaceDataset, table: Path, resume: bool, quiet: bool) -> tuple[FaceDataset, dict[str, str]]:
    """Return the images whose landmarks MTCNN finds, with them, and why the others have none, by name.

    Args:
        source: Images without landmarks.
        table: CSV file of the landmarks.
        resume: Keep what the table has already.
        quiet: Show no progress.

    Raises:
        ValueError: If no image has a face.
    """
    from ..data import Subset, detect_landmarks

    found = detect_landmarks(source, table, resume=resume, progress=not quiet)
    kept = [k for k, name in enumerate(source.names) if name not in found.failures]
    if not kept:
        raise ValueError(f"photographs: expected a face on one of them, got {in_words(found.failures)}; see {table}")
    return Subset(found.on(source), kept), found.failures


def count(failures: dict[str, str]) -> dict[str, int]:
    """Count the images "without a face" and those that are "unreadable"."""
    from ..data.detect import NO_FACE

    without = sum(why in (NO_FACE, NO_LANDMARKS) for why in failures.values())
    return {"without a face": without, "unreadable": len(failures) - without}


def in_words(failures: dict[str, str]) -> str:
    """Return the counts in words, such as "2 without a face and 1 unreadable"; "none" if there are none."""
    return " and ".join(f"{number:,} {what}" for what, number in count(failures).items() if number) or "none"
