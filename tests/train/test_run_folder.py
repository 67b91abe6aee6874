"""One run a folder: locks, overwriting, code that is not trusted, and runs that another version began."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from occfast.data.images import encode_png
from occfast.models import PaperNet
from occfast.train import load_into, load_network, load_recipe, train
from occfast.train.log import read_rows
from tests.browser import CHROMIUM, LOOKS, look_over
from tests.train.tiny import ROOT, Net, Patterns, recipe

OLD = Path(__file__).with_name("written_before_0_1")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# -- one run a folder ----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from occfast.train.run import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_the_folder_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        who = rf"output: process {holder.pid} on {re.escape(socket.gethostname())} \(since .*\) is training in {folder}"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=who):
                train(recipe("classify"), folder, progress=False, **options)
        assert sorted(path.name for path in folder.iterdir()) == [".lock"]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    # A dead process holds nothing.
    assert train(recipe("classify", "epochs=1"), folder, progress=False).epochs == 1
    assert not (folder / ".lock").exists()


def test_of_many_contenders_one_has_the_lock_at_a_time(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from occfast.train.run import locked
done = 0
while done < 20:
    try:
        with locked(Path(sys.argv[1])):
            mark = Path(sys.argv[1]) / "mark"
            mark.touch(exist_ok=False)
            mark.unlink()
            done += 1
    except ValueError:
        time.sleep(0.001)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]


def test_overwriting_replaces_the_run_and_keeps_other_files(tmp_path: Path) -> None:
    first = train(recipe("classify", "loss.name=large_margin_cosine"), tmp_path, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    for wrong in ("batch.size=49", "data.arguments={each: 1}"):  # refused before anything is deleted
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=r"batch.size|validation|data"):
            train(recipe("classify", wrong), tmp_path, overwrite=True, progress=False)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="overwrite: expected False together with resume=True, got True"):
        train(recipe("classify"), tmp_path, resume=True, overwrite=True, progress=False)
    second = train(recipe("classify", "epochs=1", "validation.share=0"), tmp_path, overwrite=True, progress=False)
    assert (first.epochs, second.epochs) == (3, 1) and (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "best-head.safetensors").exists() and not (tmp_path / "best.safetensors").exists()


def test_epochs_that_cannot_be_extended_are_refused_and_the_error_says_how_to_go_on(tmp_path: Path) -> None:
    train(recipe("classify", "epochs=1"), tmp_path / "run", progress=False)
    with pytest.raises(
        ValueError,
        match=r"epochs: the run in .* used 1, which can't be changed \(the learning rate of every step depends on it, "
        r"unless optimizer.schedule=constant and optimizer.warmup=0\), got 4; start a new run from its weights with "
        r"start=(.*last.safetensors)",
    ) as error:
        train(recipe("classify", "epochs=4"), tmp_path / "run", resume=True, progress=False)
    start = re.search(r"start=\S+", str(error.value))
    assert start is not None
    assert train(recipe("classify", "epochs=3", start[0]), tmp_path / "more", progress=False).epochs == 3


@pytest.mark.parametrize("stage", ["classify", "embed"])
def test_more_epochs_at_a_constant_rate_are_the_run_that_was_begun_with_them(stage: str, tmp_path: Path) -> None:
    constant = ("optimizer.schedule=constant", "optimizer.warmup=0")
    whole = train(recipe(stage, *constant, "epochs=3"), tmp_path / "whole", progress=False)
    assert train(recipe(stage, *constant, "epochs=2"), tmp_path / "run", progress=False).epochs == 2
    more = train(recipe(stage, *constant, "epochs=3"), tmp_path / "run", resume=True, progress=False)
    assert (more.epochs, more.steps, more.best) == (3, whole.steps, whole.best)
    for name in ("last.safetensors", "best.safetensors", "recipe.yaml", "validations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "3 of 3 epochs" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(
        ValueError, match=r"epochs: the run in .* used 3, which can't be changed \(it can only grow\), got 2"
    ):
        train(recipe(stage, *constant, "epochs=2"), tmp_path / "run", resume=True, progress=False)


# -- the page of a run ---------------------------------------------------------------------------------------


def test_the_page_of_a_run_shows_curves_validations_and_what_was_used(tmp_path: Path) -> None:
    listed = tmp_path / "pairs.csv"
    write_pairs(tmp_path / "faces", listed)
    sets = f"validation.sets=[{{set: {listed}, images: {tmp_path / 'faces'}, aligned: true}}]"
    result = train(recipe("embed", sets, "data.min_images=2"), tmp_path / "run$1", progress=False)
    page = (tmp_path / "run$1" / "report.html").read_text()
    with (tmp_path / "run$1" / "split.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "training"]
    trained, people = len(rows), {row["person"] for row in rows}
    assert "<h1>Training run$1</h1>" in page and "(3 of 3 epochs)" in page
    rows = read_rows(tmp_path / "run$1" / "validations.csv")
    for name, compares in (("pairs/accuracy", "12 pairs"), ("verification", f"{count_of(page, 'verification')} pairs")):
        best = max(rows, key=lambda row: row[name])
        cells = [compares, f"{100 * best[name]:.2f} %", f"{best['epoch']:.0f}", f"{100 * rows[-1][name]:.2f} %"]
        assert f'<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) in page
    for text in (
        "tests.train.tiny:Patterns",
        f"{trained} images of {len(people)} people",
        "20 × 16, gray",
        "batch_triplet",
        result.weights,
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 5
    for name in ("Loss", "Accuracy", "Values of the validations", "Learning rate", "Distances of pairs"):
        assert f"<figcaption>{name}" in page


def test_the_page_of_a_run_without_validation(tmp_path: Path) -> None:
    train(recipe("classify", "validation.share=0", "epochs=1"), tmp_path, progress=False)
    page = (tmp_path / "report.html").read_text()
    assert "1 of 1 epochs, without validation" in page and 'id="validation"' not in page
    assert page.count("data:image/png;base64,") == 3
    train(recipe("classify", "epochs=1"), tmp_path, overwrite=True, progress=False)
    assert "Best accuracy" in (tmp_path / "report.html").read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@LOOKS
def test_a_browser_shows_the_page_of_a_run(how: dict[str, Any], tmp_path: Path) -> None:
    train(recipe("classify", "epochs=1"), tmp_path / "run", progress=False)
    found = look_over(tmp_path / "run" / "report.html", tmp_path, **how)
    assert len(found["images"]) == 4 and found["tables"]["validation"][1][0] == "accuracy"


def test_an_interrupted_run_has_no_page(tmp_path: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        if done == 24:
            signal.raise_signal(signal.SIGTERM)

    assert train(recipe("classify"), tmp_path, progress=stop).stopped == "interrupted"
    assert not (tmp_path / "report.html").exists()


def count_of(page: str, name: str) -> int:
    found = re.search(rf"{name}</th><td>(\d+) pairs</td>", page)
    assert found is not None
    return int(found[1])


def write_pairs(folder: Path, listed: Path) -> None:
    """Write images of Patterns, and a list of twelve pairs of them."""
    faces = Patterns(people=2, each=4)
    for face in faces:
        path = folder / face.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(face.image))
    lines = ["fold,first,second,same"]
    for fold in range(2):
        for k in range(3):
            lines.append(f"{fold},person {fold}/{k}.png,person {fold}/{k + 1}.png,1")
            lines.append(f"{fold},person 0/{k}.png,person 1/{(k + fold) % 4}.png,0")
    listed.write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_a_killed_process_is_one_line_in_the_others(tmp_path: Path) -> None:
    """Started by hand, as srun and mpirun do: nobody else ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["data.name=tests.train.tiny:Patterns", "network.name=tests.train.tiny:Net", "data.template=null"]
    settings += ["epochs=100000", "batch.size=12", "log.checkpoint=1", "log.tensorboard=false", "device=cpu"]
    command = [sys.executable, "-m", "occfast", "train", "A", *settings, "-q", "-o", str(tmp_path / "run")]
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        until = time.monotonic() + 200
        while not (tmp_path / "run" / "checkpoint.safetensors").exists():
            assert both[0].poll() is None and time.monotonic() < until, both[0].communicate()
            time.sleep(0.05)
        both[1].kill()
        _, said = both[0].communicate(timeout=100)
        assert both[0].returncode == 1 and "Traceback" not in said, said
        assert re.search(r"^occfast: process 0 of 2 lost another one .*--resume continues from the last", said, re.M)
    finally:
        for one in both:
            one.kill()
            one.wait()


# -- code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["data.name", "network.name", "validation.metric"])
def test_code_in_a_file_runs_only_if_trusted(key: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    section, name = key.split(".")
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: A\n{section}: {{{name}: 'os:system'}}\n")
    extending = tmp_path / "mine.yaml"
    extending.write_text("extends: own.yaml\nepochs: 3\n")
    needed = [] if key == "data.name" else ["data.name=orl"]
    for path in (own, extending):
        with pytest.raises(
            ValueError, match=rf"own.yaml: {key}: os:system is code, which runs only with trust=True \(--trust\)"
        ):
            load_recipe(path, needed)
        assert load_recipe(path, needed, trust=True)
        # Code that the user names is the user's.
        load_recipe(path, [*needed, f"{key}=tests.train.tiny:Patterns"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "recipe.yaml").write_text(own.read_text())
    from occfast import cli

    root = "data.root=echo ran"
    with pytest.raises(ValueError, match="runs only with trust=True"):
        cli.app(["train", "--resume", "--output", str(foreign), *needed, root], standalone_mode=False)
    assert capfd.readouterr().out == "" and [path.name for path in foreign.iterdir()] == ["recipe.yaml"]


def test_code_that_weights_name_runs_only_if_trusted(tmp_path: Path) -> None:
    first = train(recipe("classify", "epochs=1"), tmp_path / "first", progress=False)
    data = ["data.name=tests.train.tiny:Patterns", "data.template=null", f"start={first.weights}"]
    with pytest.raises(
        ValueError, match=r"best.safetensors: network.name: tests.train.tiny:Net is code, which runs only"
    ):
        load_recipe("C", data)
    assert load_recipe("C", data, trust=True).network.name == "tests.train.tiny:Net"
    assert load_recipe("C", [*data, "network.name=tests.train.tiny:Net"]).network.name == "tests.train.tiny:Net"


# -- the architecture of a run is that of the weights it starts from ---------------------------------------------


def test_start_brings_its_architecture(tmp_path: Path) -> None:
    first = train(recipe("classify", "epochs=1", "network.arguments={norm: false}"), tmp_path / "A", progress=False)
    data = ["data.name=tests.train.tiny:Patterns", "data.template=null", f"start={first.weights}", "epochs=1"]
    batch = ["batch.size=12", "batch.images_each=3", "validation.share=0.3", "log.tensorboard=false"]
    run = load_recipe("C", [*data, *batch], trust=True)
    assert run.network.arguments == {"norm": False}
    embedded = train(run, tmp_path / "C", progress=False)
    assert load_network(embedded.weights, trust=True).spec["arguments"] == {"norm": False}
    # What is stated counts.
    stated = load_recipe("C", [*data, "network.arguments={norm: true}"], trust=True)
    assert stated.network.arguments == {"norm": True}
    with pytest.raises(ValueError, match=r"don't fit the network: missing"):
        train(
            load_recipe("C", [*data, *batch, "network.arguments={norm: true}"], trust=True),
            tmp_path / "D",
            progress=False,
        )


def plain(classes: int | None) -> torch.nn.Module:
    """A network as a user writes it: nothing says which layer is the classifier."""
    from collections import OrderedDict

    layers = [("flat", torch.nn.Flatten()), ("body", torch.nn.Linear(320, 24)), ("act", torch.nn.ReLU())]
    if classes is not None:
        layers.append(("fc", torch.nn.Linear(24, classes)))
    return torch.nn.Sequential(OrderedDict(layers))


def test_a_network_without_classifier_name_goes_from_a_to_c(tmp_path: Path) -> None:
    name = "network.name=tests.train.test_run_folder:plain"
    common = ("network.arguments={}", name)
    first = train(recipe("classify", "epochs=2", *common), tmp_path / "A", progress=False)
    second = train(recipe("embed", "epochs=1", *common, f"start={first.weights}"), tmp_path / "C", progress=False)
    last, start = (load_network(path, trust=True) for path in (second.weights, first.weights))
    assert set(last.network.state_dict()) == {"body.weight", "body.bias"}
    assert set(start.network.state_dict()) == {"body.weight", "body.bias", "fc.weight", "fc.bias"}
    fresh = ("fresh_classifier=true", f"start={first.weights}", "epochs=1", "data.arguments={people: 5}")
    assert train(recipe("classify", *common, *fresh), tmp_path / "five", progress=False).epochs == 1
    # Weights that do not record their classes can't tell a classifier from another layer.
    with pytest.raises(
        ValueError, match=r"not of this network fc.bias, fc.weight \(if this is a classifier, .*classifier_name = 'fc'"
    ):
        load_into(plain(None), plain(6).state_dict())


def test_a_batch_needs_its_people(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"batch.size: a batch needs 8 people \(batch.size 24 / batch.images_each 3\), the data has 6 to train on",
    ):
        train(recipe("embed", "batch.size=24"), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"batch.size: expected at least 6, two people with batch.images_each = 3"):
        recipe("embed", "batch.size=3")


# -- NaN ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [".nan", ".inf", "0", "-0.1"])
def test_learning_rates_that_are_none(rate: str) -> None:
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: expected a number above 0, got"):
        recipe("classify", f"optimizer.learning_rate={rate}")


@pytest.mark.parametrize("share", ["0", "0.18"])
def test_a_useless_last_update_is_an_error_and_never_the_best(share: str, tmp_path: Path) -> None:
    # One step at all: no further loss shows what it did.
    one = ("epochs=1", "batch.size=48", "optimizer.name=sgd", "optimizer.learning_rate=1e38", "optimizer.warmup=0")
    run = recipe("classify", *one, f"validation.share={share}", "optimizer.momentum=0")
    with pytest.raises(ValueError, match=r"learning_rate: (a weight|an answer of the network) is no longer finite"):
        train(run, tmp_path, progress=False)
    assert not list(tmp_path.glob("*.safetensors")) and (tmp_path / "not-finite-0.txt").is_file()


def test_a_validation_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    class Holes(Patterns):
        def __init__(self) -> None:
            super().__init__()
            self.images[:, 0, 0, 0] = 0

    for metric in ("accuracy", "verification"):
        by = ("validation.share=0.3",) if metric == "verification" else ()
        run = recipe(
            "classify", f"validation.metric={metric}", *by, "network.name=tests.train.test_run_folder:poisoned"
        )
        with pytest.raises(ValueError, match=r"learning_rate: an answer in the validation is no longer finite"):
            train(run, tmp_path / metric, progress=False)
        assert not (tmp_path / metric / "best.safetensors").exists()


class Poisoned(Net):
    """Infinite in evaluation, as a network whose running statistics overflowed."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        out = super().features(x)
        return out if self.training else out / 0


def poisoned(classes: int | None, channels: int, norm: bool = True) -> Poisoned:
    return Poisoned(classes, channels, norm)


def nan_metric(features: torch.Tensor, labels: torch.Tensor) -> float:
    return float("nan")


def test_a_metric_must_be_finite(tmp_path: Path) -> None:
    run = recipe("embed", "validation.metric=tests.train.test_run_folder:nan_metric")
    with pytest.raises(
        ValueError, match=r"validation.metric: expected a finite number from tests.*nan_metric, got nan"
    ):
        train(run, tmp_path, progress=False)
    assert not (tmp_path / "best.safetensors").exists()


# -- files of the version before 0.1.0 ---------------------------------------------------------------------------


def test_old_weights_load() -> None:
    one = load_network(OLD / "paper.safetensors")
    assert isinstance(one.network, PaperNet) and one.people == ["Ada", "Bea", "Zoë"]
    assert one.preprocessing.color == "gray" and one.preprocessing.channels == 1
    assert one.preprocessing.alignment is not None and one.preprocessing.alignment["color"] == "gray"
    assert one.embed(torch.zeros(2, 1, 100, 100, dtype=torch.uint8)).isfinite().all()
    run = load_network(OLD / "run" / "best.safetensors", trust=True)
    assert run.preprocessing.color == "gray" and run.head is not None and run.about["loss"] == "large_margin_cosine"
    assert run.classifier()(run.preprocessing(Patterns().images)).shape == (60, 6)


def test_old_recipes_load(tmp_path: Path) -> None:
    found = load_recipe(OLD / "run" / "recipe.yaml", trust=True)
    assert found.data.color == "gray" and found.loss.name == "large_margin_cosine"
    (tmp_path / "old.yaml").write_text(
        "extends: A\ndata: {name: folder, root: x, color: grey, arguments: {grey: true}}\n"
    )
    assert load_recipe(tmp_path / "old.yaml").data.arguments == {"gray": True}
    with pytest.raises(ValueError, match=r"data.color: expected one of 'gray', 'RGB', 'BGR', got 'grey'"):
        load_recipe("A", ["data.name=orl", "data.color=grey"])


def test_old_checkpoints_are_named_and_go_on_if_that_is_meant(tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    run = load_recipe(tmp_path / "run" / "recipe.yaml", trust=True)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors was written by a version of occfast before 0.1.0"):
        train(run, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == (
        OLD / "run" / "checkpoint.safetensors"
    ).read_bytes()
    assert train(run, tmp_path / "run", resume=True, data_changed=True, progress=False).epochs == 2
    on = recipe("classify", "loss.name=large_margin_cosine", f"start={OLD / 'run' / 'best.safetensors'}", "epochs=1")
    assert train(on, tmp_path / "on", progress=False).epochs == 1


# -- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_a_lost_process_is_one_line(tmp_path: Path) -> None:
    from occfast.train.recipe import to_yaml

    run = recipe(
        "classify", "device=cpu", "epochs=400", "network.arguments={dropout: 0.0, norm: false}", "log.checkpoint=2"
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(run))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [
        sys.executable,
        "-m",
        "occfast",
        "train",
        str(tmp_path / "recipe.yaml"),
        "--trust",
        "-q",
        "-o",
        str(tmp_path / "run"),
    ]
    workers = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
            assert workers[0].poll() is None, workers[0].communicate()[1]
            time.sleep(0.05)
        workers[1].kill()
        _, told = workers[0].communicate(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert workers[0].returncode == 1
    lines = [line for line in told.splitlines() if line.startswith("occfast: ")]
    assert len(lines) == 1 and "process 0 of 2 lost another one" in lines[0] and "--resume" in lines[0], told
    assert "Traceback" not in told
