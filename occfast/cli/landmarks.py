"""Faces on photographs that come without landmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import FaceDataset

#: Why an image has no landmarks in a table that was given; whether it shows a face is not known.
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
    """Count the images "without a face", "without landmarks" in a table that was given, and "unreadable"."""
    from ..data.detect import NO_FACE

    reasons = list(failures.values())
    found = {"without a face": reasons.count(NO_FACE), "without landmarks": reasons.count(NO_LANDMARKS)}
    return {**found, "unreadable": len(reasons) - sum(found.values())}


def in_words(failures: dict[str, str]) -> str:
    """Return the counts in words, such as "2 without a face and 1 unreadable"; "none" if there are none."""
    *first, last = [f"{number:,} {what}" for what, number in count(failures).items() if number] or ["none"]
    return f"{', '.join(first)} and {last}" if first else last
