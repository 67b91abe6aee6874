"""A run that is stopped anywhere ends as if it had not been."""

from __future__ import annotations

import csv
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast import DataError
from occfast.models.tensor_files import read_tensors
from occfast.train import train
from occfast.train.checkpoint import load_checkpoint
from tests.train.tiny import ROOT, recipe


class Killed(Exception):
    pass


class KillAt:
    """Stands in for the progress bar; ends the run without any farewell once a step is done."""

    def __init__(self, step: int, batch: int = 12) -> None:
        self.images = step * batch

    def __call__(self, done: int, total: int | None) -> None:
        if done >= self.images and total is not None and total > 100:
            raise Killed


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The uninterrupted runs."""
    torch.set_num_threads(1)
    folders = {stage: tmp_path_factory.mktemp("whole") / stage for stage in ("classify", "embed")}
    for stage, folder in folders.items():
        train(recipe(stage), folder, progress=False)
    return folders


def compare(folder: Path, other: Path) -> None:
    """Weights, state and logs are equal to the bit, but for rates."""
    for name in ("last.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    tensors, values = load_checkpoint(folder / "checkpoint.safetensors")
    expected, expected_values = load_checkpoint(other / "checkpoint.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
    for content in (values, expected_values):
        content["data"].pop("pixels", None)  # of runs in memory only
    ignored = ("recipe",)  # it states how often checkpoints are written
    assert {k: v for k, v in values.items() if k not in ignored} == {
        k: v for k, v in expected_values.items() if k not in ignored
    }
    assert rows(folder / "steps.csv") == rows(other / "steps.csv")
    assert rows(folder / "validations.csv") == rows(other / "validations.csv")
    for name in ("scores.jsonl",):
        if (other / name).exists():
            assert (folder / name).read_text() == (other / name).read_text()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("stage", "kills", "every"),
    [
        ("classify", (2, 5, 9), 2),  # four batches an epoch: within an epoch and at its end
        ("classify", (4, 8), 4),
        ("classify", (3,), 5),  # before the first checkpoint
        ("embed", (1, 6, 10), 3),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    stage: str, kills: tuple[int, ...], every: int, whole: dict[str, Path], tmp_path: Path
) -> None:
    run = recipe(stage, f"log.checkpoint={every}")
    for number, step in enumerate(kills):
        with pytest.raises(Killed):
            train(run, tmp_path / "run", resume=number > 0, progress=KillAt(step))
    torch.rand(7)  # what else this process draws doesn't matter
    result = train(run, tmp_path / "run", resume=True, progress=False)
    assert result.steps == 12 and result.stopped == ""
    compare(tmp_path / "run", whole[stage])


def test_tensorboard_shows_each_step_once(whole: dict[str, Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = recipe("classify", "log.checkpoint=4", "log.tensorboard=true")
    with pytest.raises(Killed):
        train(run, tmp_path / "run", progress=KillAt(7))
    train(run, tmp_path / "run", resume=True, progress=False)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("train/loss")
    expected = rows(whole["classify"] / "steps.csv")
    assert [event.step for event in shown] == [int(float(row["step"])) for row in expected]
    assert [event.value for event in shown] == pytest.approx([float(row["loss"]) for row in expected])


def test_images_from_disk_are_the_same_run(whole: dict[str, Path], tmp_path: Path) -> None:
    run = recipe("classify", "log.checkpoint=2", "data.in_memory=false", "data.workers=0")
    with pytest.raises(Killed):
        train(run, tmp_path / "run", progress=KillAt(6))
    run.data.workers = 1
    train(run, tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", whole["classify"])


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from occfast.train import train
from tests.train.tiny import recipe
print("ready", flush=True)
train(recipe("classify", "log.checkpoint=1", "epochs=15"), sys.argv[1], resume=True, progress=False)
print("done", flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kills", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(kills: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    train(recipe("classify", "epochs=15"), tmp_path / "whole", progress=False)
    choose, run, steps = random.Random(kills), tmp_path / "run", []
    for _ in range(kills):
        process = start(run)
        while not (run / "checkpoint.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(choose.uniform(0, 1.0 / kills))
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps.append(load_checkpoint(run / "checkpoint.safetensors")[1]["step"])  # whole, whenever it was killed
    assert steps == sorted(steps) and 0 < steps[0] <= 60
    process = start(run)
    assert process.communicate()[0] == "done\n"
    compare(run, tmp_path / "whole")


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(whole: dict[str, Path], tmp_path: Path) -> None:
    def ask(done: int, total: int | None) -> None:
        if done == 5 * 12:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = train(recipe("classify"), tmp_path / "run", progress=ask)
    assert (result.stopped, result.steps) == ("interrupted", 5)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run" / "last.safetensors").exists()
    train(recipe("classify"), tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", whole["classify"])


def test_a_full_disk_is_reported_and_the_checkpoint_kept(whole: dict[str, Path], tmp_path: Path) -> None:
    run = recipe("classify", "log.checkpoint=3")
    with pytest.raises(Killed):
        train(run, tmp_path / "run", progress=KillAt(4))
    kept = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # less than a checkpoint
    try:
        with pytest.raises(
            OSError, match=r"(checkpoint|best)\.safetensors could not be written: .* old content is kept"
        ):
            train(run, tmp_path / "run", resume=True, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == kept
    assert not list((tmp_path / "run").glob(".*"))  # nor half a file beside it
    train(run, tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", whole["classify"])


def test_a_finished_run_stays_as_it_is(whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["classify"], tmp_path / "run")
    result = train(recipe("classify"), tmp_path / "run", resume=True, progress=False)
    assert result.steps == 12 and result.epochs == 3
    compare(tmp_path / "run", whole["classify"])


def test_another_run_in_the_folder_is_not_overwritten(whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["classify"], tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"output: .* holds a run already; continue it .--resume., replace it .--overwrite., or choose"
    ):
        train(recipe("classify"), tmp_path / "run", progress=False)
    with pytest.raises(
        ValueError,
        match=r"optimizer.learning_rate: the run in .* used 0.01, which can.t be changed, got 0.5; start a new run from its weights",
    ):
        train(recipe("classify", "optimizer.learning_rate=0.5"), tmp_path / "run", resume=True, progress=False)
    compare(tmp_path / "run", whole["classify"])


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_damaged_checkpoints_are_refused(damage: str, whole: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(whole["classify"], tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    if damage == "other":
        shutil.copy(tmp_path / "run" / "best.safetensors", path)
    else:
        path.write_bytes(path.read_bytes()[: -100 if damage == "cut" else 0])
    with pytest.raises(DataError, match=r"checkpoint.safetensors: not a (whole .safetensors file|checkpoint of a)"):
        train(recipe("classify"), tmp_path / "run", resume=True, progress=False)


def test_checkpoints_hold_no_pickle(whole: dict[str, Path]) -> None:
    for path in whole["classify"].glob("*.safetensors"):
        read_tensors(path)
    names = load_checkpoint(whole["classify"] / "checkpoint.safetensors")[0]
    assert {name.partition("/")[0] for name in names} == {"objective", "optimizer", "generator", "random"}
