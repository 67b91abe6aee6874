"""``occfast pair`` on generated faces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from occfast.cli import app
from occfast.models import Preprocessing
from occfast.models.weights import Trained
from tests.train.tiny import Net, Patterns


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, two photographs of one person and a table of their landmarks."""
    folder = tmp_path_factory.mktemp("pair")
    faces = Patterns(4, 3)
    for k in (0, 1):
        (folder / "photos" / f"{k}").mkdir(parents=True)
        Image.fromarray(faces.images[k, 0].numpy()).resize((48, 60)).save(folder / "photos" / f"{k}" / "face.png")
    torch.manual_seed(0)
    net = Net(None, 1).eval()
    how = Preprocessing((20, 16), "gray")
    Trained(net, how, {"name": "tests.train.tiny:Net", "classes": None, "arguments": {}}, []).save(
        folder / "net.safetensors"
    )
    rows = "0/face.png,15,22,33,22,24,32,17,42,31,42\n1/face.png,15,22,33,22,24,32,17,42,31,42\n"
    columns = "left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y,mouth_left_x,mouth_left_y"
    (folder / "points.csv").write_text(f"image,{columns},mouth_right_x,mouth_right_y\n{rows}")
    return folder


def call(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["pair", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_a_pair_is_explained(place: Path, tmp_path: Path) -> None:
    photos = [place / "photos" / f"{k}" / "face.png" for k in (0, 1)]
    words = (place / "net.safetensors", *photos, "--trust", "--resize", "-q", "--stride", 4, "--occluder", "6x5")
    code, out, err = call(*words, "--threshold", 0.5, "-o", tmp_path / "a")
    assert code == 0, err
    assert out.startswith("similarity ") and "photograph 1: " in out and "pair.png" in out
    about = json.loads((tmp_path / "a" / "pair.json").read_text())
    assert about["occluder"] == [6, 5] and np.shape(about["values"]) == (2, 5, 4) == np.shape(about["interval"])[1:]
    assert about["accepted"] == (about["similarity"] >= 0.5)
    with Image.open(tmp_path / "a" / "pair.png") as picture:
        assert min(picture.size) > 500
    assert "--overwrite replaces it" in call(*words, "-o", tmp_path / "a")[2]
    again = json.loads(call(*words, "--json", "-o", tmp_path / "b")[1])
    assert again["values"] == about["values"] and again["threshold"] is None and again["smallest"] is None


def test_faces_are_aligned_by_a_table(place: Path, tmp_path: Path) -> None:
    photos = [place / "photos" / f"{k}" / "face.png" for k in (0, 1)]
    words = (place / "net.safetensors", *photos, "--trust", "-q", "--stride", 8, "--occluder", "6x5")
    aligned = ("--template", "paper-100", "--landmarks", place / "points.csv")
    code, out, err = call(*words, *aligned, "-o", tmp_path / "a")
    assert code == 0, err
    plain = call(*words, "--resize", "-o", tmp_path / "b")
    assert plain[0] == 0 and out.split(";")[0] != plain[1].split(";")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": "photos/none.png"}, "no such file"),
        ({"second": "photos/0/face.png"}, "second: expected another file than the first"),
        ({"options": ("--preset", "auto")}, "--preset: auto needs the faces of several people"),
        ({"options": ("--resize", "--threshold", "2")}, "threshold: expected a cosine similarity"),
        ({"options": ("--resize", "--occluder", "60x5")}, "occluder: expected at most the image's 20x16"),
    ],
)
def test_one_clear_error(place: Path, tmp_path: Path, change: dict, message: str) -> None:
    second = place / change.get("second", "photos/1/face.png")
    first = place / "photos/0/face.png"
    words = (place / "net.safetensors", first, second, "--trust", "-q", *change.get("options", ("--resize",)))
    code, _, err = call(*words, "-o", tmp_path / "out")
    assert code != 0 and message in err


def test_a_table_without_a_photograph(place: Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text((place / "points.csv").read_text().splitlines()[0] + "\n")
    photos = [place / "photos" / f"{k}" / "face.png" for k in (0, 1)]
    table = ("--template", "paper-100", "--landmarks", tmp_path / "points.csv")
    assert "--landmarks: " in call(place / "net.safetensors", *photos, "--trust", *table, "-o", tmp_path / "o")[2]
