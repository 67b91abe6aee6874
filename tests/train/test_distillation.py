"""Features that training keeps near those of the weights it starts from."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from occfast.models import features
from occfast.train import load_network, load_recipe, train
from occfast.train.objective import Classify, distance_to
from tests.train.tiny import SIZE, Patterns

RECIPE = (
    "data.name=tests.train.tiny:Patterns",
    "network.name=tests.train.test_distillation:flat",
    "loss.name=large_margin_cosine",
    "loss.scale=16",
    "epochs=3",
    "batch.size=12",
    "optimizer.learning_rate=0.05",
    "validation.share=0",
    "log.tensorboard=false",
    "jitter={flip: 0.0, shift: 0.0, scale: 0.0, turn: 0.0, gain: 0.0, offset: 0.0}",
)


def flat(classes: int | None, *, channels: int, size: tuple[int, int]) -> nn.Module:
    """Make a network without norms, whose features in training are those in evaluation."""
    layers = [nn.Flatten(), nn.Linear(channels * size[0] * size[1], 24), nn.Tanh(), nn.Linear(24, 8)]
    return nn.Sequential(*layers, *([] if classes is None else [nn.Linear(8, classes)]))


def started(tmp_path: Path) -> Path:
    """Weights of a short run."""
    if not (tmp_path / "start" / "last.safetensors").exists():
        train(load_recipe("A", ["data.template=null", *RECIPE]), tmp_path / "start", progress=False)
    return tmp_path / "start" / "last.safetensors"


def fine(tmp_path: Path, name: str, *overrides: str) -> torch.Tensor:
    """Mean cosine between the features of the images before and after a run from those weights."""
    start = started(tmp_path)
    recipe = load_recipe("A", ["data.template=null", *RECIPE, f"start={start}", *overrides])
    train(recipe, tmp_path / name, progress=False)
    images = Patterns().images
    before, after = (
        features(trained.network.eval())(trained.preprocessing(images))
        for trained in (load_network(start, trust=True), load_network(tmp_path / name / "last.safetensors", trust=True))
    )
    return F.cosine_similarity(before, after).mean().detach()


def test_distance_is_that_of_the_formula() -> None:
    a, b = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).chunk(2, 1)[0], torch.ones(5, 4)
    wanted = sum(1 - float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)) / 5
    assert float(distance_to(a, b)) == pytest.approx(wanted, abs=1e-6)
    assert float(distance_to(b, 3 * b)) == pytest.approx(0, abs=1e-6)


def test_the_loss_has_the_distance_times_its_weight() -> None:
    torch.manual_seed(0)
    network, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.Linear(4, 3)
    x, y, targets = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 4)
    plain, right = Classify(network, head)(x, y)
    loss, same = Classify(network, head, distillation=2.5)(x, y, targets)
    assert float(loss) == pytest.approx(float(plain + 2.5 * distance_to(network(x), targets)), rel=1e-6)
    assert int(right) == int(same)


def test_features_stay_near_those_of_the_start(tmp_path: Path) -> None:
    covered = ("epochs=6", "occluder.share=1.0", "occluder.size=[10, 8]", "occluder.locations=uniform")
    free = fine(tmp_path, "free", *covered)
    kept = fine(tmp_path, "kept", *covered, "loss.distillation=30")
    assert 1 - float(kept) < 0.5 * (1 - float(free))


def test_a_resumed_run_ends_alike(tmp_path: Path) -> None:
    start = started(tmp_path)
    overrides = ["data.template=null", *RECIPE, f"start={start}", "loss.distillation=5", "log.checkpoint=2"]
    whole = train(load_recipe("A", overrides), tmp_path / "whole", progress=False)

    def stop(done: int, total: int | None) -> None:
        if done == 8 * 12:  # images of eight steps; the features to keep near are of 60
            os.kill(os.getpid(), signal.SIGINT)

    first = train(load_recipe("A", overrides), tmp_path / "parts", progress=stop)
    assert (first.stopped, first.steps) == ("interrupted", 8) and whole.steps == 15
    train(load_recipe("A", overrides), tmp_path / "parts", resume=True, progress=False)
    a, b = (
        load_network(tmp_path / name / "last.safetensors", trust=True).network.state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (("loss.distillation=1",), "loss.distillation: expected 0 without start"),
        (("loss.distillation=-1", "start=x"), "loss.distillation: expected a number"),
    ],
)
def test_bad_settings(overrides: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_recipe("A", ["data.template=null", *RECIPE, *overrides]).check()


def test_a_networks_own_classifier_has_no_features_to_keep(tmp_path: Path) -> None:
    start = started(tmp_path)
    own = [*RECIPE, "loss.name=cross_entropy", f"start={start}", "loss.distillation=1"]
    with pytest.raises(
        ValueError,
        match=r"loss\.distillation: expected 0 for tests.train.test_distillation:flat, whose own classifier is trained",
    ):
        train(load_recipe("A", ["data.template=null", *own]), tmp_path / "own", progress=False)
    assert SIZE == (20, 16)
