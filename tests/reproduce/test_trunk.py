"""Table 2 on a pretrained trunk: the whole chain on generated faces, who is in which set, and the intervals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from occfast import DataError, reproduce
from occfast.models import MobileFaceNet
from occfast.models.tensor_files import write_tensors
from occfast.reproduce.graph import Done
from occfast.reproduce.trigueros2018.judging import data_needed, half_width, judged, seeds_needed
from occfast.reproduce.trigueros2018.steps import distributions
from occfast.reproduce.trigueros2018.trunk import features
from occfast.reproduce.trigueros2018.trunk import steps as trunk_steps
from occfast.reproduce.trigueros2018.trunk.heads import Examples, classify, joined, separate
from occfast.reproduce.trigueros2018.trunk.results import TrunkResults
from occfast.reproduce.trigueros2018.trunk.settings import LOSSES, STAGES, TrunkSettings
from occfast.reproduce.trigueros2018.trunk.sources import TrunkSources
from occfast.reproduce.values import Claim, Comparison
from tests.data.pictures import encode, pixels

needs_data = pytest.mark.skipif(not os.environ.get("OCCFAST_DATA"), reason="needs real faces in $OCCFAST_DATA")
SETTINGS: dict[str, Any] = {
    "feature_size": 16,
    "share": 0.3,
    "draws": 1,
    "map_images": 20,
    "map_spacing": 56,
    "batch": 16,
    "base_epochs": (2, 5),
    "base_rate": 1e-2,
    "fine_epochs": 2,
    "people_each": 4,
    "images_each": 3,
    "epochs": (1, 2),
    "rates": (1e-4, 1e-3),
    "choosing_seeds": (7, 8),
    "resamples": 50,
}
_HEADER = "image,identity," + ",".join(
    f"{point}_{axis}" for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for axis in "xy"
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_people(root: Path, names: dict[str, list[str]], seed: int, *, identities: bool = True) -> None:
    """Pictures of people, each person's alike, in ``root/images``, with landmarks.csv."""
    rows = []
    for k, (person, images) in enumerate(names.items()):
        face = pixels(seed + k, 48, 48).astype(np.float64)
        for number, name in enumerate(images):
            noise = np.random.default_rng(1000 * seed + 10 * k + number).normal(0, 12, face.shape)
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "images" / name).write_bytes(encode((face + noise).clip(0, 255).astype(np.uint8)))
            who = f"{person}," if identities else ""
            rows.append(f"{name},{who}16,18,32,18,24,27,17,36,31,36")
    header = _HEADER if identities else _HEADER.replace("identity,", "")
    (root / "landmarks.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of $OCCFAST_DATA: a training set, a set of others some of whom are in LFW, LFW, and weights."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("faces")
    write_people(root / "celeba", {str(p): [f"{p}{i}.jpg" for i in range(6)] for p in range(10, 18)}, 10)
    (root / "celeba" / "exclude_for_lfw.csv").write_text("identity\n17\n")
    write_people(root / "cfp", {f"{p:03d}": [f"{p:03d}/{i}.jpg" for i in range(4)] for p in range(11)}, 40)
    (root / "cfp" / "exclude_for_lfw.csv").write_text("identity\n" + "\n".join(f"{p:03d}" for p in range(6)) + "\n")
    people = [f"Person_{chr(97 + p)}" for p in range(10)]
    write_people(root / "lfw", {p: [f"{p}/{p}_{i:04d}.jpg" for i in (1, 2, 3)] for p in people}, 80, identities=False)
    lines = ["10\t2"]
    for k, person in enumerate(people):
        lines += [f"{person}\t1\t2", f"{person}\t2\t3"]
        lines += [f"{person}\t{n}\t{people[(k + 1) % 10]}\t{n}" for n in (1, 2)]
    (root / "lfw" / "pairs.txt").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    network = MobileFaceNet()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of this batch alone
    sources = TrunkSources(root=root)
    with torch.no_grad():
        network.train()(sources.preprocessing(sources.train.images(torch.arange(0, len(sources.train), 3))))
    write_tensors(root / "models" / "mobilefacenet-112x96.safetensors", network.state_dict(), {})
    return root


def run(data: Path, output: Path, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> dict[str, Any]:
    """Runs everything; report.json without what depends on the clock."""
    report = reproduce.run(
        "trigueros2018",
        scale="trunk",
        seeds=seeds,
        root=data,
        output=output,
        settings={**SETTINGS, **changes},
        progress=False,
        device="cpu",
    )
    assert report.page is not None
    found = json.loads(report.page.with_suffix(".json").read_text())
    for name in ("cost", "command", "environment"):
        del found[name]
    return dict(found)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("trunk")
    return output, run(data, output)


# -- a run ----------------------------------------------------------------------------------------------------


def test_report_has_twelve_networks_and_a_verdict_for_every_ordering(finished):
    output, report = finished
    table = report["tables"][0]
    assert table["name"] == "Table 2" and len(table["rows"]) == 12 and table["header"][1:] == list(STAGES.values())
    for name, cells in table["rows"].items():
        assert all(len(cell["values"]) == 2 and 0 < cell["mean"] <= 100 for cell in cells)
        if name[0] == "A":  # the triplet stage has no part in it
            assert cells[0]["values"] == cells[1]["values"] == cells[2]["values"]
    verdicts = [one["verdict"] for claim in report["claims"] for one in claim["comparisons"]]
    assert set(verdicts) <= {"confirmed", "refuted", "not decided"} and len(verdicts) == 3 * (3 * 5 + 3) + 3 + 3 * 5
    for claim in report["claims"]:
        for one in claim["comparisons"]:
            low, high = one["whole"]
            assert low <= np.mean(one["differences"]) <= high
            assert one["verdict"] == ("confirmed" if low > 0 else "refuted" if high < 0 else "not decided")
    text = (output / "trigueros2018" / "trunk" / "report.md").read_text()
    assert "not decided" in text and "95 % intervals over seeds and images" in text
    assert 'id="judged"' in (output / "trigueros2018" / "trunk" / "report.html").read_text()
    loaded = reproduce.Report.load(output / "trigueros2018" / "trunk")
    assert loaded.verdict() in text and [c.verdict for c in loaded.claims] == [c["verdict"] for c in report["claims"]]


def test_finished_steps_stay_and_another_seed_adds_its_own(data, finished, monkeypatch):
    output, report = finished
    calls: list[str] = []
    monkeypatch.setattr(features, "compute", lambda *_, **__: calls.append("features"))
    monkeypatch.setattr(trunk_steps, "occlusion_map", lambda *_, **__: calls.append("map"))
    monkeypatch.setattr(trunk_steps, "choose_stage", lambda *_, **__: calls.append("choice"))
    assert run(data, output) == report
    more = run(data, output, seeds=(0, 1, 2))
    assert not calls
    for name, cells in report["tables"][0]["rows"].items():
        for two, three in zip(cells, more["tables"][0]["rows"][name], strict=True):
            assert three["values"][:2] == two["values"] and len(three["values"]) == 3


def test_networks_take_the_chosen_values(finished):
    _, report = finished
    choices = report["data"]["choices"]
    for choice, key in ((choices["A"], "epochs"), (choices["occluders"], "covered")):
        means: dict[Any, list[float]] = {}
        for one in choice["tried"]:
            means.setdefault(one[key], []).extend(one["accuracies"])
        assert len(means) == 2 and np.mean(means[choice[key]]) == max(map(np.mean, means.values()))
    for loss in LOSSES:
        for people in STAGES:
            tried = choices["B and C"]["tried"]
            own = [one for one in tried if one["network"] == loss and one["people"] == people]
            assert len(own) == 4 and all(len(one["accuracies"]) == 2 for one in own)
            best = max(own, key=lambda one: float(np.mean(one["accuracies"])))
            chosen = choices["B and C"]["stage"][loss][people]
            assert chosen == {"rate": best["rate"], "epochs": best["epochs"]}


def test_features_are_those_of_the_network(data, finished):
    output, _ = finished
    sources = TrunkSources(root=data)
    folder = next((output / "trigueros2018" / "steps").glob("features-others-[0-9a-f]*"))
    stored = features.load(folder / features.FILE, len(sources.others))
    network = MobileFaceNet()
    network.load_state_dict(load_file(sources.weights_file))
    network.eval()
    pooled: list[torch.Tensor] = []
    network.linear7.register_forward_hook(lambda *found: pooled.append(found[2].flatten(1)))
    with torch.no_grad():
        network(sources.preprocessing(sources.others.images(torch.arange(5))))
    torch.testing.assert_close(stored[:5], pooled[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="expected float32"):
        features.load(folder / features.FILE, len(stored) + 1)


# -- who is where -----------------------------------------------------------------------------------------------


def check_disjoint(sources: TrunkSources) -> None:
    sets = {name: sources.faces(name) for name in sources.sets}
    others_root = getattr(sources._open("others"), "root", None)
    for name in ("train", "others"):
        for other in ("choosing", "lfw"):
            # Data sets number their people by themselves: numbers are compared within a data set, names everywhere.
            if name == "train" or other == "lfw":
                shared = set(sets[name].people) & set(sets[other].people)
                assert not {person for person in shared if not person.isdecimal()}
            else:
                assert not set(sets[name].people) & set(sets[other].people)
    listed = set(sources.listed)
    assert listed and not listed & set(sets["others"].people) and listed == set(sets["choosing"].people)
    assert not {entry.person for entry in sources.left_out} & set(sets["train"].people)
    assert not set(sets["others"].names) & set(sets["choosing"].names) and others_root is not None
    pixels_of: dict[bytes, str] = {}
    for name, faces in sets.items():
        every = range(len(faces)) if name != "lfw" else sources.protocol("lfw").index.unique().tolist()
        for k in every:
            image = faces[k].image.numpy().tobytes()
            assert pixels_of.setdefault(image, name) == name, (name, pixels_of[image], faces.names[k])


def test_sets_are_disjoint(data):
    sources = TrunkSources(root=data)
    check_disjoint(sources)
    assert len(sources.train.people) == 7 and len(sources.others.people) == 5 and len(sources.choosing[0].people) == 6
    trained, held = trunk_steps.Plan(TrunkSettings(**SETTINGS), sources).parts
    assert not set(trained.tolist()) & set(held.tolist()) and len(trained) + len(held) == len(sources.train)


@needs_data
@pytest.mark.slow
def test_sets_of_real_faces_are_disjoint():
    sources = TrunkSources()
    if not sources.here:
        pytest.skip("not all of celeba, cfp, lfw and models in $OCCFAST_DATA")
    check_disjoint(sources)
    assert len(sources.train.people) == 292 and len(sources.others.people) == 324
    assert len(sources.choosing[0].people) == 176 and len(sources.protocol("lfw").same) == 6000


def test_pairs_of_lfw_are_read_after_the_choice(data):
    graph = trunk_steps.Plan(TrunkSettings(**SETTINGS), TrunkSources(root=data)).graph(Path("unused"))
    reading = {name for name, step in graph.steps.items() if "lfw" in step.data}
    assert reading == {"features lfw", *(f"seed 0: verify{end}" for end in ("", " 20x20", " 20x40", " 40x40"))}

    def behind(name: str) -> set[str]:
        needs = graph.steps[name].needs
        return set(needs).union(*map(behind, needs))

    for end in ("", " 20x20", " 20x40", " 40x40"):
        networks = f"seed 0: networks{end}"
        assert not behind(networks) & reading and "choose B and C" in behind(networks)
        assert networks in behind(f"seed 0: verify{end}")
    assert "choose occluders" in behind("seed 0: networks 40x40")


def test_bad_input_names_what_is_wrong(data, tmp_path):
    def prepare(**changes: Any) -> None:
        reproduce.prepare("trigueros2018", scale="trunk", **{"root": data, "output": tmp_path, **changes})

    with pytest.raises(ValueError, match="table: expected 2 at scale trunk, got 1"):
        prepare(tables=(1,))
    with pytest.raises(ValueError, match="data: expected train=, others= or lfw=, got ar="):
        prepare(data={"ar": "ar"})
    with pytest.raises(ValueError, match="seeds: expected none of choosing_seeds, got 1000"):
        prepare(seeds=(1000,))
    with pytest.raises(ValueError, match="occluders: expected some of 20x20, 20x40, 40x40 in this order, got"):
        prepare(settings={"occluders": ("40x40", "20x20")})
    with pytest.raises(ValueError, match="rates: expected different values"):
        prepare(settings={"rates": ()})
    with pytest.raises(DataError, match=r"gone.safetensors: no such file \(--set trunk=\)"):
        prepare(settings={"trunk": str(tmp_path / "gone.safetensors")})
    (tmp_path / "set" / "a").mkdir(parents=True)
    write_people(tmp_path / "set", {"1": ["1/a.jpg"], "2": ["2/a.jpg"]}, 3)
    with pytest.raises(DataError, match="expected a data set in which some people are in LFW and others are not"):
        _ = TrunkSources(root=data, given={"others": f"celeba:{tmp_path / 'set'}"}).others


# -- training ---------------------------------------------------------------------------------------------------


def blobs(people: int = 6, each: int = 5, seed: int = 0, spread: float = 0.5) -> Examples:
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(people, 12, generator=random)
    labels = torch.arange(people).repeat_interleave(each)
    return Examples(centers[labels] + spread * torch.randn(len(labels), 12, generator=random), labels)


def test_batches_take_clean_and_drawn_features_in_the_stated_share():
    clean = torch.zeros(4000, 2)
    drawn = (torch.ones(4000, 2), 2 * torch.ones(4000, 2))
    numbers = torch.arange(4000)
    for covered, wanted in ((0.0, (1.0, 0.0, 0.0)), (0.5, (0.5, 0.25, 0.25)), (1.0, (0.0, 0.5, 0.5))):
        found = Examples(clean, numbers, drawn, covered).batch(numbers, torch.Generator().manual_seed(0))[:, 0]
        shares = [float((found == value).double().mean()) for value in (0, 1, 2)]
        assert np.allclose(shares, wanted, atol=0.03 if 0 < covered < 1 or max(wanted) == 0.5 else 0)


def test_stages_train_as_their_losses_say():
    s = TrunkSettings(feature_size=8, people_each=6, images_each=4, batch=16)
    examples = blobs(spread=2.0)
    base = classify(s, examples, 3, epochs=(5, 60), rate=1e-2)
    assert base[5].accuracy(examples.clean, examples.labels) < base[60].accuracy(examples.clean, examples.labels)
    again = classify(s, examples, 3, epochs=(60,), rate=1e-2)[60]
    assert torch.equal(again.head.weight, base[60].head.weight)
    for loss in LOSSES.values():
        found = separate(s, examples, 3, loss=loss, epochs=(1, 30), rate=1e-3, start=base[5])
        assert found[30].active[1] < found[30].active[0] and found[1].active[0] == found[30].active[0]
        assert found[30].classifier is None and not torch.equal(found[30].head.weight, base[5].head.weight)
        embedded = found[30].embed(examples.clean)
        assert torch.allclose(embedded.norm(dim=1), torch.ones(len(embedded)), atol=1e-5)
        with pytest.raises(ValueError, match="classifier: expected a network that classifies"):
            found[30].accuracy(examples.clean, examples.labels)


def test_joined_sets_have_different_people():
    both = joined(blobs(people=3), blobs(people=2, seed=1))
    assert both.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 and both.people == 5
    assert torch.equal(both.clean[15:], blobs(people=2, seed=1).clean)


# -- intervals --------------------------------------------------------------------------------------------------


def test_intervals_cover_seeds_and_images_together():
    """Crossed effects of known size: the interval holds the true difference in 95 % of the experiments, or more."""
    random = np.random.default_rng(0)
    covered, seeds, images = 0, 5, 200
    for _ in range(400):
        effect = 0.1 + random.normal(0, 0.1, (seeds, 1)) + random.normal(0, 1.0, (1, images))
        effect = effect + random.normal(0, 0.5, (seeds, images))
        weights = random.multinomial(images, np.full(images, 1 / images), size=200) / images
        found = judged("", effect.mean(1), weights @ effect.mean(0))
        assert found.whole is not None
        covered += found.whole[0] <= 0.1 <= found.whole[1]
    assert 0.93 <= covered / 400 <= 0.99


def test_number_of_seeds_that_would_decide():
    for mean, seeds, images in ((0.1, 0.04, 0.0009), (0.3, 1.0, 0.0), (0.05, 0.01, 0.0001)):
        needed = seeds_needed(mean, seeds, images, 3)
        assert needed is not None and needed > 3
        assert half_width(seeds, images, needed) < mean <= half_width(seeds, images, needed - 1)
    assert seeds_needed(0.05, 0.01, 0.01, 3) is None  # the images alone leave it open
    times = data_needed(0.05, 0.01)
    assert times > 1 and half_width(0.0, 0.01 / times, 3) == pytest.approx(0.05)
    assert half_width(0.0, 0.0, 4) == 0.0
    single = judged("", np.array([0.3]), np.linspace(-1, 1, 101))
    assert single.whole is None and single.over_images is not None and single.verdict == ""


def test_resampled_scores_have_the_figures_of_the_pairs_drawn(tmp_path):
    random = np.random.default_rng(1)
    people = np.stack([np.arange(40) % 8, np.where(np.arange(40) < 20, np.arange(40) % 8, (np.arange(40) + 3) % 8)], 1)
    same = people[:, 0] == people[:, 1]
    scores = random.normal(0.2 + 0.5 * same, 0.2).astype(np.float32)
    np.savez(tmp_path / "scores.npz", A=scores)
    np.savez(tmp_path / "correct.npz", A=(scores > 0.45) == same)
    done = Done("seed 0: verify", tmp_path, {}, 0.0, "cpu", 1, "")
    results = TrunkResults(TrunkSettings(resamples=30), {done.name: done}, same, people)
    weights = results._pairs._weights.astype(np.int64)
    assert weights.shape == (30, 40) and weights.max() > 1
    for k, weight in enumerate(weights):
        drawn, flags = torch.from_numpy(np.repeat(scores, weight)), torch.from_numpy(np.repeat(same, weight))
        wanted = distributions(drawn, flags)
        for what in ("gap", "decidability", "std_same", "std_different"):
            assert results._draws("A", what)[k, 0] == pytest.approx(wanted[what], rel=1e-5)
        right = np.repeat((scores > 0.45) == same, weight)
        assert results._draws("A", "accuracy")[k, 0] == pytest.approx(right.mean(), rel=1e-6)


def test_claims_are_judged_by_their_comparisons():
    def one(low: float, high: float) -> Comparison:
        return Comparison("", (low, high), whole=(low, high))

    assert Claim("", (one(1, 2), one(0.1, 1))).verdict == "confirmed"
    assert Claim("", (one(1, 2), one(-2, -1))).verdict == "refuted"
    assert Claim("", (one(1, 2), one(-1, 1))).verdict == "not decided"
    assert Claim("", (one(1, 2), Comparison("", (1.0, 2.0)))).verdict == ""
    assert "about 7 seeds would decide" in Comparison("", (0.0, 1.0), whole=(-1, 2), seeds_needed=7).text
    assert "no number of seeds would decide on these pairs" in Comparison("", (0.0, 1.0), whole=(-1, 2)).text
    more = judged("", np.array([0.4, 0.42, 0.38]), np.linspace(-1, 1.8, 101))
    assert more.verdict == "not decided" and more.seeds_needed is None and more.data_needed is not None
    assert (
        f"no number of seeds would decide, with {more.data_needed:.2g} times as much test data many would" in more.text
    )
    assert Comparison.from_dict(json.loads(json.dumps(more.as_dict()))) == more
