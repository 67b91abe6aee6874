"""Both papers together: the whole chain on generated faces, who is in which set, and the orderings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from occfast import reproduce
from occfast.models import MobileFaceNet
from occfast.pdsn import as_base
from occfast.reproduce.together.settings import MASKED, MASKS, TRAININGS, TogetherSettings
from occfast.reproduce.together.sources import Joined, TogetherSources
from tests.reproduce.test_trunk import data as trunk_data  # noqa: F401 - a fixture

SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch": 8,
    "rates": (1e-4,),
    "weights": (5.0,),
    "map_people": 4,
    "map_stride": 48,
    "generator_epochs": 1,
    "dictionary_images": 20,
    "resamples": 40,
}


@pytest.fixture(scope="module")
def data(trunk_data: Path) -> Path:  # noqa: F811
    """The layout of $OCCFAST_DATA, with AR as AR_42_30.mat."""
    random = np.random.default_rng(0)
    people = random.integers(0, 256, (5, 1, 42, 30))
    pixels = (people + random.normal(0, 25, (5, 26, 42, 30))).clip(0, 255).astype(np.uint8).reshape(-1, 42, 30)
    (trunk_data / "ar100").mkdir()
    labels = np.arange(1, 6, dtype=np.uint8).repeat(26)[None]
    columns = pixels.transpose(0, 2, 1).reshape(130, 1260).T
    scipy.io.savemat(trunk_data / "ar100" / "AR_42_30.mat", {"DATA": columns, "Label": labels})
    return trunk_data


def run(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Runs the experiment; its report.json."""
    torch.set_num_threads(1)
    report = reproduce.run(
        "together",
        scale="small",
        seeds=(0, 1),
        root=data,
        output=output,
        settings=SETTINGS,
        progress=False,
        device="cpu",
        **options,
    )
    assert report.page is not None
    return dict(json.loads(report.page.with_suffix(".json").read_text()))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("together")
    return output, run(data, output)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_report_has_every_training_and_every_mask(finished: tuple[Path, dict[str, Any]]) -> None:
    _, report = finished
    trainings, masks = report["tables"]
    assert list(trainings["rows"]) == ["as it is", *(one.title for one in TRAININGS.values())]
    assert trainings["header"][1:3] == ["LFW clean", "LFW mask:surgical"]
    for name, cells in trainings["rows"].items():
        assert all(len(cell["values"]) == (1 if name == "as it is" else 2) for cell in cells)
        assert all(0 <= cell["mean"] <= 100 for cell in cells)
    assert len(masks["rows"]) == len(MASKED) * (1 + len(MASKS))
    comparisons = [one for claim in report["claims"] for one in claim["comparisons"]]
    assert {one["verdict"] for one in comparisons} <= {"confirmed", "refuted", "not decided"}
    for one in comparisons:
        low, high = one["whole"]
        assert low <= np.mean(one["differences"]) <= high
    assert all(claim["beyond"] for claim in report["claims"])


def test_choices_are_made_before_lfw_and_ar_are_read(data: Path) -> None:
    experiment = reproduce.prepare("together", scale="small", seeds=(0, 1), root=data, settings=SETTINGS)
    graph = experiment.graph
    for name, step in graph.steps.items():
        if {"lfw", "ar"} & set(step.data):
            behind, todo = set[str](), list(step.needs)
            while todo:
                behind.add(one := todo.pop())
                todo += graph.steps[one].needs
            assert {"choose rate", "choose weight"} <= behind, name
        else:
            assert "verify" not in name


def test_nobody_is_in_two_sets(data: Path) -> None:
    sources = TogetherSources(root=data)
    faces = sources.training
    assert isinstance(faces, Joined) and len(faces) == len(sources.train) + len(sources.others)
    assert len(set(faces.people)) == len(faces.people) == len(sources.train.people) + len(sources.others.people)
    last = faces[len(faces) - 1]
    assert torch.equal(last.image, sources.others[len(sources.others) - 1].image)
    assert faces.people[last.label].startswith("others/") and last.name.startswith("others/")
    assert torch.equal(faces[0].image, sources.train[0].image)
    assert not {f"others/{p}" for p in sources.choosing[0].people} & set(faces.people)
    assert not set(sources.choosing[0].people) & set(sources.others.people)


@pytest.mark.slow
def test_a_finished_run_does_nothing_again(finished: tuple[Path, dict[str, Any]], data: Path) -> None:
    output, report = finished
    again = run(data, output, tables=(1,))
    assert [table["name"] for table in again["tables"]] == ["Table 1"]
    assert again["tables"][0]["rows"] == report["tables"][0]["rows"]


def test_half_of_the_images_are_covered() -> None:
    settings = TogetherSettings()
    for name, training in TRAININGS.items():
        recipe = settings.recipe(name, 0, 0.01, 7.0)
        assert recipe.occluder.share + sum(recipe.drawn.values()) == pytest.approx(0.0 if name == "uncovered" else 0.5)
        assert recipe.loss.distillation == (7.0 if training.kept else 0.0)


def test_a_mobilefacenet_is_a_base() -> None:
    torch.manual_seed(0)
    network = MobileFaceNet().eval()
    base = as_base(network, mean=0.5, std=128 / 255)
    images = torch.rand(2, 3, 112, 96)
    with torch.no_grad():
        maps = base.maps(images)
        assert maps.shape == (2, 512, 7, 6)
        assert torch.allclose(base.features(maps), network((images - 0.5) / (128 / 255)), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": "smoke"}, "scale: expected small for both papers together, got 'smoke'"),
        ({"scale": "small", "tables": (3,)}, "table: expected 1 or 2, got 3"),
        ({"scale": "small", "seeds": (1000,)}, "seeds: expected different numbers without 1000"),
        ({"scale": "small", "settings": {"rates": ()}}, "rates: expected one or more, got none"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        reproduce.prepare("together", **options)
