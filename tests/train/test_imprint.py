"""A classifier that begins with the mean features of people."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from occfast.models import features
from occfast.models.tensor_files import read_tensors
from occfast.train import load_network, load_recipe, train
from occfast.train.session import _first_of_each
from tests.train.test_distillation import RECIPE, started
from tests.train.tiny import Patterns

#: So small a learning rate that a run leaves the classifier as it begins.
STILL = ("epochs=1", "optimizer.learning_rate=1e-12", "optimizer.weight_decay=0", "classifier.imprint=true")


def test_first_images_of_each_person() -> None:
    labels = torch.tensor([2, 0, 2, 2, 0, 1, 2])
    assert _first_of_each(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert _first_of_each(labels, 9).tolist() == list(range(7))


@pytest.mark.parametrize("extra", [(), ("classifier.sharded=true",), ("loss.distillation=2",)])
def test_rows_are_mean_directions_of_eight_images_each(tmp_path: Path, extra: tuple[str, ...]) -> None:
    start = started(tmp_path)
    overrides = ["data.template=null", *RECIPE, f"start={start}", *STILL, *extra]
    train(load_recipe("A", overrides), tmp_path / "run", progress=False)
    weight = read_tensors(tmp_path / "run" / "last-head.safetensors")[0]["weight"]
    faces, trained = Patterns(), load_network(start, trust=True)
    found = F.normalize(features(trained.network.eval())(trained.preprocessing(faces.images))).detach()
    expected = torch.stack([found[faces.labels == person][:8].sum(0) for person in range(6)])
    torch.testing.assert_close(F.normalize(weight), F.normalize(expected), rtol=0, atol=1e-5)
    lengths = weight.norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:1].expand(6), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("classifier.imprint=true",), "classifier.imprint: expected false without start"),
        (
            ("classifier.imprint=true", "start=x", "loss.name=cross_entropy"),
            "classifier.imprint: expected false with loss.name=cross_entropy",
        ),
    ],
)
def test_bad_settings(overrides: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_recipe("A", ["data.template=null", *RECIPE, *overrides]).check()
