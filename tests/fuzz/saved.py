"""Files that occfast itself writes and users hand around: maps, checkpoints, weights, reports, recipes."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from occfast import DataError
from occfast.cli.evaluate import _check_report
from occfast.evaluate.embedding import Embeddings
from occfast.models import Preprocessing, build
from occfast.models.tensor_files import read_state_dict
from occfast.models.weights import Trained, load
from occfast.occlude.locations import LocationDistribution
from occfast.pdsn import MaskDictionary, grid
from occfast.pdsn.generator import Generators
from occfast.pdsn.regions import Regions
from occfast.reproduce.graph import Graph, Step
from occfast.reproduce.report import Report
from occfast.sweep import OcclusionMap, SweepGrid
from occfast.sweep.checkpoint import Checkpoint, Fingerprint, SweepState
from occfast.sweep.estimate import Disagreement, Sampling
from occfast.train import recipe as recipes
from occfast.train.checkpoint import load_checkpoint, save_checkpoint

Entry = tuple[str, str, list[bytes], Callable[[Path], object], str, tuple[type[Exception], ...]]
ROOT = Path(__file__).resolve().parents[2]
_GRID = SweepGrid.over((6, 5), (3, 2), stride=2, border="clip")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _map(**more: Any) -> OcclusionMap:
    shape = (_GRID.rows, _GRID.columns)
    values = np.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    fields: dict[str, Any] = dict(
        values=values,
        standard_error=values / 7,
        per_image=np.zeros((2, *shape), np.uint8),
        image_indices=np.array([0, 2]),
        grid=_GRID,
        score="error",
        method="dense",
        n_images=2,
        n_skipped=1,
        n_evaluations=18,
        seconds=0.5,
        mean_image=np.zeros((1, 6, 5), np.float32),
        settings={"seed": 0},
        fingerprint=Fingerprint({"seed": 0}, np.zeros(3), "ab", 3),
    )
    return OcclusionMap(**{**fields, **more})


def _maps() -> list[bytes]:
    shape = (_GRID.rows, _GRID.columns)
    sampling = Sampling(3, 0.5, (1.0, 2.0), (2.0, 2.0), 1, 0.1, None, True, 0.1, 0.0, 0.1, 0.0)
    checked = Disagreement(0.1, 0.0, 0.2, 5, 3, 1, None, 0.1, 0.2)
    made = (
        _map(),
        _map(method="adaptive", estimate=checked, per_image=None),
        _map(method="sampled", estimate=sampling, interval=np.zeros((2, *shape)), bias=np.zeros(shape)),
    )
    found = []
    with _folder() as folder:
        for m in made:
            found.append(m.save(folder / "m.npz").read_bytes())
    return found


def _sweep_checkpoint() -> bytes:
    n = _GRID.positions
    state = SweepState(np.zeros(n), np.zeros(n), np.zeros((1, 6, 5)), [np.zeros((1, n), np.uint8)], [np.array([0])])
    state.seen, state.used, state.partial, state.next, state.batch_size = 1, 1, np.zeros((2, n)), 3, 4
    with _folder() as folder:
        file = Checkpoint(folder / "c.npz")
        file.origin = Fingerprint({"seed": 0, "weights": "ab"}, np.zeros(3))
        file.save(state)
        return (folder / "c.npz").read_bytes()


def _read_checkpoint(path: Path) -> object:
    file = Checkpoint(path)
    file.origin = Fingerprint({"seed": 0, "weights": "ab"}, np.zeros(3))
    content = file.read()
    assert content is not None
    return file.load(content, _GRID.positions, 1, [1, 6, 5], torch.float32) if "stamp" in content else content


def _features() -> bytes:
    about = {"preprocessing": {"size": [6, 5], "alignment": None}, "flip": "sum", "occlusion": None, "model": "ab"}
    with _folder() as folder:
        made = Embeddings(torch.ones(2, 3), ["a", "b"], torch.tensor([0, 1]), torch.zeros(2), about)
        return made.save(folder / "f.npz").read_bytes()


def _locations() -> bytes:
    with _folder() as folder:
        LocationDistribution.softmax(torch.rand(6, 5).double(), 0.4, image_size=(6, 5)).save(folder / "p.npz")
        return (folder / "p.npz").read_bytes()


def _dictionary() -> bytes:
    regions = grid(2, 2, (8, 8))
    with _folder() as folder:
        made = MaskDictionary(regions, torch.rand(4, 2, 2, 2), 25.0, "ab", (3, 3, 3, 3), {"seed": 0})
        return made.save(folder / "d.npz").read_bytes()


def _generators() -> bytes:
    with _folder() as folder:
        return Generators(grid(2, 1, (8, 8)), 2, kernel=1, base="ab").save(folder / "g.pt").read_bytes()


def _weights() -> bytes:
    net = build("paper", 2, channels=1, size=(100, 100), width=0.02)
    spec = {"name": "paper", "classes": 2, "arguments": {"width": 0.02}}
    with _folder() as folder:
        made = Trained(net.eval(), Preprocessing((100, 100), "gray"), spec, ["a", "b"], None, {"epoch": 1})
        return made.save(folder / "w.safetensors").read_bytes()


def _run_checkpoint() -> bytes:
    tensors = {"objective/a": torch.zeros(2), "optimizer/0/exp_avg": torch.ones(2)}
    with _folder() as folder:
        values = {"step": 3, "best": 0.5, "meter": {"sums": [0, 0, 0], "images": 0}}
        return save_checkpoint(folder / "c.safetensors", tensors, values).read_bytes()


def _state_dicts() -> list[bytes]:
    found = []
    for content in (nn.Linear(2, 2).state_dict(), {"model": {"module.a": torch.zeros(2)}}):
        out = io.BytesIO()
        torch.save(content, out)
        found.append(out.getvalue())
    return found


def _recipes() -> list[bytes]:
    own = b"extends: A\nepochs: 3\ndata: {name: folder, root: faces}\noptimizer: {name: adamw, learning_rate: 1e-3}\n"
    own += (
        b"jitter: {flip: 0.5}\noccluder: {share: 0.5, size: [6, 6]}\nnetwork: {name: paper, arguments: {width: 0.5}}\n"
    )
    return [own, b"extends: C\nstart: a.safetensors\ndata:\n  name: orl\nvalidation:\n  share: 0.1\n"]


def _done(path: Path) -> object:
    return _graph(path.parent).done("a")


def _graph(folder: Path) -> Graph:
    class Here(Graph):
        def folder(self, name: str) -> Path:
            return folder

    return Here([Step("a", lambda context: {})], folder, {})


def _done_file() -> bytes:
    import json

    with _folder() as folder:
        content = {"kind": "occfast.step", "key": _graph(folder).key("a"), "result": {"brief": "x"}, "seconds": 1.5}
        content |= {"device": "CPU", "processes": 1, "finished": "2026-01-01T00:00:00+00:00"}
        return json.dumps(content).encode()


def _reproduction(path: Path) -> object:
    found = Report.load(path.parent)
    return found.to_markdown()


def _evaluation() -> bytes:
    text = b'{"settings": {"model": "ab", "data": "faces", "models": {"a": {"model": "ab"}}}, '
    return text + b'"rows": [{"protocol": "folder"}]}'


def _small_report() -> bytes:
    import json

    content = json.loads((ROOT / "results" / "demo" / "report.json").read_text())
    content["pictures"] = []
    return json.dumps(content).encode()


def saved() -> list[Entry]:
    """Return (name, name of the file, seeds, reader, container, documented errors) of each kind of file."""
    data, value = (DataError,), (DataError, ValueError)
    return [
        ("map", "m.npz", _maps(), OcclusionMap.load, "zip", data),
        ("sweep checkpoint", "c.npz", [_sweep_checkpoint()], _read_checkpoint, "zip", value),
        ("features", "f.npz", [_features()], Embeddings.load, "zip", data),
        ("locations", "p.npz", [_locations()], LocationDistribution.load, "zip", data),
        ("mask dictionary", "d.npz", [_dictionary()], MaskDictionary.load, "zip", data),
        ("mask generators", "g.pt", [_generators()], Generators.load, "zip", data),
        ("weights", "w.safetensors", [_weights()], load, "safetensors", value),
        ("run checkpoint", "c.safetensors", [_run_checkpoint()], load_checkpoint, "safetensors", data),
        ("state dict", "s.pt", _state_dicts(), read_state_dict, "zip", data),
        (
            "regions",
            "r.json",
            [grid(2, 2, (8, 8)).to_json().encode()],
            lambda path: Regions.from_json(path.read_bytes().decode("utf-8", "replace"), str(path)),
            "json",
            data,
        ),
        (
            "preprocessing",
            "p.json",
            [Preprocessing((6, 5), "RGB", alignment={"template": "a", "size": [6, 5]}).to_json().encode()],
            lambda path: Preprocessing.from_json(path.read_bytes().decode("utf-8", "replace"), str(path)),
            "json",
            data,
        ),
        ("recipe", "r.yaml", _recipes(), lambda path: recipes.load(path), "", (ValueError, TypeError)),
        ("step", "done.json", [_done_file()], _done, "json", data),
        ("reproduction report", "report.json", [_small_report()], _reproduction, "json", data),
        (
            "evaluation report",
            "report.json",
            [_evaluation()],
            lambda path: _check_report(path.parent, {"network": {"ab"}, "data": {"faces"}, "protocol": {"folder"}}),
            "json",
            value,
        ),
    ]
