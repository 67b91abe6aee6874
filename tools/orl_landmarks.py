"""Detect the five landmarks of each ORL face and write them to occfast/data/orl_landmarks.csv.

    pip install 'occfast[demo,detect]'
    python tools/orl_landmarks.py

Each photograph is padded by 30 pixels of repeated edge and enlarged twice, because ORL's faces fill their frames and
the detector was trained on whole scenes. It finds one face in each of the 400 photographs.
"""

from __future__ import annotations

import csv
from pathlib import Path

from occfast.data import ORL
from occfast.data.detect import DetectorSettings, detect_landmarks
from occfast.data.landmarks import POINTS
from occfast.data.orl import _LANDMARKS


def main() -> None:
    """Detect the landmarks and write them."""
    found = detect_landmarks(ORL(aligned=False), settings=DetectorSettings(min_face=10, margin=30, scale=2))
    if found.failures:
        raise SystemExit(f"no face found on {', '.join(found.failures)}")
    with Path(_LANDMARKS).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(f"{point}_{axis}" for point in POINTS for axis in ("row", "column"))])
        writer.writerows(
            [name, *five] for name, five in zip(found.names, found.landmarks.flatten(1).tolist(), strict=True)
        )


if __name__ == "__main__":
    main()
