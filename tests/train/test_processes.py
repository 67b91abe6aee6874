"""Two processes do what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from occfast.train import train
from occfast.train.checkpoint import load_checkpoint
from occfast.train.log import read_rows
from occfast.train.recipe import to_yaml
from tests.processes import torchrun
from tests.train.tiny import recipe

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
# Dropout draws in each process, and norms see a process' own images: without them the runs are the same computation.
PLAIN = ["network.arguments={dropout: 0.0, norm: false}", "device=cpu"]


def train_on_two(folder: Path, recipe_file: Path, *options: str) -> None:
    torchrun("-m", "occfast", "train", recipe_file, "--trust", *options, "--output", folder)


def weights(folder: Path) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(folder / "checkpoint.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("objective/")}


def close(folder: Path, other: Path) -> None:
    mine, theirs = weights(folder), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5)
    for name in ("steps.csv", "validations.csv"):
        for row, expected in zip(read_rows(folder / name), read_rows(other / name), strict=True):
            assert row.keys() == expected.keys()
            for key in row.keys() & {"step", "epoch", "loss", "accuracy", "verification", "triplets/n_candidates"}:
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), (name, key)


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
    run = recipe("embed", *PLAIN, "loss.mining=violating", "log.checkpoint=2", "batch.size=12")
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
