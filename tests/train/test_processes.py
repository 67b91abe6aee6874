"""Two processes do what one does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from occfast import LargeMarginCosine, ProcessLost
from occfast.train import load_network, load_recipe, train
from occfast.train.checkpoint import load_checkpoint
from occfast.train.log import read_rows
from occfast.train.recipe import to_yaml
from tests.processes import together, torchrun
from tests.train.tiny import recipe

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
# Dropout draws in each process, and norms see a process' own images: without them the runs are the same computation.
PLAIN = ["network.arguments={dropout: 0.0, norm: false}", "device=cpu"]


def train_on_two(folder: Path, recipe_file: Path, *options: str) -> None:
    torchrun("-m", "occfast", "train", recipe_file, "--trust", *options, "--output", folder)


def weights(folder: Path) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(folder / "checkpoint.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("objective/")}


def same_logs(folder: Path, other: Path, *also: str) -> None:
    compared = {"step", "epoch", "loss", "accuracy", "verification", "triplets/n_candidates", *also}
    for name in ("steps.csv", "validations.csv"):
        for row, expected in zip(read_rows(folder / name), read_rows(other / name), strict=True):
            assert row.keys() == expected.keys()
            for key in row.keys() & compared:
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), (name, key)


def close(folder: Path, other: Path) -> None:
    mine, theirs = weights(folder), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)
    same_logs(folder, other)


def test_classification_on_two_processes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = recipe("classify", *PLAIN, "optimizer.name=sgd")
    train(run, tmp_path / "one", progress=False)
    (tmp_path / "recipe.yaml").write_text(to_yaml(run))
    train_on_two(tmp_path / "two", tmp_path / "recipe.yaml", "batch.accumulate=3")
    close(tmp_path / "two", tmp_path / "one")
    assert {k for k in load_checkpoint(tmp_path / "two" / "checkpoint.safetensors")[0] if k.startswith("random")} == {
        "random/0/cpu",
        "random/1/cpu",
    }


def test_triplets_begun_on_one_process_go_on_on_two(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    options = ["loss.mining=violating", "log.checkpoint=2", "batch.size=12", "loss.memory_size=20"]
    run = recipe("embed", *PLAIN, *options)
    train(run, tmp_path / "one", progress=False)

    class Stop(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 5 * 12 and total is not None and total > 100:
            raise Stop

    with pytest.raises(Stop):
        train(run, tmp_path / "two", progress=stop)
    train_on_two(tmp_path / "two", tmp_path / "two" / "recipe.yaml", "--resume")
    close(tmp_path / "two", tmp_path / "one")
    remembered = {name: len(tensor) for name, tensor in weights(tmp_path / "one").items() if name.endswith("labels")}
    assert remembered == {"objective/loss.labels": 20}
    with pytest.raises(ValueError, match=r"loss\.memory_size: expected less than"):
        train(replace(run, loss=replace(run.loss, memory_size=1000)), tmp_path / "three", progress=False)


def train_here(recipe_file: Path, folder: Path, overrides: list[str], resume: bool, until: int | None) -> None:
    """Train in one of several processes; the first dies after a number of images, which ends the others."""

    def die(done: int, total: int | None) -> None:
        if until is not None and done == until:
            os._exit(0)

    try:
        train(load_recipe(recipe_file, overrides, trust=True), folder, resume=resume, progress=die)
    except ProcessLost:
        assert until is not None
        os._exit(0)


@pytest.mark.parametrize("loss", ["large_margin_cosine", "cross_entropy"])
def test_a_sharded_classifier_is_the_whole_one(loss: str, tmp_path: Path) -> None:
    """Begun on two processes, continued on three, with clipped gradients: the run of one process with a whole one."""
    torch.set_num_threads(1)
    options = [f"loss.name={loss}", "loss.scale=16", "optimizer.clip=20", "log.checkpoint=2", "batch.size=12"]
    train(recipe("classify", *PLAIN, *options, "epochs=1"), tmp_path / "start", progress=False)
    run = recipe("classify", *PLAIN, *options, f"start={tmp_path / 'start' / 'last.safetensors'}")
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(run))
    train(run, tmp_path / "one", progress=False)
    together(train_here, file, tmp_path / "three", ["classifier.sharded=true"], False, 6 * 12, processes=2)
    together(train_here, file, tmp_path / "three", ["classifier.sharded=true"], True, None, processes=3)
    same_logs(tmp_path / "three", tmp_path / "one", "gradient_norm")
    found, want = (load_network(tmp_path / name / "last.safetensors", trust=True) for name in ("three", "one"))
    assert isinstance(found.head, LargeMarginCosine if loss == "large_margin_cosine" else torch.nn.Linear)
    assert found.people == want.people
    images = torch.rand(3, 1, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.classifier()(images), want.classifier()(images), rtol=1e-4, atol=1e-4)
    best = load_network(tmp_path / "three" / "best.safetensors", trust=True)  # both processes sent their rows
    assert len(best.head.weight) == 6
