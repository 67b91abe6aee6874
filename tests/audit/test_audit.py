"""Audits of small networks on generated faces."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from occfast.audit import Audit, Covering, Work, audit, usual_coverings
from occfast.data import Folder, WithLandmarks, detect_landmarks
from occfast.evaluate import embed
from occfast.models import Preprocessing, build
from occfast.models.weights import Trained
from occfast.occlude import named_occlusion
from tests.browser import CHROMIUM, LOOKS, look, look_over
from tests.evaluate.test_protocols import Done, occfast  # noqa: F401 - a fixture

SIZE = (28, 24)
HOW = Preprocessing(SIZE, "gray")
POINTS = torch.tensor([[10.0, 7], [10, 16], [15, 12], [20, 8], [20, 15]], dtype=torch.float64)
PEOPLE, EACH = 20, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, place = np.random.default_rng(0), tmp_path_factory.mktemp("faces")
    for p in range(PEOPLE):
        (place / f"person {p:02d}").mkdir()
        pattern = random.integers(0, 160, (7, 6)).repeat(4, 0).repeat(4, 1)
        for k in range(EACH):
            pixels = (pattern + random.integers(0, 95, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"person {p:02d}" / f"{k}.png")
    return place


@pytest.fixture(scope="module")
def faces(folder: Path) -> WithLandmarks:
    source = Folder(folder, gray=True)
    jitter = torch.randn(len(source), 1, 2, generator=torch.Generator().manual_seed(0)).double()
    return WithLandmarks(source, POINTS + 0.3 * jitter)


@pytest.fixture(scope="module")
def result(faces: WithLandmarks) -> Audit:
    return audit(
        Net().eval(), faces, HOW, fmr=0.01, fmrs=(0.1, 1e-5), resamples=200, map_images=4, progress=False, seed=3
    )


def test_rates_equal_those_of_all_pairs(faces: WithLandmarks, result: Audit) -> None:
    labels = faces.labels
    same = labels[:, None] == labels
    same_pair = torch.eye(len(labels), dtype=torch.bool)

    def features(name: str | None) -> Tensor:
        cover = None if name is None else named_occlusion(name, 3)
        found = embed(Net().eval(), faces, HOW, occlusion=cover, flip="none", progress=False).features.double()
        return torch.nn.functional.normalize(found, dim=1)

    clean = features(None)
    scores = clean @ clean.T
    impostor = scores[~same].sort(descending=True).values
    threshold = result.thresholds[0.01]
    allowed = int(0.01 * len(impostor))
    assert int((impostor >= threshold - 1e-12).sum()) <= allowed < int((impostor >= threshold - 1e-3).sum()) + 200
    by_name = {c.name: c for c in result.conditions}
    for name, text in (("uncovered", None), ("sunglasses", "sunglasses"), ("a surgical mask", "mask:surgical")):
        covered = features(text)
        found = clean @ covered.T
        genuine = found[same & ~same_pair]
        rate = by_name[name].fnmr[0.01]
        assert rate.value == pytest.approx(float((genuine < threshold - 1e-12).double().mean()), abs=1e-9)
        assert rate.interval.low <= rate.value <= rate.interval.high
        others = found[~same]
        assert by_name[name].fmr.value == pytest.approx(float((others >= threshold - 1e-12).double().mean()), abs=1e-9)
        own = by_name[name].threshold
        assert float((others >= own - 1e-12).double().mean()) <= 0.01
        change = by_name[name].increase[0.01].value
        assert change == pytest.approx(rate.value - by_name["uncovered"].fnmr[0.01].value)


def test_what_it_reports(result: Audit) -> None:
    assert list(result.thresholds) == [0.1, 0.01]  # 1e-5 can't be resolved by these pairs
    assert result.settings["unresolved FMR"] == [1e-5]
    assert len(result.curve) == 12
    shares = [p.covered for p in result.curve if p.place == "from below"]
    np.testing.assert_allclose(shares, np.array([3, 6, 8, 11, 14, 17]) / SIZE[0], rtol=1e-6)  # whole rows of 28
    assert result.map is not None and result.map.n_images == 4
    assert {r.name for r in result.regions} >= {"left eye", "nose", "mouth"}
    assert [r.drop for r in result.regions] == sorted((r.drop for r in result.regions), reverse=True)
    first = result.sentences[0]
    assert "1 in 100 pairs of two people match" in first and "rejected uncovered" in first
    assert all(name in " ".join(result.sentences) for name in ("sunglasses", "a cloth mask"))
    covering = [c.threshold for c in result.conditions[1:]]
    (thresholds,) = (s for s in result.sentences if s.startswith("Thresholds that keep 1 in 100 when covered"))
    assert f"from {min(covering):.3f} with" in thresholds and f"to {max(covering):.3f} with" in thresholds
    (parts,) = (s for s in result.sentences if "matters most" in s)
    assert [parts.index(r.name) for r in result.regions] == sorted(parts.index(r.name) for r in result.regions)
    covered = {c.name: c.covered for c in result.conditions}
    assert covered["uncovered"] == 0 < covered["sunglasses"] < covered["a scarf"]


def test_files(result: Audit, tmp_path: Path) -> None:
    page = result.write(tmp_path).read_text()
    about = json.loads((tmp_path / "audit.json").read_text())
    assert about["sentences"] == result.sentences and len(about["conditions"]) == len(result.conditions)
    assert (tmp_path / "curve.csv").read_text().count("\n") == 13 and (tmp_path / "map.npz").is_file()
    assert "sunglasses" in (tmp_path / "audit.md").read_text()
    assert result.sentences[0] in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page


def test_names_are_escaped(faces: WithLandmarks) -> None:
    bad = "<script>alert(1)</script>|"
    found = audit(
        Net().eval(),
        faces,
        HOW,
        [Covering(bad, named_occlusion("eyes"))],
        fmr=0.01,
        resamples=100,
        map_images=0,
        curve=False,
        model_name=bad,
        progress=False,
    )
    from occfast.audit.page import page

    assert "<script" not in page(found) and "&lt;script&gt;" in page(found)
    assert "\\|" in found.to_markdown()
    assert found.map is None and found.regions == [] and found.curve == []


def test_groups(faces: WithLandmarks) -> None:
    groups = {f"person {p:02d}": "first" if p < 10 else "second" for p in range(PEOPLE - 2)}
    found = audit(
        Net().eval(),
        faces,
        HOW,
        [Covering("eyes", named_occlusion("eyes"))],
        fmr=0.01,
        resamples=100,
        map_images=0,
        curve=False,
        groups=groups,
        progress=False,
    )
    rates = {(g.covering, g.name): g for g in found.groups}
    assert len(rates) == 4 and rates["eyes", "first"].images == 40 and rates["eyes", "second"].images == 32
    whole = {c.name: c.fnmr[0.01].value for c in found.conditions}
    for name in ("uncovered", "eyes"):
        mean = (10 * rates[name, "first"].fnmr.value + 8 * rates[name, "second"].fnmr.value) / 18
        assert abs(mean - whole[name]) < 0.25
    with pytest.raises(ValueError, match="groups: expected names of people or images"):
        audit(Net().eval(), faces, HOW, [], fmr=0.01, resamples=100, map_images=0, groups={"x": "y"}, progress=False)


def test_refusals(faces: WithLandmarks) -> None:
    network = Net().eval()

    def refused(message: str, source=faces, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            audit(network, source, HOW, **{"progress": False, "resamples": 100, **options})  # type: ignore[arg-type]

    refused(
        r"fmr: 1e-06 needs at least 1,000,000 pairs of two people; these faces give 3,040, which allow 0\.001", fmr=1e-6
    )
    refused("fmr: expected", fmr=0.0)
    refused("fmr: expected", fmr=float("nan"))
    refused("resamples: expected", resamples=10)
    refused("limit: expected", fmr=0.1, limit=5)
    same = Covering("eyes", named_occlusion("eyes"))
    refused("coverings: expected different names", coverings=[same, same])
    refused(
        "faces: expected at least two people with two images each, got 1 people",
        source=faces.select(people=["person 00"]),
    )


def test_a_limit_takes_whole_people(faces: WithLandmarks) -> None:
    found = audit(
        Net().eval(), faces, HOW, [], fmr=0.05, limit=41, resamples=100, map_images=0, curve=False, progress=False
    )
    assert found.settings["images"] == 40 and found.settings["people"] == 10


def test_coverings_without_landmarks() -> None:
    assert len(usual_coverings((112, 96), landmarks=False)) == 1 < len(usual_coverings((112, 96), landmarks=True))


def test_coverings_are_named_as_readers_call_them() -> None:
    for text, name in (
        ("eyes", "a band over the eyes"),
        ("scarf", "a scarf"),
        ("scarf:checked", "a checked scarf"),
        ("nose+mouth+chin", "a band from nose to chin"),
        ("hand", "a hand"),
        ("hand:eye", "a hand over an eye"),
        ("mask:respirator", "a respirator mask"),
        ("noisy:20x40", "a noisy block of 20x40 pixels"),
        ("sunglasses:round", "round sunglasses"),
        ("noisy:20x40@3,4", "noisy:20x40@3,4"),
    ):
        assert Covering.named(text).name == name


def test_command_line(folder: Path, tmp_path: Path, occfast) -> None:  # noqa: F811
    torch.jit.script(Net().eval()).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    arguments = ("audit", tmp_path / "net.pt", folder, "--color", "gray", "--size", "28x24", "--resize", "--fmr", 0.01)
    arguments += ("--bootstrap", 100, "--map-images", 2, "-q")
    done: Done = occfast(*arguments)
    assert done.returncode == 0, done.stderr
    assert "of genuine pairs are rejected uncovered" in done.stdout and (tmp_path / "audit" / "audit.html").is_file()
    first = json.loads((tmp_path / "audit" / "audit.json").read_text())
    refused = occfast(*arguments)
    assert refused.returncode == 2 and "--resume continues the run, --overwrite replaces it" in refused.stderr
    again = occfast(*arguments, "--resume", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    loud = occfast(*arguments[:-1], "--resume")
    said = re.search(r"(\d+) images, (\d+) times each, and ([\d,]+) positions of the map: about \d+ s", loud.stderr)
    assert said is not None, loud.stderr
    assert int(said[1]) == first["settings"]["images"]


def test_the_work_that_is_forecast_is_done(faces: WithLandmarks) -> None:
    counted: list[int] = []
    model = Net().eval()
    model.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    settings: dict[str, Any] = {"limit": 41, "map_images": 2}
    found = audit(model, faces, HOW, None, fmr=0.05, resamples=100, progress=False, **settings)
    work = Work.of(faces, HOW, **settings)
    assert found.map is not None and work.positions == found.map.n_evaluations
    assert found.settings["images"] <= work.images == 41
    assert work.passes == len(found.conditions) + len(found.curve)
    assert sum(counted) >= found.settings["images"] * work.passes
    fewer = Work.of(faces, HOW, [], limit=None, curve=False, map_images=0)
    assert (fewer.images, fewer.passes, fewer.positions) == (len(faces), 1, 0)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@LOOKS
def test_a_browser_shows_it(result: Audit, tmp_path: Path, how: dict[str, Any]) -> None:
    bad = "<script>alert(1)</script>"
    named = [replace(result.conditions[0]), replace(result.conditions[1], name=bad), *result.conditions[2:]]
    page = replace(
        result, conditions=named, settings={**result.settings, "model_name": bad, "notes": [f"Left out: {bad}"]}
    ).write(tmp_path)
    found = look_over(page, tmp_path, **how)
    assert len(found["images"]) == len(result.conditions) + 2
    rates = found["tables"]["rates"]
    assert rates[2][0] == bad and f"Left out: {bad}" in found["text"]
    header, rows = result.table()
    assert rates[0] == header and rates[1][1:] == rows[0][1:]
    first = found["text"][: found["text"].index("Rates")]
    assert "80 images of 20 people" in first and result.sentences[0] in first


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_every_column_is_in_sight(result: Audit, tmp_path: Path) -> None:
    page = result.write(tmp_path)
    # Nothing scrolls here: a table that is wider than its place makes the page wider.
    page.write_text(page.read_text().replace(".scroll { overflow-x: auto; }", ""))
    assert not look(page, tmp_path)["wide"]


class Finder:
    """Finds a face that fills the image, and counts the images."""

    opened = 0

    def __call__(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
        Finder.opened += 1
        return [(POINTS.numpy(), np.array([0.0, 0, *SIZE]), 0.99)]


@pytest.fixture
def photographs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of photographs that have no landmarks; they are found by :class:`Finder`."""
    pytest.importorskip("cv2")
    monkeypatch.setattr("occfast.data.detect_landmarks", partial(detect_landmarks, detector=Finder))
    Finder.opened = 0
    torch.jit.script(Net().eval()).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    return Path(shutil.copytree(folder, tmp_path / "photographs"))


SMALL = ("--color", "gray", "--fmr", 0.01, "--bootstrap", 100, "--map-images", 0, "--no-curve", "--cover", "eyes", "-q")


def test_landmarks_are_found_again_where_they_may_be_others(photographs: Path, occfast) -> None:  # noqa: F811
    arguments = ("audit", "net.pt", photographs, "--template", "sphereface-112x96", "--size", "28x24", *SMALL)
    done: Done = occfast(*arguments)
    assert done.returncode == 0 and Finder.opened == PEOPLE * EACH, done.stderr
    first = json.loads(Path("audit/audit.json").read_text())
    assert first["settings"]["alignment"] == "sphereface-112x96"
    assert occfast(*arguments, "--resume").returncode == 0 and Finder.opened == PEOPLE * EACH
    assert occfast(*arguments, "--overwrite").returncode == 0 and Finder.opened == 2 * PEOPLE * EACH
    Finder.opened = 0
    for k in range(3):  # other photographs under the same names
        shutil.copy(photographs / "person 05" / f"{k}.png", photographs / "person 07" / f"{k}.png")
    assert occfast(*arguments, "--resume").returncode == 0 and Finder.opened == 3
    resumed = json.loads(Path("audit/audit.json").read_text())
    assert occfast(*arguments, "-o", "fresh").returncode == 0
    fresh = json.loads(Path("fresh/audit.json").read_text())
    assert {**resumed, "seconds": 0} == {**fresh, "seconds": 0} != {**first, "seconds": 0}


def test_an_unknown_alignment_is_refused(photographs: Path, occfast) -> None:  # noqa: F811
    """Photographs that are taken as they are give a report of a network that knows nobody."""
    for options, message in (
        ((), "--preset: net.pt does not record how its faces are aligned; name a preset, or let auto try them"),
        (("--preset", "facenet"), "--preset: facenet expects images of the face's box; give --resize if these are"),
    ):
        refused = occfast("audit", "net.pt", photographs, *SMALL, *options)
        assert refused.returncode == 2 and message in refused.stderr and not Path("audit/audit.json").exists()
    network = build("paper", 3, channels=1, size=(100, 100), width=0.1).eval()
    spec = {"name": "paper", "classes": 3, "arguments": {"width": 0.1}}
    Trained(network, Preprocessing((100, 100), "gray"), spec).save("own.safetensors")
    for options, message in (
        ((), "--template: own.safetensors does not record how its faces are aligned; give --template, such as"),
        (("--preset", "auto"), "--preset: only valid for files that do not record how images are prepared"),
    ):
        refused = occfast("audit", "own.safetensors", photographs, *SMALL[2:], *options)
        assert refused.returncode == 2 and message in refused.stderr
    assert Finder.opened == 0


def test_auto_finds_faces_first(photographs: Path, occfast) -> None:  # noqa: F811
    class Color(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(torch.tanh(x), 7).flatten(1)

    torch.jit.script(Color().eval()).save("color.pt")  # type: ignore[no-untyped-call]
    done = occfast("audit", "color.pt", photographs, "--preset", "auto", *SMALL[2:])
    assert done.returncode == 0, done.stderr
    assert "separates best" in done.stderr and "facenet: expects images of the face's box" in done.stderr
    assert Finder.opened == PEOPLE * EACH
    assert json.loads(Path("audit/audit.json").read_text())["settings"]["alignment"] is not None


def test_photographs_without_a_face_are_in_the_report(
    photographs: Path,
    occfast,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Missing(Finder):
        """Finds none on the first image."""

        def __call__(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
            return super().__call__(image)[: Finder.opened - 1]

    monkeypatch.setattr("occfast.data.detect_landmarks", partial(detect_landmarks, detector=Missing))
    arguments = ("audit", "net.pt", photographs, "--template", "sphereface-112x96", "--size", "28x24", *SMALL)
    done = occfast(*arguments, "--limit", 40)
    assert done.returncode == 0, done.stderr
    text = Path("audit/audit.md").read_text()
    assert "1 of 80 images are left out: 1 without a face." in text
    assert "of 79 images, those of people drawn at random." in text
    assert "people, intervals are too narrow: take 20 or more." in text


def test_two_people(faces: WithLandmarks) -> None:
    """Half of the resamples have one person, and no pair of two: they are left out without a warning."""
    two = faces.select(people=["person 00", "person 01"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = audit(
            Net().eval(), two, HOW, [], fmr=0.1, resamples=200, map_images=0, curve=False, progress=False, seed=1
        )
    assert found.settings["notes"] == ["With 2 people, intervals are too narrow: take 20 or more."]
    low, high = found.uncovered.fnmr[0.1].interval
    assert 0 <= low <= found.uncovered.fnmr[0.1].value <= high <= 1


def test_intervals_of_groups_know_of_the_threshold(faces: WithLandmarks) -> None:
    """A group of everybody has the rate and the interval of the whole."""
    found = audit(
        Net().eval(),
        faces,
        HOW,
        [Covering("eyes", named_occlusion("eyes"))],
        fmr=0.01,
        resamples=200,
        map_images=0,
        curve=False,
        groups=dict.fromkeys(faces.people, "everybody"),
        progress=False,
    )
    assert [g.fnmr for g in found.groups] == [c.fnmr[0.01] for c in found.conditions]
