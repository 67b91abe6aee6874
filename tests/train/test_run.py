"""Training runs: learning, logs, splits, values that are not finite, and augmentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import occfast
from occfast import DataError, LargeMarginCosine, LocationDistribution
from occfast.data import FaceDataset, Subset
from occfast.evaluate import embed
from occfast.train import load_network, load_recipe, train
from occfast.train.augment import Augment, locations, occluder_of
from occfast.train.batches import InMemory, PKBatches, Shuffled
from occfast.train.engine import Engine, NotFinite, OptimizerConfig, accelerator
from occfast.train.faces import split
from occfast.train.log import read_rows
from occfast.train.objective import Classify
from occfast.train.recipe import OccluderPart, ValidationPart
from occfast.train.resolution import LowResolution
from tests.train.tiny import SIZE, Colors, Net, Patterns, recipe


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def still(*overrides: str) -> list[str]:
    """No augmentation, no dropout."""
    return [
        "occluder.share=0",
        "jitter={flip: 0, shift: 0, scale: 0, turn: 0, gain: 0, offset: 0}",
        "network.arguments={dropout: 0.0}",
        *overrides,
    ]


@pytest.mark.parametrize("loss", ["cross_entropy", "large_margin_cosine"])
def test_a_tiny_network_overfits_twenty_images(loss: str, tmp_path: Path) -> None:
    faces = Patterns(people=4, each=5, noise=0.5)
    run = recipe(
        "classify", *still("validation.share=0", "batch.size=20", "epochs=60", f"loss.name={loss}", "loss.scale=16")
    )
    result = train(run, tmp_path, faces=faces, progress=False)
    logged = read_rows(tmp_path / "steps.csv")
    assert logged[0]["accuracy"] < 0.6 and logged[-1]["accuracy"] == 1
    assert logged[-1]["loss"] < 0.1 * logged[0]["loss"]
    trained = load_network(result.weights, trust=True)
    assert result.weights.endswith("last.safetensors") and result.best is None
    assert torch.equal(trained.classifier()(trained.preprocessing(faces.images)).argmax(1), faces.labels)
    assert trained.people == faces.people
    assert isinstance(trained.head, LargeMarginCosine) == (loss == "large_margin_cosine")


@pytest.mark.parametrize("color", ["gray", "RGB"])
def test_a_network_that_views_its_feature_maps_trains(color: str, tmp_path: Path) -> None:
    """Whatever the images' and the weights' memory format, which ``view`` depends on."""
    given = ["network.name=tests.train.tiny:Flat", "data.name=tests.train.tiny:Colors", f"data.color={color}"]
    if color == "gray":
        given.pop(1)
    done = train(recipe("classify", *given), tmp_path, progress=False)
    trained = load_network(done.weights, trust=True)
    faces = Patterns() if color == "gray" else Colors()
    found = embed(trained.network, faces, trained.preprocessing, flip="none", progress=False).features
    assert (found.argmax(1) == faces.labels).double().mean() > 0.9
    images = trained.preprocessing(faces.images[:4])
    occluded = occfast.occlusion_map(trained.network, images, faces.labels[:4], (6, 6), stride=4)
    assert occluded.values.shape == (5, 4)


@pytest.mark.parametrize("loss", ["triplet", "batch_triplet"])
def test_triplets_part_people(loss: str, tmp_path: Path) -> None:
    run = recipe("embed", *still(f"loss.name={loss}", "epochs=15", "loss.mining=violating", "batch.size=18"))
    train(run, tmp_path, faces=Patterns(noise=0.4, each=16), progress=False)
    logged = read_rows(tmp_path / "steps.csv")
    assert logged[-1]["triplets/pair_decidability"] > 2 * logged[0]["triplets/pair_decidability"]
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    validated = read_rows(tmp_path / "validations.csv")
    assert len(scores) == len(validated) == 15
    assert [line["decidability"] for line in scores] == [row["decidability"] for row in validated]
    assert len(scores[0]["edges"]) == len(scores[0]["positive"]) + 1
    assert load_network(tmp_path / "best.safetensors", trust=True).spec["classes"] is None


def test_logs_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(recipe("embed", "log.tensorboard=true"), tmp_path, progress=False)
    logged = read_rows(tmp_path / "steps.csv")
    assert [row["step"] for row in logged] == [1, 2, 4, 6, 8, 10, 12]
    assert all(row["images_per_s"] > 0 for row in logged)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [round(event.value, 5) for event in board.Scalars("train/loss")] == [round(r["loss"], 5) for r in logged]
    assert "validation/verification" in board.Tags()["scalars"]
    assert {"validation/distance of same person", "batch/distance of different person"} <= set(
        board.Tags()["histograms"]
    )


def test_the_best_is_kept_apart_and_a_stagnating_run_stops(tmp_path: Path) -> None:
    # A rate that destroys what was learnt: validation declines.
    run = recipe("classify", *still("epochs=40", "validation.patience=3", "optimizer.schedule=constant"))
    result = train(run, tmp_path, faces=Patterns(noise=0.3), progress=False)
    validated = [row["accuracy"] for row in read_rows(tmp_path / "validations.csv")]
    assert result.stopped == "early" and result.epochs == len(validated) < 40
    best = max(validated)
    assert result.best == best and result.best_epoch == validated.index(best) + 1 == len(validated) - 3
    assert result.weights.endswith("best.safetensors")
    assert load_network(result.weights, trust=True).about["epoch"] == result.best_epoch
    assert load_network(tmp_path / "last.safetensors", trust=True).about["epoch"] == result.epochs
    # Resuming a run that stopped early changes nothing.
    assert train(run, tmp_path, resume=True, faces=Patterns(noise=0.3), progress=False).stopped == "early"
    assert [row["accuracy"] for row in read_rows(tmp_path / "validations.csv")] == validated


def test_validation_is_the_accuracy_on_the_images_kept_out(tmp_path: Path) -> None:
    faces, run = Patterns(noise=0.5), recipe("classify", "epochs=4")
    result = train(run, tmp_path, faces=faces, progress=False)
    rest, held = split(faces, run.validation, 1, run.seed)
    trained = load_network(result.weights, trust=True)
    answers = trained.classifier()(trained.preprocessing(faces.images[held])).argmax(1)
    assert result.best == pytest.approx(float((answers == faces.labels[held]).double().mean()))
    assert trained.about["validation"] == {"accuracy": result.best}
    assert len(rest) == 48 and len(held) == 12 and not set(rest.tolist()) & set(held.tolist())


def test_images_too_small_for_the_network_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = load_recipe("A", ["data.name=orl", "data.template=null", "data.size=[20,16]", "batch.size=6"])
    with pytest.raises(ValueError, match=r"data.size: the network can't take images \[1, 1, 20, 16\] \(.*too small"):
        train(run, tmp_path / "run", faces=Patterns(), progress=False)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_starting_from_weights(tmp_path: Path) -> None:
    margin = "loss.name=large_margin_cosine"
    first = train(recipe("classify", margin), tmp_path / "first", progress=False)
    start = f"start={first.weights}"
    on = train(recipe("classify", margin, start, "epochs=1"), tmp_path / "on", progress=False)
    # The network and its head are those that the first run had at its best.
    assert read_rows(tmp_path / "on" / "validations.csv")[0] == {"step": 0, "epoch": 0, "accuracy": first.best}
    with pytest.raises(ValueError, match=r"best-head.safetensors: don't fit the network: weight has shape \[6, 24\]"):
        train(recipe("classify", margin, start), tmp_path / "five", faces=Patterns(people=5), progress=False)
    fresh = recipe("classify", margin, start, "fresh_classifier=true")
    assert train(fresh, tmp_path / "five", faces=Patterns(people=5), progress=False).steps == 9
    # A run continues after its initial weights are gone.
    Path(first.weights).unlink()
    stated = str(tmp_path / "on" / "recipe.yaml")
    with pytest.raises(ValueError, match=rf"data.size: .*gone, continue with the recipe {stated}"):
        train(recipe("classify", margin, start, "epochs=1"), tmp_path / "on", resume=True, progress=False)
    assert train(load_recipe(stated, trust=True), tmp_path / "on", resume=True, progress=False).best == on.best
    embedded = train(recipe("embed", f"start={on.weights}"), tmp_path / "embed", progress=False)
    assert load_network(embedded.weights, trust=True).head is None


def split_names(faces: FaceDataset, part: ValidationPart, seed: int = 0) -> tuple[set[str], set[str]]:
    rest, held = split(faces, part, 1, seed)
    assert rest.tolist() == sorted(rest.tolist()) and held.tolist() == sorted(held.tolist())
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(faces)))
    return {faces.names[k] for k in rest.tolist()}, {faces.names[k] for k in held.tolist()}


def test_splits() -> None:
    faces = Patterns(people=6, each=5)
    uneven = Subset(faces, [0, 1, 2, 3, 4, 5, 10, 11, 15, 16, 17, 20, 25])
    rest, held = split(uneven, ValidationPart(share=0.9), 1, 0)
    assert set(uneven.labels[rest].tolist()) == set(range(6))  # everybody stays in training
    assert len(rest) + len(held) == len(uneven) and len(held) >= 5
    rest, held = split(uneven, ValidationPart(share=0), 2, 0)
    assert len(held) == 0 and set(uneven.labels[rest].tolist()) == {0, 2, 3}
    rest, held = split(faces, ValidationPart(share=0.3, by="people"), 1, 0)
    assert len(held) % 5 == 0 and not set(faces.labels[rest].tolist()) & set(faces.labels[held].tolist())
    for by in ("images", "people"):
        part = ValidationPart(share=0.2, by=by)
        assert split_names(faces, part, 4) == split_names(faces, part, 4) != split_names(faces, part, 5)
        assert len(split_names(faces, ValidationPart(share=1e-9, by=by))[1]) == (1 if by == "images" else 10)
    with pytest.raises(ValueError, match=r"data.min_images: expected at least two people with 9 images, got 0"):
        split(faces, ValidationPart(), 9, 0)
    with pytest.raises(ValueError, match=r"validation.share: expected at least two people to stay in training"):
        split(faces, ValidationPart(share=1.0, by="people"), 1, 0)


@pytest.mark.parametrize("by", ["images", "people"])
def test_the_split_is_a_property_of_each_image(by: str) -> None:
    faces, part = Patterns(people=40, each=10), ValidationPart(share=0.3, by=by)
    rest, held = split_names(faces, part)
    assert 0.1 < len(held) / 400 < 0.5
    for left_out in (range(1), range(10, 30), range(5, 400, 7)):
        some = Subset(faces, [k for k in range(400) if k not in left_out])
        some_rest, some_held = split_names(some, part)
        assert some_rest == rest & set(some.names) and some_held == held & set(some.names)
    shuffled = Subset(faces, torch.randperm(400, generator=torch.Generator().manual_seed(1)).tolist())
    assert split_names(shuffled, part) == (rest, held)


# -- NaN -------------------------------------------------------------------------------------------------


class Poisoned(Net):
    """NaN for images of a bright first pixel: in the loss, or in the gradient alone."""

    gradient = False

    def features(self, x: Tensor) -> Tensor:
        bad = (x[:, :1, 0, 0] > 0.99).float()
        out = super().features(x)
        if self.gradient:
            # The derivative of the root at 0 is infinite, its product with 0 is NaN; the value is 0.
            return out + ((bad * self.body[0].bias.sum() * 0) ** 2).sqrt()
        return out / (1 - bad)


@pytest.mark.parametrize("gradient", [False, True])
def test_nan_is_found_within_its_step_with_the_images(gradient: bool, tmp_path: Path) -> None:
    faces = Patterns()
    faces.images[:, 0, 0, 0] = 0
    faces.images[33, 0, 0, 0] = 255
    model = Poisoned(6, 1)
    model.gradient = gradient
    plan = Shuffled(60, 6)
    names = faces.names
    source = InMemory(faces.images.float() / 127.5 - 1)
    engine = Engine(
        Classify(model), plan, source, faces.labels, OptimizerConfig(), 2, accelerator("cpu"), names=names, seed=1
    )
    order, _ = plan.epoch(0, torch.Generator().manual_seed(1))
    step = int((order == 33).any(1).nonzero()[0]) if not gradient else 0
    with pytest.raises(NotFinite, match=f"the {'gradient' if gradient else 'loss'} is no longer finite") as found:
        for done in engine.steps():
            assert done.number < step
    assert found.value.step == step and found.value.names == [names[k] for k in order[step].tolist()]
    assert gradient or "person 3/3.png" in found.value.names
    assert all(bool(p.isfinite().all()) for p in model.parameters())  # the weights were not touched


def test_nan_ends_a_run_with_a_file_of_names(tmp_path: Path) -> None:
    run = recipe("classify", "optimizer.name=sgd", "optimizer.learning_rate=1e30", "optimizer.warmup=0")
    with pytest.raises(NotFinite, match=r"learning_rate: the (loss|gradient) is no longer finite in epoch 1, step 1"):
        train(run, tmp_path, progress=False)
    told = (tmp_path / "not-finite-0.txt").read_text().splitlines()
    assert told[0] == "step 1" and len(told) == 13 and set(told[1:]) <= set(Patterns().names)


# -- the engine --------------------------------------------------------------------------------------------


def weights_after(accumulate: int, clip: float | None = None, name: str = "sgd") -> tuple[list[Tensor], list[float]]:
    torch.manual_seed(0)
    faces, model = Patterns(), Net(6, 1, norm=False, dropout=0.0)
    rule = OptimizerConfig(name, 0.05, clip=clip)
    engine = Engine(
        Classify(model),
        Shuffled(60, 12),
        InMemory(faces.images.float() / 255),
        faces.labels,
        rule,
        2,
        accelerator("cpu"),
        accumulate=accumulate,
    )
    norms = [float(step.gradient_norm) for step in engine.steps()]
    return [p.detach().clone() for p in model.parameters()], norms


def test_accumulated_parts_are_the_batch() -> None:
    for a, b in zip(weights_after(1)[0], weights_after(4)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_clipping_limits_a_step() -> None:
    _, norms = weights_after(1)
    limit = sorted(norms)[len(norms) // 2]
    clipped, seen = weights_after(1, clip=limit)
    assert seen[0] == norms[0] and not torch.equal(clipped[0], weights_after(1)[0][0])


def test_a_batch_must_divide() -> None:
    faces = Patterns()
    with pytest.raises(ValueError, match=r"batch.size: expected a multiple of 5 = 1 processes × 5 parts .* got 12"):
        Engine(
            Classify(Net(6, 1)),
            Shuffled(60, 12),
            InMemory(faces.images),
            faces.labels,
            OptimizerConfig(),
            1,
            accelerator("cpu"),
            accumulate=5,
        )


def test_the_rate_rises_and_falls() -> None:
    rule = OptimizerConfig(learning_rate=1.0, warmup=0.1)
    rates = [rule.factor(step, 100) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1 and rates[-1] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert OptimizerConfig(schedule="constant", warmup=0.1).factor(99, 100) == 1
    assert rule.factor(120, 100) == 0  # an epoch that is longer than the first


def test_sample_ids_never_repeat() -> None:
    faces = Patterns()
    single = torch.arange(30)  # everybody once: hands are made of repeats
    for plan in (Shuffled(60, 12), PKBatches(faces.labels, 3, 4, seed=1), PKBatches(single, 5, 8, seed=1)):
        random = torch.Generator().manual_seed(0)
        ids = torch.cat([plan.epoch(number, random)[1].flatten() for number in range(5)])
        assert len(ids.unique()) == len(ids)
    indices, _ = PKBatches(faces.labels, 3, 4, seed=1).epoch(2, random)
    assert all(len(faces.labels[hand].unique()) == 1 for batch in indices for hand in batch.split(4))


def test_bfloat16_trains_and_half_precision_is_refused_on_a_cpu(tmp_path: Path) -> None:
    result = train(recipe("classify", "precision=bf16", "epochs=6"), tmp_path / "bf16", progress=False)
    assert result.best is not None and result.best > 0.3
    assert load_network(result.weights, trust=True).network.body[0].weight.dtype == torch.float32
    with pytest.raises(ValueError, match="precision: expected 'fp32' or 'bf16' on a CPU, got 'fp16'"):
        train(recipe("classify", "precision=fp16", "device=cpu"), tmp_path / "fp16", progress=False)


# -- augmentation ------------------------------------------------------------------------------------------


def test_occluders_of_a_recipe(tmp_path: Path) -> None:
    faces = Patterns()
    occluder = occluder_of(OccluderPart(share=0.5, size=[6, 8]), SIZE, seed=1)
    assert occluder is not None and occluder_of(OccluderPart(share=0.0), SIZE, 1) is None
    wide = occluder_of(OccluderPart(share=1.0, size=[6, 8], locations="normal", spread=0.5), SIZE, seed=1)
    assert wide is not None and isinstance(wide.locations, LocationDistribution)
    assert torch.equal(wide.locations.probabilities, LocationDistribution.normal(SIZE, 0.5).probabilities)
    _, info = occluder(faces.images.float() / 255, torch.arange(60), return_info=True)
    covered = info.boxes[:, 2] > 0
    assert 15 < int(covered.sum()) < 45
    p = LocationDistribution.uniform(SIZE)
    p.save(tmp_path / "p.npz")
    assert locations(tmp_path / "p.npz", None).image_size == SIZE
    with pytest.raises(ValueError, match=r"occluder.temperature: .* is a distribution already"):
        locations(tmp_path / "p.npz", 0.4)
    with pytest.raises(ValueError, match=r"occluder.locations: .* is for images of \(20, 16\), not \(100, 100\)"):
        occluder_of(OccluderPart(share=1.0, locations=str(tmp_path / "p.npz")), (100, 100), 0)
    with pytest.raises(DataError, match=r"occluder.locations: there is no file nowhere.npz"):
        locations("nowhere.npz", 0.4)


def test_maps_become_placements(tmp_path: Path) -> None:
    from occfast import occlusion_map

    faces = Patterns()
    model = Net(6, 1).eval()
    m = occlusion_map(
        model,
        faces.images[:6].float() / 255,
        faces.labels[:6],
        occluder=(6, 6),
        stride=4,
        progress=False,
        skip_misclassified=False,
    )
    m.save(tmp_path / "map.npz")
    placed = locations(tmp_path / "map.npz", 0.3)
    assert torch.equal(placed.probabilities, m.distribution(0.3).probabilities) and placed.image_size == SIZE
    with pytest.raises(ValueError, match=r"occluder.temperature: expected T of Eq. 4 for a map"):
        locations(tmp_path / "map.npz", None, (6, 6))
    assert torch.equal(
        locations(tmp_path / "map.npz", None, (20, 40)).probabilities,
        locations(tmp_path / "map.npz", 0.4).probabilities,
    )


def test_augmentation_does_what_its_parts_do() -> None:
    from occfast.models import Preprocessing
    from occfast.train import Jitter

    # More images than a CPU changes at a time.
    faces, ids = Patterns(), torch.arange(20)
    p, occluder = Preprocessing(SIZE, "gray", 0.5, 0.25), occluder_of(OccluderPart(share=1.0, size=[6, 6]), SIZE, 1)
    uniform = torch.rand(20, 7)
    augment = Augment(p, Jitter(), occluder)
    assert augment.draws == 7 and Augment(p).draws == 0
    assert Augment(p, Jitter(), low_resolution=LowResolution(0.5)).draws == 8
    assert occluder is not None
    expected = (occluder(Jitter()(faces.images[:20].float() / 255, uniform), ids) - 0.5) / 0.25
    assert torch.equal(augment(faces.images[:20], ids, uniform), expected)
    assert torch.equal(Augment(p)(faces.images[:20], ids, uniform[:, :0]), p(faces.images[:20]))
    with pytest.raises(ValueError, match=r"images: expected \[N, 1, 20, 16\], got \[20, 1, 20, 15\]"):
        augment(faces.images[:20, :, :, :15], ids, uniform)


def test_unknown_data_and_networks(tmp_path: Path) -> None:
    for change, message in (
        (
            "data.name=nowhere",
            "data.name: expected one of orl, lfw, celeba, .*folder, .*recordio, .* or module:function",
        ),
        ("data.name=tests.train.tiny:Nothing", "data.name: 'tests.train.tiny:Nothing' can't be imported"),
        (
            "data.arguments={color: 1}",
            "data.arguments: tests.train.tiny:Patterns takes no argument color; it takes people, each",
        ),
        ("network.name=resnet19", "network: expected one of paper, resnet18, .* or module:function, got 'resnet19'"),
        (
            "network.arguments={depth: 1}",
            "network: tests.train.tiny:Net takes no argument depth; it takes norm, dropout",
        ),
        ("start=nowhere.pt", "there is no file nowhere.pt"),
        ("batch.size=49", "batch.size: expected at most 48, the images to train on, got 49"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(recipe("classify", change), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert isinstance(Net(3, 1), nn.Module)
