"""A run continues with its original data, or raises an error that lists the differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from occfast.data import Face, FaceDataset, Subset
from occfast.train import train
from occfast.train.checkpoint import load_checkpoint
from occfast.train.run import CHECKPOINT, SPLIT
from tests.train.test_resume import KillAt, Killed
from tests.train.tiny import Patterns, recipe


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Changed(FaceDataset):
    """Patterns with other names of people or files, or other pixels."""

    def __init__(self, people: list[str] | None = None, images: torch.Tensor | None = None) -> None:
        faces = Patterns()
        self.images = faces.images if images is None else images
        self.labels, self.names = faces.labels, faces.names
        self.people = faces.people if people is None else people

    def __getitem__(self, k: int) -> Face:
        return Face(self.images[k], int(self.labels[k]), self.names[k], None)


def begun(folder: Path, *overrides: str) -> None:
    with pytest.raises(Killed):
        train(recipe("classify", "log.checkpoint=2", *overrides), folder, progress=KillAt(5))


def swapped_folders() -> FaceDataset:
    order = torch.arange(60).reshape(6, 10)[[1, 0, 2, 3, 4, 5]].flatten()
    return Changed(images=Patterns().images[order])


def one_pixel() -> FaceDataset:
    images = Patterns().images.clone()
    images[7, 0, 3, 3] ^= 1
    return Changed(images=images)


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        (lambda: Subset(Patterns(), range(59)), r"1 image missing \(person 5/9.png\)"),
        (lambda: Patterns(people=6, each=11), r"6 images new \(person 0/10.png, person 1/10.png, …\)"),
        (
            lambda: Changed(people=[f"person {k}" for k in (1, 0, 2, 3, 4, 5)]),
            r"20 images of another person \(person 0/0",
        ),
        (lambda: Changed(people=list("abcdef")), "60 images of another person"),
        (swapped_folders, "the names are the same, but the pixels of images differ"),
        (one_pixel, "the names are the same, but the pixels of images differ"),
    ],
)
def test_other_data_are_refused(faces: object, message: str, tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes(), (tmp_path / SPLIT).read_bytes()
    run = recipe("classify", "log.checkpoint=2")
    with pytest.raises(
        ValueError, match=rf"resume: the data are not those that .* was begun with: .*{message}.*--data-ch"
    ):
        train(run, tmp_path, resume=True, progress=False, faces=faces())
    assert before == ((tmp_path / CHECKPOINT).read_bytes(), (tmp_path / SPLIT).read_bytes())
    result = train(run, tmp_path, resume=True, data_changed=True, progress=False, faces=faces())
    assert result.epochs == 3
    assert train(run, tmp_path, resume=True, progress=False, faces=faces()).epochs == 3  # these are its data now


def test_swapped_folders_are_seen_on_the_disk_too(tmp_path: Path) -> None:
    disk = ("data.in_memory=false", "data.workers=0")
    begun(tmp_path, *disk)
    run = recipe("classify", "log.checkpoint=2", *disk)
    with pytest.raises(ValueError, match="the pixels of images differ"):
        train(run, tmp_path, resume=True, progress=False, faces=swapped_folders())
    run.data.in_memory = True  # where images are kept may change
    assert train(run, tmp_path, resume=True, progress=False).epochs == 3
    assert "pixels" in load_checkpoint(tmp_path / CHECKPOINT)[1]["data"]


def test_the_split_is_written(tmp_path: Path) -> None:
    begun(tmp_path)
    lines = (tmp_path / SPLIT).read_text().splitlines()
    assert lines[0] == "name,person,part" and len(lines) == 61
    assert sum(line.endswith(",validation") for line in lines) == 12


def test_an_image_more_does_not_move_others_into_the_validation(tmp_path: Path) -> None:
    begun(tmp_path)
    run = recipe("classify", "log.checkpoint=2")
    old = dict(line.rsplit(",", 1) for line in (tmp_path / SPLIT).read_text().splitlines())
    # Noise is drawn image after image, so the pixels differ as well; the names of the first ten stay.
    train(run, tmp_path, resume=True, data_changed=True, progress=False, faces=Patterns(each=11))
    new = dict(line.rsplit(",", 1) for line in (tmp_path / SPLIT).read_text().splitlines())
    assert len(new) == 67 and {name: new[name] for name in old} == old


def test_a_classifier_of_other_people_is_refused(tmp_path: Path) -> None:
    for loss in ("cross_entropy", "large_margin_cosine"):
        name = f"loss.name={loss}"
        first = train(recipe("classify", name, "epochs=1"), tmp_path / loss, progress=False)
        others = Changed(people=["person 0", "person 1", "Ada", "Bea", "person 4", "person 5"])
        again = recipe("classify", name, "epochs=1", f"start={first.weights}")
        with pytest.raises(
            ValueError,
            match=r"start: the classifier in .* is for other people: 2 of 6 differ, such as 'person 2' there and 'Ada' here; fresh_",
        ):
            train(again, tmp_path / f"{loss} again", progress=False, faces=others)
        assert not (tmp_path / f"{loss} again").exists()
        again.fresh_classifier = True
        assert train(again, tmp_path / f"{loss} again", progress=False, faces=others).epochs == 1
