"""Verification sets: scored while training as ``occfast evaluate`` scores them, and checked before."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from occfast import DataError
from occfast.data import Aligned, Alignment, Folder, VerificationBin, open_dataset, read_pairs, write_verification_bin
from occfast.data.convert import convert_pairs
from occfast.data.images import encode_png
from occfast.evaluate import embed, listed_pairs, packed_pairs
from occfast.models import features
from occfast.train import load_network, train
from occfast.train.log import read_rows
from occfast.train.recipe import load, to_yaml
from tests.data.pictures import write_faces
from tests.processes import torchrun
from tests.train.test_processes import PLAIN, close
from tests.train.test_resume import KillAt, Killed
from tests.train.tiny import Net, Patterns, recipe


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def packed(path: Path, noise: float = 0.9, pairs: int = 48) -> Path:
    """A .bin of faces of other noise: every other pair is of one person."""
    faces = Patterns(each=20, noise=noise)
    images = [faces.images[(20 * p % 100) + 10 + (p // 6)] for p in range(pairs)]
    others = [faces.images[(20 * (p + p % 2) % 100) + (p // 6)] for p in range(pairs)]
    both = [encode_png(image) for pair in zip(images, others, strict=True) for image in pair]
    return write_verification_bin(path, both, [p % 2 == 0 for p in range(pairs)])


def listed(folder: Path) -> Path:
    """A list of pairs of six others, and the folder of their images."""
    faces = Patterns(each=6, noise=0.8)
    for k in range(len(faces)):
        path = folder / "images" / f"other {k // 6}" / f"{k % 6}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(faces.images[k]))
    with (folder / "pairs.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["image1", "image2", "same"])
        for k in range(30):
            writer.writerow(
                [f"other {k % 5}/{k // 5}.png", f"other {(k + k % 2) % 5}/{(k // 5 + 1) % 6}.png", 1 - k % 2]
            )
    return folder / "pairs.csv"


def run_of(folder: Path, *overrides: str, stage: str = "classify") -> object:
    sets = f"validation.sets=[{packed(folder / 'some.bin')},{{set: {listed(folder)}, images: {folder / 'images'}}}]"
    return recipe(stage, sets, *overrides)


def test_values_are_those_of_evaluate(tmp_path: Path) -> None:
    result = train(run_of(tmp_path), tmp_path / "run", progress=False)
    rows = read_rows(tmp_path / "run" / "validations.csv")
    names = ["step", "epoch", "accuracy", "some/accuracy", "some/tar_at_0.1", "pairs/accuracy", "pairs/tar_at_0.1"]
    assert list(rows[0]) == names and len(rows) == 3  # FARs that the pairs support: 24 and 15 of two people
    assert result.metric == "some/accuracy" and result.pairs == 48  # the first set decides, if nothing else does
    assert result.best == max(row["some/accuracy"] for row in rows)
    last = load_network(tmp_path / "run" / "last.safetensors", trust=True)
    assert last.about["validation"] == {name: rows[-1][name] for name in names[2:]}
    for faces, protocol in (
        (bin := VerificationBin(tmp_path / "some.bin", gray=True), packed_pairs(bin)),
        (folder := Folder(tmp_path / "images", gray=True), listed_pairs(folder, tmp_path / "pairs.csv", folds=10)),
    ):
        found = embed(features(last.network), faces, last.preprocessing, progress=False).features
        expected = protocol.evaluate(found, found, resamples=0)
        assert 0.5 < expected.accuracy < 1 and rows[-1][f"{protocol.name}/accuracy"] == expected.accuracy
        assert rows[-1][f"{protocol.name}/tar_at_0.1"] == expected.tar_at_far[0.1].tar


def test_any_value_can_decide(tmp_path: Path) -> None:
    for metric, column in (("pairs", "pairs/accuracy"), ("some/tar_at_0.1", "some/tar_at_0.1"), ("accuracy",) * 2):
        result = train(
            run_of(tmp_path, f"validation.metric={metric}"), tmp_path / "run", overwrite=True, progress=False
        )
        rows = read_rows(tmp_path / "run" / "validations.csv")
        best = max(row[column] for row in rows)
        first = next(row["epoch"] for row in rows if row[column] == best)
        assert (result.metric, result.best, result.best_epoch) == (column, best, first)
        assert load_network(result.weights, trust=True).about["epoch"] == first
    with pytest.raises(ValueError, match=r"validation.metric: expected one of some/accuracy, .*, got 'some/tar_at_1'"):
        train(run_of(tmp_path, "validation.metric=some/tar_at_1"), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_sets_alone_validate(tmp_path: Path) -> None:
    run = run_of(tmp_path, "validation.share=0", "validation.patience=1", "validation.min_gain=1")
    result = train(run, tmp_path / "run", progress=False)
    assert (
        result.stopped == "early" and result.metric == "some/accuracy" and result.weights.endswith("best.safetensors")
    )
    assert list(read_rows(tmp_path / "run" / "validations.csv")[0])[2] == "some/accuracy"
    with pytest.raises(ValueError, match=r"validation.share: expected more than 0 for validation.metric=accuracy"):
        run_of(tmp_path, "validation.share=0", "validation.metric=accuracy")


def test_tensorboard_and_the_live_line_have_them(tmp_path: Path) -> None:
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(run_of(tmp_path, "log.tensorboard=true", "epochs=1"), tmp_path / "run", progress=False)
    board = event.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    value = read_rows(tmp_path / "run" / "validations.csv")[0]["some/accuracy"]
    assert board.Scalars("validation/some/accuracy")[0].value == pytest.approx(value)


def test_a_resumed_run_has_the_same_bits_and_refuses_other_sets(tmp_path: Path) -> None:
    run = run_of(tmp_path, "log.checkpoint=2")
    train(run, tmp_path / "whole", progress=False)
    with pytest.raises(Killed):
        train(run, tmp_path / "run", progress=KillAt(9))
    before = (tmp_path / "some.bin").read_bytes()
    packed(tmp_path / "some.bin", noise=0.91)
    with pytest.raises(
        ValueError, match="begun with: the pairs or images of the verification set some differ; if that"
    ):
        train(run, tmp_path / "run", resume=True, progress=False)
    other = replace(run, validation=replace(run.validation, sets=run.validation.sets[:1]))
    with pytest.raises(
        ValueError, match=r"validation.names of sets: .* used \['some', 'pairs'\], which can't be changed"
    ):
        train(other, tmp_path / "run", resume=True, progress=False)
    moved = tmp_path / "moved" / "some.bin"  # where it lies does not matter
    moved.parent.mkdir()
    moved.write_bytes(before)
    run.validation.sets[0] = str(moved)
    train(run, tmp_path / "run", resume=True, progress=False)
    for name in ("best.safetensors", "last.safetensors", "validations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_processes_score_alike(tmp_path: Path) -> None:
    run = run_of(tmp_path, *PLAIN, "optimizer.name=sgd")
    train(run, tmp_path / "one", progress=False)
    (tmp_path / "recipe.yaml").write_text(to_yaml(run))
    torchrun("-m", "occfast", "train", tmp_path / "recipe.yaml", "--trust", "--output", tmp_path / "two")
    close(tmp_path / "two", tmp_path / "one")
    mine, theirs = (read_rows(tmp_path / name / "validations.csv")[-1] for name in ("two", "one"))
    assert mine == pytest.approx(theirs, abs=0.04)  # a pair at the threshold


def test_a_network_of_zeros_is_no_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, "network.name=tests.train.test_sets:Dead", "epochs=1", "validation.metric=some")
    result = train(run, tmp_path / "run", progress=False)
    assert result.best == pytest.approx(0.5, abs=0.2)


class Dead(Net):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * 0


def test_sets_are_aligned_as_the_training_data_and_that_is_kept_with_the_weights(tmp_path: Path) -> None:
    """One preprocessing: of training, of every set, and in the weights."""
    write_faces(tmp_path / "faces", [f"{person}/{k}.png" for person in "ABCDEF" for k in range(8)], landmarks=True)
    others = [f"{person}/{k}.png" for person in "PQRS" for k in range(8)]
    write_faces(tmp_path / "others", others, landmarks=True)
    lines = [f"P/{k}.png,P/{(k + 1) % 8}.png,1\nP/{k}.png,Q/{k}.png,0" for k in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    ready = Aligned(open_dataset(tmp_path / "others"), "paper-100", size=(20, 16), gray=True)
    images = [encode_png(ready[k].image) for k in range(32)]
    write_verification_bin(tmp_path / "ready.bin", images, [True] * 8 + [False] * 8)
    write_verification_bin(
        tmp_path / "small.bin", [encode_png(torch.zeros(1, 9, 8, dtype=torch.uint8))] * 32, [True, False] * 8
    )
    common = ["data.name=folder", f"data.root={tmp_path / 'faces'}", "data.template=paper-100", "data.size=[20,16]"]
    pairs = f"{{set: {tmp_path / 'pairs.csv'}, images: {tmp_path / 'others'}}}"
    sets = f"validation.sets=[{pairs},{{set: {tmp_path / 'ready.bin'}, aligned: true}},{{set: {tmp_path / 'small.bin'}, aligned: true}}]"
    run = recipe("classify", *common, sets, "epochs=1")
    result = train(run, tmp_path / "run", progress=False)
    trained = load_network(result.weights, trust=True)
    assert (
        Alignment.from_dict(trained.preprocessing.alignment) == ready.alignment
        and trained.preprocessing.color == "gray"
    )
    protocol = listed_pairs(ready, tmp_path / "pairs.csv", folds=10)
    found = embed(features(trained.network), ready, trained.preprocessing, progress=False).features
    row = read_rows(tmp_path / "run" / "validations.csv")[0]
    assert row["pairs/accuracy"] == protocol.evaluate(found, found, resamples=0).accuracy
    for name in ("ready", "small"):
        run.validation.sets = [str(tmp_path / f"{name}.bin")]
        with pytest.raises(
            ValueError, match=rf"validation.sets: {name}: no landmarks to align by; .* aligned to paper-100"
        ):
            train(run, tmp_path / "other", progress=False)
    (tmp_path / "others" / "landmarks.csv").unlink()
    run.validation.sets = [{"set": str(tmp_path / "pairs.csv"), "images": str(tmp_path / "others")}]
    with pytest.raises(ValueError, match=r"validation.sets: pairs: no landmarks to align by"):
        train(run, tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_images_of_another_size_are_refused_or_resized_as_the_training_data(tmp_path: Path) -> None:
    image = encode_png(torch.zeros(1, 9, 8, dtype=torch.uint8))
    path = write_verification_bin(tmp_path / "small.bin", [image] * 40, [True, False] * 10)
    with pytest.raises(
        ValueError, match=r"validation.sets: small: expected images of 20x16, as those to train on, got 9x8"
    ):
        train(recipe("classify", f"validation.sets=[{path}]"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    run = recipe("classify", f"validation.sets=[{path}]", "data.size=[20,16]", "epochs=1")
    assert train(run, tmp_path / "run", progress=False).metric == "small/accuracy"


def test_people_who_are_trained_on_are_named(tmp_path: Path) -> None:
    listed(tmp_path)
    (tmp_path / "images" / "other 0").rename(tmp_path / "images" / "Person-4")
    text = (tmp_path / "pairs.csv").read_text().replace("other 0", "Person-4")
    (tmp_path / "pairs.csv").write_text(text)
    run = recipe(
        "classify", f"validation.sets=[{{set: {tmp_path / 'pairs.csv'}, images: {tmp_path / 'images'}}}]", "epochs=1"
    )
    with pytest.warns(
        UserWarning, match=r"validation.sets: pairs: 1 of 5 people are trained on as well, .*: Person-4; leave"
    ):
        train(run, tmp_path / "run", progress=False)


def test_missing_and_broken_sets_end_before_anything_is_written(tmp_path: Path) -> None:
    broken = tmp_path / "broken.bin"
    broken.write_bytes(b"broken")
    (tmp_path / "none.csv").write_text("a.png,b.png,1\n")
    (tmp_path / "sub").mkdir()
    one_kind = write_verification_bin(tmp_path / "one.bin", [encode_png(Patterns()[0].image)] * 20, [True] * 10)
    few = write_verification_bin(tmp_path / "few.bin", [encode_png(Patterns()[0].image)] * 4, [True, False])
    for entry, kind, message in (
        (str(tmp_path / "gone.bin"), DataError, "gone: .*gone.bin: no such file"),
        (str(broken), DataError, "broken: .*broken.bin"),
        (str(tmp_path / "none.csv"), DataError, "none: "),
        (str(one_kind), ValueError, "one: same: expected"),
        (str(few), ValueError, "few: folds: expected a number from 2 to 2, the number of pairs, got 10"),
        ("orl", ValueError, r"orl: expected lfw, a .bin or a list of pairs .*, got a data set of kind ORL"),
    ):
        with pytest.raises(kind, match=f"validation.sets: {message}"):
            train(recipe("classify", f"validation.sets=[{entry}]"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_lfw_is_view_2(tmp_path: Path) -> None:
    names = [f"{p}/{p}_{k:04d}.png" for p in ("Ada", "Bea", "Cy", "Di") for k in (1, 2, 3)]
    faces = Patterns(people=4, each=3)
    for k, name in enumerate(names):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encode_png(faces.images[k]))
    pairs = ["2\t2", "Ada\t1\t2", "Bea\t1\t2", "Ada\t1\tBea\t3", "Ada\t2\tBea\t1"]
    pairs += ["Cy\t1\t2", "Di\t1\t3", "Cy\t1\tDi\t3", "Cy\t2\tDi\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs) + "\n")
    result = train(
        recipe("classify", f"validation.sets=['lfw:{tmp_path}']", "epochs=1"), tmp_path / "run", progress=False
    )
    assert result.metric == "lfw/accuracy" and result.pairs == 8


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("[3]", TypeError, r"validation.sets\[0\]: expected lfw, a path or {set: …}, got 3"),
        ("[a.bin, {st: b.bin}]", ValueError, r"validation.sets\[1\]: expected keys among set, name, .*, got st"),
        ("[{name: a}]", TypeError, r"validation.sets\[0\].set: expected a text, got None"),
        ("[{set: a.bin, folds: 1}]", ValueError, r"validation.sets\[0\].folds"),
        ("[{set: a.bin, aligned: 3}]", TypeError, r"validation.sets\[0\].aligned"),
        ("[{set: a.bin, images: b}]", ValueError, r"validation.sets\[0\].images: only valid for a list of pairs"),
        (
            "[x/a.bin, y/a.bin]",
            ValueError,
            r"validation.sets\[1\].name: a is the name of another set; choose another one",
        ),
        ("[accuracy.bin]", ValueError, r"validation.sets\[0\].name: expected letters, .* got 'accuracy'"),
        ("['a b.bin']", ValueError, r"validation.sets\[0\].name: expected letters, .* got 'a b'"),
    ],
)
def test_bad_entries_are_named(override: str, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        load("A", ["data.name=orl", f"validation.sets={override}"])


def test_a_preset_chooses_the_preprocessing_once(tmp_path: Path) -> None:
    """Training, a set of photographs, a .bin that records its alignment, and the weights: all by the preset."""
    write_faces(tmp_path / "faces", [f"{person}/{k}.png" for person in "ABCDEF" for k in range(8)], landmarks=True)
    write_faces(tmp_path / "others", [f"{person}/{k}.png" for person in "PQRS" for k in range(8)], landmarks=True)
    lines = [f"P/{k}.png,P/{(k + 1) % 8}.png,1\nP/{k}.png,Q/{k}.png,0" for k in range(8)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    aligned = Aligned(open_dataset(tmp_path / "others"), "arcface-112", gray=False)
    pairs = read_pairs(tmp_path / "pairs.csv").resolve(aligned)
    packed = convert_pairs(aligned, pairs, tmp_path / "packed.bin", progress=False)
    data = [
        "data.name=folder",
        f"data.root={tmp_path / 'faces'}",
        "data.preset=adaface",
        "network.name=tests.train.test_sets:Small",
    ]
    sets = f"validation.sets=[{{set: {tmp_path / 'pairs.csv'}, images: {tmp_path / 'others'}}},{packed}]"
    run = load("A", [*data, "batch.size=8", "epochs=1", "log.tensorboard=false", sets])
    assert (run.data.color, run.data.template, run.data.size) == ("BGR", "arcface-112", [112, 112])
    result = train(run, tmp_path / "run", progress=False)
    how = load_network(result.weights, trust=True).preprocessing
    assert (how.color, how.mean, how.std) == ("BGR", 0.5, 0.5)
    assert Alignment.from_dict(how.alignment) == aligned.alignment
    row = read_rows(tmp_path / "run" / "validations.csv")[0]
    assert row["pairs/accuracy"] == row["packed/accuracy"]
    assert load(tmp_path / "run" / "recipe.yaml", trust=True) == run
    with pytest.raises(ValueError, match=r"data.color: expected BGR, as data.preset=adaface states, got 'gray'; leave"):
        load("A", [*data, "data.color=gray"])
    with pytest.raises(ValueError, match=r"data.preset: .*'none'"):
        load("A", [*data, "data.preset=none"])


class Small(torch.nn.Sequential):
    classifier_name = "2"

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16 * channels, classes))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](x))
