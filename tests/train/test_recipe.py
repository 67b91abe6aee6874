"""Recipes: what is read, shown and refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from occfast.models import Preprocessing, build
from occfast.train import Trained
from occfast.train.recipe import Recipe, load, names, show, to_yaml

STATED = ["data.name=orl", "start=weights.safetensors"]
PLACED = [*STATED, "occluder.locations=map.npz"]


def stated(name: str) -> list[str]:
    if name in ("A", "pdsn"):
        return STATED[:1]
    return PLACED if name == "robust" or ("x" in name and not name.endswith("R")) else STATED


def test_the_papers_models_are_there() -> None:
    sizes = ("20x20", "20x40", "40x40")
    expected = {"A", "B", "C", "pdsn", "robust"} | {f"A{s}" for s in sizes} | {f"A{s}R" for s in sizes}
    assert set(names()) == expected | {f"{loss}{s}" for loss in "BC" for s in sizes}


@pytest.mark.parametrize("name", names())
def test_packaged_recipes_say_what_the_papers_say(name: str) -> None:
    recipe = load(name, stated(name))
    if "x" in name:
        height, width = name[1:].removesuffix("R").split("x")
        assert recipe.occluder.size == [int(height), int(width)] and recipe.occluder.share == 1
        assert recipe.occluder.locations == ("normal" if name.endswith("R") else "map.npz")
        assert set(recipe.occluder.noise) == {"salt_and_pepper", "speckle", "gaussian"}
    elif name == "robust":
        assert recipe.occluder.locations == "map.npz"
        assert recipe.drawn.keys() == {"sunglasses", "mask", "scarf", "hand", "band"}
        assert 0.5 < recipe.occluder.share + sum(recipe.drawn.values()) < 1
    else:
        assert recipe.occluder.share == 0
    loss = {
        "A": "cross_entropy",
        "B": "triplet",
        "C": "batch_triplet",
        "p": "large_margin_cosine",
        "r": "cross_entropy",
    }[name[0]]
    assert recipe.loss.name == loss
    assert recipe.stage == ("embed" if name[0] in "BC" else "classify")
    if name[0] in "ABCr":
        assert recipe.network.name == "paper" and recipe.validation.share == 0.1
        assert (recipe.loss.margin, recipe.loss.beta, recipe.loss.mining) == (0.5, 0.7, "violating")
    else:
        assert recipe.network.name == "resnet34" and recipe.validation.patience > 0


@pytest.mark.parametrize("name", names())
def test_what_only_the_user_knows_is_asked_for(name: str) -> None:
    for missing in stated(name):
        rest = [override for override in stated(name) if override != missing]
        key = missing.partition("=")[0]
        with pytest.raises(ValueError, match=rf"{name}: {key} is not stated; give it as {key}=…"):
            load(name, rest)


def test_show_prints_every_default() -> None:
    shown = yaml.safe_load(show("C20x40"))
    everything = asdict(Recipe())
    assert shown.keys() == everything.keys()
    for key, value in everything.items():
        if isinstance(value, dict):
            assert shown[key].keys() == value.keys()
    assert shown["start"] == shown["data"]["name"] == shown["occluder"]["locations"] == "???"
    assert shown["loss"]["name"] == "batch_triplet"


def test_written_recipes_read_the_same(tmp_path: Path) -> None:
    recipe = load("A40x40", [*PLACED, "network.arguments={width: 0.5}", "occluder.size=[[10,20],[20,40]]", "seed=5"])
    (tmp_path / "own.yaml").write_text(to_yaml(recipe))
    assert load(tmp_path / "own.yaml") == recipe
    assert recipe.network.arguments == {"width": 0.5} and recipe.occluder.size == [[10, 20], [20, 40]]


def test_own_files_extend_others(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: A\nepochs: 3\ndata: {name: folder, root: faces}\n")
    (tmp_path / "longer.yaml").write_text("extends: mine.yaml\nepochs: 5\n")
    recipe = load(tmp_path / "longer.yaml", ["optimizer.learning_rate=1e-3"])
    assert (recipe.epochs, recipe.data.root, recipe.optimizer.learning_rate) == (5, "faces", 1e-3)
    (tmp_path / "mine.yaml").write_text("extends: longer.yaml\n")
    with pytest.raises(ValueError, match="extends: expected another recipe, got a circle"):
        load(tmp_path / "longer.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epoch=3"], r"epoch=3: epoch: there is no such key; did you mean epochs\?"),
        (["optimizer.lr=3"], r"optimizer.lr: there is no such key"),
        (["jitter.flop=1"], "jitter: expected keys among flip, shift, .* got flop"),
        (["epochs=many"], "epochs=many: epochs: expected an int, got many"),
        (["epochs=2.5"], "epochs: expected an int, got 2.5"),
        (["epochs="], "epochs: expected an int, got null"),
        (["data.size=[64"], r"data.size=\[64: data.size: expected a value in YAML, got \[64"),
        (["data.size=[64,null]"], r"data.size: expected a list, as in data.size=\[…\], of ints, got \[64, None\]"),
        (["data.size.0=64"], r"data.size: expected a list, as in data.size=\[…\], of ints"),
        (["data.root=${faces}"], "data.root: .* stands for another key of the recipe, and there is no such key"),
        (["data=[folder]"], r"data: expected a key of this part, as in data.name=…, got \['folder'\]"),
        (["log.tensorboard=maybe"], "log.tensorboard: expected true or false, got maybe"),
        (["optimizer.clip=some"], "optimizer.clip: expected a number or null, got some"),
        (["jitter=null"], r"jitter=null: jitter: expected names and values, as in jitter=\{name: value\}, got null"),
        (["jitter=[1]"], r"jitter: expected names and values, as in jitter=\{name: value\}, got \[1\]"),
        (["jitter.turn=null"], "jitter.turn: expected a number, got null"),
        (["jitter={}"], "jitter: expected names and values to change, got none"),
        (["occluder=null"], "occluder: expected a key of this part, as in occluder.share=…, got null"),
        (["epochs"], "override: expected key=value, got 'epochs'"),
        (["epochs=0"], "epochs: expected an int of at least 1, got 0"),
        (["stage=both"], "stage: expected one of 'classify', 'embed', got 'both'"),
        (["loss.name=triplet"], "loss.name: expected one of 'cross_entropy', 'large_margin_cosine', got 'triplet'"),
        (["precision=fp8"], "precision: expected one of 'fp32', 'bf16', 'fp16', got 'fp8'"),
        (["occluder.share=1.5"], r"occluder.share: expected a number in \[0, 1\], got 1.5"),
        (["validation.sets=p.csv"], r"validation.sets: expected a list, as in validation.sets=\[…\]"),
        (["data.size=112"], r"data.size: expected a list, as in data.size=\[…\]"),
        (["drawn=sunglasses"], r"drawn: expected names and values, as in drawn=\{name: value\}"),
        (["occluder=normal"], "occluder: expected a key of this part, as in occluder.share=…"),
        (["network=paper"], "network: expected a key of this part, as in network.name=…"),
        (["occluder.spread=0"], "occluder.spread: expected a number above 0"),
        (["low_resolution.share=-1"], r"low_resolution.share: expected a number in \[0, 1\], got -1"),
        (["low_resolution.factor=0.5"], "low_resolution.factor: expected a number"),
        (["batch.images_each=7"], "batch.size: expected a multiple of batch.images_each = 7, got 256"),
        (["stage=embed", "loss.name=triplet"], "batch.images_each: expected at least 2 images"),
        (
            ["stage=embed", "loss.name=triplet", "batch.images_each=8", "batch.accumulate=2"],
            "batch.accumulate: expected 1",
        ),
        (["loss.memory_size=-1"], "loss.memory_size: expected an int of at least 0"),
        (["loss.memory_size=8"], "loss.memory_size: expected 0 for the stage 'classify'"),
        (["drawn.sunglases=0.1"], "drawn.sunglases: expected band, or a name of an occlusion"),
        (["drawn.hand=1.5"], r"drawn.hand: expected a number in \[0, 1\], got 1.5"),
        (["drawn={hand: 0.5, mask: 0.4}", "occluder.share=0.2"], "drawn: expected shares that add up to at most 1"),
        (["validation.by=people"], "validation.by: other people can't be classified"),
        (["classifier.sharded=true", "classifier.sampling=0"], "classifier.sampling: expected a number above 0"),
        (["classifier.sampling=0.1"], "classifier.sampling: expected 1.0 without classifier.sharded=true, got 0.1"),
        (
            ["classifier.sharded=true", "stage=embed", "loss.name=triplet", "batch.images_each=8"],
            "classifier.sharded: expected false for the stage 'embed'",
        ),
        (["classifier.sharded=true", "precision=fp16"], "precision: expected 'fp32' or 'bf16' with classifier.sharded"),
        (
            ["classifier.sharded=true", "classifier.sampling=0.5", "batch.accumulate=2"],
            "batch.accumulate: expected 1 with classifier.sampling below 1",
        ),
    ],
)
def test_what_is_wrong_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("A", ["data.name=orl", *overrides])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected keys and values, got a list"),
        ("a: [1\n", "not YAML"),
        ("network: {nam: paper}\n", "network.nam: there is no such key; did you mean network.name"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"bad.yaml: .*{message}"):
        load(path)
    with pytest.raises(ValueError, match=r"recipe: expected a YAML file or one of A, A20x20, .* got 'nowhere'"):
        load("nowhere")


def test_the_weights_to_start_from_state_their_network_and_images(tmp_path: Path) -> None:
    alignment = {"template": "arcface-112", "size": [112, 96]}
    how = Preprocessing((112, 96), "BGR", (0.1, 0.2, 0.3), 0.5, alignment)
    arguments = {"width": 0.125, "batch_norm": True}
    spec = {"name": "paper", "classes": None, "arguments": arguments}
    network = build("paper", None, channels=3, size=how.size, **arguments)
    start = Trained(network, how, spec).save(tmp_path / "w.safetensors")
    given = ["data.name=orl", f"start={start}"]
    found = load("C", given)
    assert found.network.arguments == arguments
    data = found.data
    assert (data.template, data.size, data.color) == ("arcface-112", [112, 96], "BGR")
    assert (data.mean, data.std) == ([0.1, 0.2, 0.3], 0.5)
    # What the user states comes first.
    data = load("C", [*given, "data.template=null", "data.std=0.25"]).data
    assert (data.template, data.size, data.std, data.mean) == (None, [112, 96], 0.25, [0.1, 0.2, 0.3])
    (tmp_path / "mine.yaml").write_text("extends: C\ndata: {color: RGB}\n")
    data = load(tmp_path / "mine.yaml", given).data
    assert (data.template, data.color) == ("arcface-112", "RGB")
    data = load("C", [*given, "data.preset=facenet"]).data
    assert (data.size, data.color, data.mean) == ([160, 160], "RGB", 127.5 / 255)
    # Weights of faces that were aligned already say so.
    start = Trained(network, replace(how, alignment=None), spec).save(tmp_path / "aligned.safetensors")
    assert load("C", ["data.name=orl", f"start={start}"]).data.template is None


def test_a_start_that_no_file_system_can_name_is_no_file() -> None:
    assert load("A20x40", ["data.name=orl", f"start={'a' * 300}.safetensors", "occluder.locations=p.npz"]).start
