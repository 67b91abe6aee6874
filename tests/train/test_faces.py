"""The data sets of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from occfast import DataError, cli
from occfast.data import Face, FaceDataset
from occfast.train.batches import FromDisk, InMemory, source_of
from occfast.train.faces import open_data, split, validation_of, write_split
from occfast.train.recipe import DataPart, ValidationPart
from tests.train.tiny import Patterns


class Colored(FaceDataset):
    """RGB images of one color each."""

    names, labels, people = ["a", "b", "c"], torch.tensor([0, 0, 1]), ["x", "y"]

    def __getitem__(self, k: int) -> Face:
        color = torch.zeros(3, 1, 1, dtype=torch.uint8)
        color[k] = 200
        return Face(color.expand(3, 4, 5), int(self.labels[k]), self.names[k], None)


@pytest.mark.parametrize(("color", "channels"), [("gray", 1), ("RGB", 3)])
def test_folders_open_in_the_colors_wanted(color: str, channels: int, tmp_path: Path) -> None:
    for person in ("Ada", "Zoë"):
        (tmp_path / person).mkdir()
        for k in range(2):
            Image.new("RGB", (8, 6), (200, 10 * k, 0)).save(tmp_path / person / f"{k}.png")
    faces = open_data(DataPart(name="folder", root=str(tmp_path), color=color))
    assert len(faces) == 4 and list(faces.people) == ["Ada", "Zoë"] and faces[0].image.shape == (channels, 6, 8)
    with pytest.raises(DataError, match="landmarks"):  # what can't be aligned isn't taken as it is
        open_data(DataPart(name="folder", root=str(tmp_path), template="paper-100"))
    with pytest.raises(DataError, match="nowhere"):
        open_data(DataPart(name="folder", root=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_and_disk_hand_out_the_same(workers: int) -> None:
    faces, plan = Patterns(), torch.tensor([[3, 1], [0, 2], [2, 2]])
    indices = torch.tensor([9, 8, 30, 59])
    memory = source_of(
        faces, indices, channels=1, in_memory=True, memory="1KiB", workers=0, device=torch.device("cpu"), progress=False
    )
    disk = FromDisk(faces, indices, 1, workers)
    assert isinstance(memory, InMemory)
    for _ in range(2):  # epoch after epoch
        for a, b, row in zip(memory(plan), disk(plan), plan, strict=True):
            assert torch.equal(a, b) and torch.equal(a, faces.images[indices[row]])


def test_what_does_not_fit_into_the_memory_stays_on_the_disk() -> None:
    for memory, kind in (("1KiB", FromDisk), ("1MiB", InMemory)):
        found = source_of(
            Patterns(),
            torch.arange(60),
            channels=1,
            in_memory=None,
            memory=memory,
            workers=0,
            device=torch.device("cpu"),
            progress=False,
        )
        assert isinstance(found, kind)


def test_colors_are_converted_by_the_known_weights() -> None:
    [gray] = FromDisk(Colored(), torch.arange(3), 1, 0)(torch.tensor([[0, 1, 2]]))
    assert gray[:, 0, 0, 0].tolist() == [60, 117, 23]  # ITU-R 601: 0.299, 0.587, 0.114
    [rgb] = FromDisk(Patterns(), torch.arange(2), 3, 0)(torch.tensor([[0, 1]]))
    assert torch.equal(rgb[:, 0], rgb[:, 2]) and rgb.shape == (2, 3, 20, 16)


def test_the_validation_images_of_a_run(tmp_path: Path) -> None:
    faces = Patterns()
    rest, held = split(faces, ValidationPart(share=0.2), 1, 3)
    write_split(tmp_path / "split.csv", faces, rest, held)
    for run in (tmp_path, tmp_path / "split.csv"):
        found = validation_of(faces, run)
        assert found.names == [faces.names[k] for k in held.tolist()]
        assert torch.equal(found[1].image, faces[int(held[1])].image)
    with pytest.raises(ValueError, match=r"dataset: expected the images that .*split.csv keeps out .* such as person"):
        validation_of(Patterns(people=3), tmp_path)
    write_split(tmp_path / "split.csv", faces, rest, held[:0])
    with pytest.raises(ValueError, match=r"this run kept no images out of training \(validation.share\)"):
        validation_of(faces, tmp_path)
    (tmp_path / "split.csv").write_text("name,person\n")
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(
            DataError, match=r"run: expected the folder of a run \(--validation-of\), which holds its split"
        ):
            validation_of(Patterns(), missing)
    with pytest.raises(DataError, match="expected the split of a run, with the columns name, person and part"):
        validation_of(faces, tmp_path)


def test_maps_and_evaluations_keep_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for person in "ABCD":
        for k in range(6):
            (tmp_path / "faces" / person).mkdir(parents=True, exist_ok=True)
            Image.fromarray(Patterns().images[ord(person) % 5 * 10 + k, 0].numpy()).save(
                tmp_path / "faces" / person / f"{k}.png"
            )
    faces = open_data(DataPart(name="folder", root=str(tmp_path / "faces")))
    rest, held = split(faces, ValidationPart(share=0.4), 1, 3)
    write_split(tmp_path / "split.csv", faces, rest, held)
    network = "tests.train.test_faces:flat"
    common = [
        "--size",
        "20x16",
        "--color",
        "gray",
        "--trust",
        "-q",
        "--validation-of",
        str(tmp_path),
        "--device",
        "cpu",
    ]

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["occfast", *arguments, *common])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    where = ["-o", str(tmp_path / "maps"), "--score", "similarity_drop", "--occluder", "4x4", "--stride", "8", "--json"]
    assert run("map", network, str(tmp_path / "faces"), *where) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(held) < len(faces)
    where = ["-m", network, "-o", str(tmp_path / "report"), "--resize", "--json", "--bootstrap", "0"]
    assert run("evaluate", "search", str(tmp_path / "faces"), *where) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["images"] == len(held)
    assert run("evaluate", "lfw", str(tmp_path / "faces"), *where) == 2
    assert "--validation-of: only valid with folder, pairs, search" in capsys.readouterr().err


def flat() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(320, 8)).eval()
