"""Well-formed files with wrong content, and files that are no files: one clear error, soon, in every reader."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import occfast
from occfast import DataError
from occfast.cli import app, main
from occfast.cli.evaluate import _check_report
from occfast.cli.pdsn import _regions
from occfast.evaluate.embedding import Embeddings
from occfast.files import write_npz
from occfast.models import Preprocessing
from occfast.models.tensor_files import read_tensors, write_tensors
from occfast.occlude.locations import LocationDistribution
from occfast.pdsn import tensor_files
from occfast.pdsn.regions import Regions
from occfast.progress import printable
from occfast.reproduce.graph import Graph, Step
from occfast.sweep import OcclusionMap
from occfast.train import load_network, train
from occfast.train.checkpoint import load_checkpoint, save_checkpoint
from tests.fuzz.saved import saved
from tests.train.tiny import recipe

DEEP = "[" * 100_000
SEEDS = {name: seeds for name, _, seeds, *_ in saved()}


def weights(path: Path, text: str) -> Path:
    """Write a safetensors file whose description is this text."""
    header = json.dumps({"__metadata__": {"occfast": text}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_deep_json_in_the_metadata(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors", DEEP)
    for read in (read_tensors, load_checkpoint, load_network):
        with pytest.raises(DataError, match=r"w.safetensors: not a whole .safetensors file"):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"name": "paper", "classes": 2, "arguments": {"width": 1e6}}}, "describes a network of [0-9,]+ numbers"),
        ({"network": {"name": "paper", "classes": 10**9, "arguments": {"width": 0.02}}}, "describes a network of"),
        ({"network": {"name": "resnet50", "classes": 2, "arguments": {"width": 10**6}}}, "describes a network of"),
        ({"network": {"name": "paper", "classes": 2, "arguments": {"depth": 3}}}, "takes no argument depth"),
        ({"network": {"name": "paper", "classes": 2, "arguments": {"width": "a"}}}, "width: expected"),
        ({"network": {"name": "paper", "classes": 2, "arguments": [1]}}, "not a whole description"),
        ({"preprocessing": {"size": [1e400, 1], "color": "gray"}}, "not a description of preprocessing"),
        ({"people": 7}, "not a whole description"),
    ],
)  # fmt: skip
def test_descriptions_of_other_networks(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(SEEDS["weights"][0])
    state, about = read_tensors(tmp_path / "w.safetensors")
    about.pop("version")
    write_tensors(tmp_path / "w.safetensors", state, {**about, **change})
    started = time.process_time()
    with pytest.raises(DataError, match=rf"w.safetensors: .*{message}"):
        load_network(tmp_path / "w.safetensors")
    assert time.process_time() - started < 5


def test_sizes_beyond_all_numbers() -> None:
    for text in ('{"size": [1e400, 3]}', '{"size": ' + DEEP, '{"size": 3}', "[]"):
        with pytest.raises(DataError, match="not a description of preprocessing"):
            Preprocessing.from_json(text)
        with pytest.raises(DataError, match="not a description of regions"):
            Regions.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": np.float64(3)},
        {"image_size": np.array([np.inf, 3])},
        {"image_size": np.array([1, 2, 3])},
        {"probabilities": np.array(["a"])},
        {"row_centers": np.zeros((2, 2))},
    ],
    ids=str,
)
def test_wrong_distributions(changes: dict[str, Any], tmp_path: Path) -> None:
    good = {"probabilities": np.full((2, 3), 1 / 6), "row_centers": np.arange(2), "column_centers": np.arange(3)}
    kind = {"kind": "occfast.LocationDistribution", "image_size": np.array([2, 3])}
    write_npz(tmp_path / "p.npz", **{**good, **kind, **changes})
    with pytest.raises(DataError, match=r"p.npz: incomplete LocationDistribution"):
        LocationDistribution.load(tmp_path / "p.npz")


@pytest.mark.parametrize("content", ['{"settings": [1]}', '{"rows": 3}', '{"settings": {"models": [2]}}'])
def test_reports_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError, match=r"report.json: not a report of occfast evaluate"):
        _check_report(tmp_path, {"network": set(), "data": set(), "protocol": set()})


@pytest.mark.parametrize("seconds", ["[1]", '"a"', "null", "true"])
def test_a_step_that_was_begun_by_something_else(seconds: str, tmp_path: Path) -> None:
    graph = Graph([Step("a", lambda context: {})], tmp_path, {})
    graph.folder("a").mkdir()
    (graph.folder("a") / "begun.json").write_text(f'{{"seconds": {seconds}}}')
    with pytest.raises(DataError, match=r"begun.json: expected seconds, got .*; delete its folder"):
        graph.run("cpu", progress=False)


def test_a_kill_just_after_a_result_leaves_nothing(tmp_path: Path) -> None:
    graph = Graph([Step("a", lambda context: {})], tmp_path, {})
    graph.run("cpu", progress=False)
    (graph.folder("a") / "begun.json").write_text("{}")
    (graph.folder("a") / ".begun.json.part").write_text("{")
    graph.run("cpu", progress=False)
    assert [path.name for path in graph.folder("a").iterdir()] == ["done.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    train(recipe("classify", "epochs=1"), folder, progress=False)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"meter": {}},
        {"meter": None},
        {"best": "high"},
        {"stale": -1},
        {"stopped": "later"},
        {"extra": 3},
        {"optimizer": ["a"]},
        {"optimizer": {"0": 1}},
        {"step": "a"},
        {},
    ],
    ids=str,
)
def test_checkpoints_of_a_training_that_are_not_whole(change: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint.safetensors"
    tensors, values = load_checkpoint(path)
    if change:
        save_checkpoint(path, tensors, {**values, **change})
    else:
        save_checkpoint(path, {k: v for k, v in tensors.items() if not k.startswith("generator")}, values)
    with pytest.raises(DataError, match=r"checkpoint.safetensors: not a whole checkpoint \("):
        train(recipe("classify", "epochs=1"), tmp_path, resume=True, progress=False)


def test_pipes_do_not_hang(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "net.safetensors").write_bytes(SEEDS["weights"][0])
    for read in (
        OcclusionMap.load,
        Embeddings.load,
        LocationDistribution.load,
        lambda path: tensor_files.read(path, "a"),
    ):
        with pytest.raises(DataError, match="expected a regular file"):
            read(pipe)
    with pytest.raises(DataError, match="expected a regular file"):
        _regions(pipe)
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "faces" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "faces" / name)
    command = ["map", tmp_path / "net.safetensors", tmp_path / "faces", "--people", pipe, "-o", tmp_path / "maps"]
    result = CliRunner().invoke(app, [*map(str, command), "--quiet"])
    assert "expected a regular file" in str(result.exception) and not (tmp_path / "maps").exists()


def test_names_do_not_control_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: Any) -> None:
    faces = tmp_path / "faces"
    for name in ("a\x1b[31m/1.png", "b/1.png"):
        (faces / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(faces / name)
    (faces / "b" / "\x1b[2J\x9b.jpg").write_bytes(b"x")
    (faces / "b" / "\x1b]0;x\x07.txt").write_bytes(b"x")
    shown = CliRunner().invoke(app, ["data", "show", str(faces), "-q"])
    assert shown.exit_code == 1 and not set(shown.output) & set("\x1b\x07\x9b") and r"\x1b[2J" in shown.output
    monkeypatch.setattr("sys.argv", ["occfast", "data", "convert", str(faces), str(tmp_path / "a.rec"), "-q"])
    with pytest.raises(SystemExit):
        main()
    said = capfd.readouterr().err
    assert "\x1b" not in said and r"\x1b[2J" in said
    assert printable("a\nb\tc\udc80é") == "a\nb\\tc\\udc80é"


@pytest.mark.parametrize("changes", [{"value_range": (-3.4e38, 3.4e38)}, {"value_range": (0, float("inf"))}], ids=str)
def test_ranges_of_occluders_fit_float32(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="value_range: expected a number in"):
        occfast.NoisyOccluder((3, 3), **changes)
    wide = occfast.NoisyOccluder((3, 3), value_range=(-1.7e38, 1.7e38), seed=0)
    assert bool(wide(torch.zeros(8, 1, 9, 9), torch.arange(8)).isfinite().all())


def test_batch_sizes_beyond_all_memory() -> None:
    with pytest.raises(ValueError, match=r"batch_size: expected"):
        occfast.occlusion_map(lambda x: x.flatten(1), torch.rand(1, 1, 9, 9), torch.zeros(1).long(), batch_size=2**63)
