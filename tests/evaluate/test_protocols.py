"""Protocols on data sets, clean and covered, the report and the command line."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from occfast import DataError
from occfast.data import AR, AR10P, LFW, Aligned, Folder
from occfast.data.overlap import read_exclude
from occfast.evaluate import (
    PairProtocol,
    ar,
    compare,
    embed,
    evaluate_scores,
    gallery_and_probes,
    lfw,
    listed_pairs,
    read_scores,
    verification,
)
from occfast.occlude.drawn import Band, Block
from tests.browser import CHROMIUM, LOOKS, look_over
from tests.evaluate.test_embedding import OFF, PRE, Projection, Squares


def pairs_of(faces: Squares, count: int = 200, folds: int = 4) -> PairProtocol:
    random = np.random.default_rng(0)
    first = random.integers(0, len(faces), count)
    step = np.where(np.arange(count) % 2, random.integers(1, 4, count), random.integers(4, len(faces) - 4, count))
    second = np.where(np.arange(count) % 2, first // 4 * 4 + (first + step) % 4, (first + step) % len(faces))
    index = torch.from_numpy(np.stack([first, second], 1))
    same = faces.labels[index[:, 0]] == faces.labels[index[:, 1]]
    return PairProtocol("pairs", index, same, torch.arange(count) // (count // folds))


def images(root: Path, names: list[str], size: tuple[int, int] = (20, 24)) -> None:
    from PIL import Image

    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 40 + 3 * k).save(root / name)


# -- which images are compared ---------------------------------------------------------------------------------


def test_ar_compares_one_clean_reference_with_light_sunglasses_and_scarf(tmp_path: Path) -> None:
    images(
        tmp_path,
        [
            f"{sex}-{person:03d}-{number:02d}.png"
            for sex, person in (("M", 1), ("W", 2), ("W", 3))
            for number in range(1, 27)
        ],
    )
    faces = AR(tmp_path)
    clean, sunglasses, scarf = ar(faces)
    assert [p.name for p in (clean, sunglasses, scarf)] == ["AR clean", "AR sunglasses", "AR scarf"]
    for protocol, numbers in (
        (clean, [5, 6, 7, 18, 19, 20]),
        (sunglasses, [8, 9, 10, 21, 22, 23]),
        (scarf, [11, 12, 13, 24, 25, 26]),
    ):
        assert len(protocol.index) == 3 * 18 and int(protocol.same.sum()) == 18
        assert set(faces.numbers[protocol.index[:, 0]].tolist()) == {1}
        assert sorted(set(faces.numbers[protocol.index[:, 1]].tolist())) == numbers
        by_name = [faces.names[a][:5] == faces.names[b][:5] for a, b in protocol.index.tolist()]
        assert protocol.same.tolist() == by_name
    with pytest.raises(ValueError, match="reference: expected the number of a photograph in the data set, got 27"):
        ar(faces, reference=27)
    images(tmp_path / "few", ["M-001-01.png", "M-001-05.png"])
    with pytest.raises(ValueError, match="expected images of the condition 'sunglasses'"):
        ar(AR(tmp_path / "few"))


def test_ar_of_ten_people() -> None:
    root = Path(os.environ.get("OCCFAST_DATA", "")) / "ar10p"
    if not (root / "warpAR10P.mat").is_file():
        pytest.skip("no ar10p in $OCCFAST_DATA")
    faces = AR10P(root)
    for protocol in ar(faces):
        assert len(protocol.index) == 300 and int(protocol.same.sum()) == 30
        # Gray levels themselves as features: far better than chance on faces in other light, whatever the network.
        table = faces.images.flatten(1).float()
        result = protocol.evaluate(table - table.mean(0), table - table.mean(0))
        assert result.n_same == 30 and result.auc > 0.5


def lfw_folder(root: Path) -> Path:
    images(root / "images", [f"{p}/{p}_{k:04d}.jpg" for p in ("Ann", "Ben", "Cem", "Dan") for k in (1, 2, 3)])
    same, different = ["Ann\t1\t2", "Ben\t1\t2"], ["Ann\t1\tBen\t3", "Cem\t2\tDan\t1"]
    other = ["Cem\t1\t3", "Dan\t1\t2"], ["Ann\t3\tCem\t3", "Ben\t2\tDan\t3"]
    (root / "pairs.txt").write_text("\r\n".join(["2\t2", *same, *different, *other[0], *other[1]]))
    (root / "pairsDevTrain.txt").write_text("\n".join(["2", *same, *different]))
    (root / "pairsDevTest.txt").write_text("\n".join(["2", *other[0], *other[1][:1], "Ben\t9\tDan\t3"]))
    return root


def test_lfw_view_2_in_the_official_folds(tmp_path: Path) -> None:
    faces = LFW(lfw_folder(tmp_path))
    protocol = lfw(faces)
    assert protocol.same.tolist() == [True, True, False, False] * 2 and protocol.folds.tolist() == [0] * 4 + [1] * 4
    x = torch.eye(len(faces.people))[faces.labels] + 0.1
    assert protocol.evaluate(x, x).accuracy == 1.0


def test_lfw_view_1_reports_the_pair_whose_image_is_missing(tmp_path: Path) -> None:
    faces = LFW(lfw_folder(tmp_path))
    with pytest.warns(UserWarning, match="1 of 4 pairs name an image that is not there"):
        protocol = lfw(faces, view=1)
    assert protocol.missing == 1 and len(protocol.same) == 3 and len(protocol.train.same) == 4
    x = torch.eye(len(faces.people))[faces.labels] + 0.1
    result = protocol.evaluate(x, x)
    assert result.accuracy == 1.0 and result.accuracy_std is None and len(result.thresholds) == 1
    assert repr(result).startswith("Verification(accuracy 100.00%, AUC")
    with pytest.raises(ValueError, match="view: expected 1 or 2"):
        lfw(faces, view=3)


def test_gallery_probes_and_strangers() -> None:
    faces = Squares(people=10)
    protocol = gallery_and_probes(faces, 2, seed=1)
    assert faces.labels[protocol.gallery].bincount().tolist() == [2] * 10
    assert faces.labels[protocol.probes].bincount().tolist() == [2] * 10
    assert not set(protocol.gallery.tolist()) & set(protocol.probes.tolist())
    again, other = gallery_and_probes(faces, 2, seed=1), gallery_and_probes(faces, 2, seed=2)
    assert torch.equal(protocol.gallery, again.gallery) and not torch.equal(protocol.gallery, other.gallery)
    opened = gallery_and_probes(faces, 1, impostors=0.3, fars=(0.1,))
    known = set(faces.labels[opened.gallery].tolist())
    assert len(known) == 7 and len(opened.probes) == 7 * 3 + 3 * 4
    x = faces.images.flatten(1).float()
    result = opened.evaluate(x, x)
    assert (result.n_known, result.n_unknown) == (21, 12) and 0.1 in result.dir_at_far
    with pytest.raises(ValueError, match="gallery_images: expected people with more than 4"):
        gallery_and_probes(faces, 4)
    with pytest.raises(ValueError, match="impostors: expected a share"):
        gallery_and_probes(faces, impostors=1.0)


def test_listed_pairs_of_a_folder(tmp_path: Path) -> None:
    images(tmp_path / "faces", [f"{p}/{p}_{k:04d}.png" for p in ("Ann", "Ben") for k in (1, 2)])
    (tmp_path / "pairs.csv").write_text("Ann, 1, 2\nAnn, 1, Ben, 2\n")
    protocol = listed_pairs(Folder(tmp_path / "faces"), tmp_path / "pairs.csv")
    assert protocol.name == "pairs" and protocol.folds is None and protocol.same.tolist() == [True, False]


# -- clean and covered -------------------------------------------------------------------------------------------


def test_report_has_what_each_run_alone_gives(tmp_path: Path) -> None:
    faces, model = Squares(), Projection()
    pairs, search = pairs_of(faces), gallery_and_probes(faces)
    covers = {"eyes": Band("eyes"), "big": Block((20, 16), (12.0, 10.0), fill="noise")}
    report = compare([pairs, search], model, faces, PRE, covers, **OFF)
    assert [(r.protocol, r.occlusion) for r in report.rows] == [
        (p, o) for p in ("pairs", "Identification, 1 gallery image per person") for o in ("clean", "eyes", "big")
    ]
    clean, big = (
        embed(model, faces, PRE, **OFF).features,
        embed(model, faces, PRE, occlusion=covers["big"], **OFF).features,
    )
    # The reference stays clean, the probe is covered.
    expected = pairs.evaluate(clean, big)
    row = report["pairs", "big"]
    assert row.result.as_dict() == expected.as_dict()
    assert row.covered == pytest.approx(20 * 16 / 480)
    scores = nn.functional.cosine_similarity(clean[pairs.index[:, 0]], big[pairs.index[:, 1]])
    assert row.result.accuracy == pytest.approx(verification(scores, pairs.same, pairs.folds).accuracy)
    # At the clean pairs' thresholds.
    thresholds = torch.tensor(report["pairs", "clean"].result.thresholds)[pairs.folds]
    assert row.at_clean_threshold == pytest.approx(float(((scores >= thresholds) == pairs.same).double().mean()))
    assert report.cost(row) == pytest.approx(report["pairs", "clean"].result.accuracy - row.result.accuracy)
    assert report.cost(report["pairs", "clean"]) is None and report["pairs", "clean"].result.accuracy > 0.9
    assert report["Identification, 1 gallery image per person", "big"].result.ranks == search.evaluate(clean, big).ranks
    both = compare(pairs, model, faces, PRE, covers, cover="both", **OFF)
    assert both["pairs", "big"].result.auc == pairs.evaluate(big, big).auc != expected.auc


def test_intervals_over_people_in_the_report() -> None:
    faces, model = Squares(people=12), Projection()
    protocol = pairs_of(faces)
    covers = {"big": Block((20, 16), (12.0, 10.0), fill="noise")}
    with pytest.raises(ValueError, match="resamples: expected 0 for pairs, whose people are unknown, got 50"):
        compare(protocol, model, faces, PRE, resamples=50, **OFF)
    protocol = replace(protocol, people=faces.labels[protocol.index])
    report = compare([protocol, gallery_and_probes(faces)], model, faces, PRE, covers, resamples=50, **OFF)
    row = report["pairs", "big"]
    auc = row.result.people["auc"]
    assert row.shown("AUC") == f"{100 * row.result.auc:.2f} [{100 * auc.low:.2f}, {100 * auc.high:.2f}]"
    assert "bootstrap over people" in report.note("pairs") and "tar@0.01" in row.as_dict()["people"]


def test_the_report_names_the_alignment(tmp_path: Path) -> None:
    """It is that of the faces: files of other programs record none."""
    faces = Aligned(Squares(), "paper-100", size=(24, 20))
    report = compare([pairs_of(faces)], Projection(), faces, PRE, **OFF)
    assert report.settings["alignment"] == "paper-100"
    assert "Faces aligned to" in report.write(tmp_path).read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@LOOKS
def test_a_browser_shows_the_report(how: dict[str, Any], tmp_path: Path) -> None:
    faces, bad = Squares(), "<script>alert(1)</script>"
    protocols = [pairs_of(faces), gallery_and_probes(faces)]
    report = compare(protocols, Projection(), faces, PRE, {bad: Band("eyes")}, model_name=bad, **OFF)
    found = look_over(report.write(tmp_path), tmp_path, **how)
    assert len(found["images"]) == 4  # clean, covered, and two curves
    assert bad in found["text"] and "Accuracy under occlusion" in found["text"]


def test_report_is_written_in_every_form(tmp_path: Path) -> None:
    faces = Squares()
    report = compare(
        [pairs_of(faces), gallery_and_probes(faces)], Projection(), faces, PRE, {"eyes": Band("eyes")}, **OFF
    )
    page = report.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "curve-1.png",
        "curve-2.png",
        "report.html",
        "report.json",
        "report.md",
        "roc.csv",
    ]
    about = json.loads((tmp_path / "report.json").read_text())
    assert [row["occlusion"] for row in about["rows"]] == ["clean", "eyes"] * 2
    assert about["rows"][1]["cost"] == pytest.approx(report.cost(report.rows[1]))
    assert about["settings"]["preprocessing"] == {
        "size": [24, 20],
        "color": "gray",
        "mean": 0.5,
        "std": 0.5,
        "alignment": None,
    }
    assert about["settings"]["alignment"] is None
    assert about["settings"]["flip"] == "sum" and about["settings"]["occlusions"]["eyes"]["region"] == "eyes"
    rows = list(csv.DictReader((tmp_path / "roc.csv").open()))
    eyes = [(float(r["far"]), float(r["tar"])) for r in rows if r["occlusion"] == "eyes"]
    curve = report["pairs", "eyes"].result.roc
    assert eyes == list(zip(curve.far, curve.tar, strict=True))
    text = (tmp_path / "report.md").read_text()
    eyes, cost = report.rows[1], report.cost(report.rows[1])
    assert f"| eyes | {eyes.shown('accuracy')} | {100 * cost:.2f} |" in text and f"| {100 * eyes.covered:.1f} |" in text
    html = page.read_text()
    assert (
        html.count("data:image/png;base64,") == 4
        and '<th scope="row">eyes</th>' in html
        and '<td class="main">' in html
        and "http" not in html
    )
    assert set(report.examples) == {"clean", "eyes"}


def test_features_are_used_again_only_where_nothing_changed(tmp_path: Path) -> None:
    faces, pairs = Squares(), pairs_of(Squares())
    calls = []

    class Counting(Projection):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    def run(model: nn.Module, **changed: object) -> tuple[int, object]:
        calls.clear()
        report = compare(
            pairs,
            model,
            faces,
            PRE,
            {"x": Block((5, 5), seed=changed.pop("seed", 0))},
            checkpoint=tmp_path,
            **changed,
            **OFF,
        )  # type: ignore[arg-type]
        return sum(calls), report.as_dict()["rows"]

    model = Counting()
    first, rows = run(model)
    again, same = run(model)
    assert (again, same) == (0, rows) and first > 0
    assert 0 < run(model, seed=1)[0] < first  # only the covered ones
    assert run(model, flip="none")[0] == first / 2
    with torch.no_grad():
        model.weight.add_(1)
    assert run(model)[0] == first
    with pytest.raises(ValueError, match="checkpoint: expected a module"):
        compare(pairs, lambda x: x.flatten(1), faces, PRE, checkpoint=tmp_path, **OFF)


def test_one_clear_error_for_wrong_comparisons() -> None:
    faces = Squares()
    with pytest.raises(ValueError, match="occlusions: the name 'clean' is reserved"):
        compare(pairs_of(faces), Projection(), faces, PRE, {"clean": Band()}, **OFF)
    with pytest.raises(ValueError, match="cover: expected one of 'probe', 'both', got 'all'"):
        compare(pairs_of(faces), Projection(), faces, PRE, cover="all", **OFF)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="protocols: expected at least one and different names"):
        compare([pairs_of(faces), pairs_of(faces)], Projection(), faces, PRE, **OFF)


# -- scores from elsewhere, the command line ---------------------------------------------------------------------


def test_score_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    random = np.random.default_rng(1)
    same = np.arange(400) % 2 == 0
    scores = random.normal(size=400) + 2 * same
    path.write_text(
        "\r\n".join(
            [
                "name;same;score;fold",
                *(f"x;{int(t)};{s!r};{k % 4}" for k, (s, t) in enumerate(zip(scores.tolist(), same, strict=True))),
            ]
        )
    )
    found, flags, folds = read_scores(path)
    assert np.array_equal(found, scores) and np.array_equal(flags, same) and np.array_equal(folds, np.arange(400) % 4)
    assert (
        evaluate_scores(found, flags, folds).rows[0].result.accuracy
        == verification(scores, same, np.arange(400) % 4).accuracy
    )
    for content, message in (
        ("a,b\n1,2", "line 1: expected a header with score, same and optionally fold"),
        ("score,same\n0.5,2", "line 2: expected score, same"),
        ("score,same\n0.5,1\nx,1", "line 3: expected score, same"),
        ("score,same\n0.5", "line 2: expected score, same"),
        ("score,same\n", "expected scores after the header"),
        ('name,score,same\n"a\nb",0.5,1', "line 2: expected name, score, same"),
        (f"score,same\n{'1' * 200_000},1", "line 2: expected score, same"),
        ("", "line 1: expected a header"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_scores(path)


@given(
    st.one_of(
        st.binary(max_size=150),
        st.lists(st.sampled_from(["score", "same", "fold", "1", "0", "0.5", "nan", ",", ";", "\n", '"', "x"])).map(
            lambda p: "".join(p).encode()
        ),
    )
)
def test_any_bytes_are_scores_people_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz", numbered=True) / "file.csv"
    for start, read in ((b"score,same\n", read_scores), (b"", read_scores), (b"person\n", read_exclude)):
        path.write_bytes(start + content)
        try:
            read(path)
        except DataError as error:
            assert "file.csv" in str(error)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def occfast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Return a function that runs the command line in ``tmp_path``, in this process."""
    from occfast.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["occfast", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return Done(status, *capsys.readouterr())

    return run


def test_command_line_judges_scores(tmp_path: Path, occfast: Callable[..., Done]) -> None:
    (tmp_path / "mine.csv").write_text("score,same\n" + "\n".join(f"{0.1 * k},{int(k % 7 > 2)}" for k in range(60)))
    done = occfast("evaluate", "scores", "mine.csv", "--folds", 5, "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["rows"][0]["protocol"] == "mine" and len(about["rows"][0]["folds"]) == 5
    assert (tmp_path / "evaluation" / "report.html").is_file()
    for arguments, message in (
        (("evaluate", "faces"), "protocol: expected one of lfw"),
        (("evaluate", "lfw", "-o", "other"), "--model: expected a network, got none"),
        (("evaluate", "scores", "none.csv", "-o", "other"), "can't be read"),
        (
            ("evaluate", "scores", "mine.csv"),
            "evaluation holds a report: --resume uses its features again, --overwrite",
        ),
        (("evaluate", "scores", "mine.csv", "-o", "other", "--gallery", 2), "--gallery: only valid with search"),
        (
            ("evaluate", "scores", "mine.csv", "-o", "other", "--folds", 61),
            "folds: expected a number from 2 to 60, the number of pairs, got 61",
        ),
    ):
        failed = occfast(*arguments)
        assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr, failed.stderr


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    from occfast.models import Preprocessing, build
    from occfast.models.weights import Trained

    torch.manual_seed(0)
    network = build("paper", 3, channels=1, size=(100, 100), width=0.1).eval()
    spec = {"name": "paper", "classes": 3, "arguments": {"width": 0.1}}
    return Trained(network, Preprocessing((100, 100), "gray"), spec).save(tmp_path / "net.safetensors")


def test_command_line_judges_a_network_and_goes_on_where_it_was(
    tmp_path: Path, weights: Path, occfast: Callable[..., Done]
) -> None:
    names = [f"{p}/{p}_{k:04d}.png" for p in ("Ann", "Ben", "Cem") for k in (1, 2, 3)]
    images(tmp_path / "faces", names, (50, 60))
    arguments = ("evaluate", "search", "faces", "-m", weights, "--resize", "--occlude", "block:20x40@50,50", "--json")
    done = occfast(*arguments)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert [r["occlusion"] for r in about["rows"]] == ["clean", "block:20x40@50,50"]
    assert about["rows"][0]["n_known"] == 6 and about["rows"][1]["covered"] == pytest.approx(0.08)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "evaluation" / "features").iterdir()}
    assert len(written) == 2
    again = occfast(*arguments)
    assert again.returncode == 2 and "evaluation holds a report" in again.stderr
    assert json.loads(occfast(*arguments, "--resume").stdout)["rows"] == about["rows"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "evaluation" / "features").iterdir()} == written
    failed = occfast("evaluate", "search", "faces", "-m", weights, "-o", "other")
    assert failed.returncode == 2 and "expected images of [1, 100, 100], which the network takes" in failed.stderr


def test_command_line_finds_people_of_both_sets(tmp_path: Path, weights: Path, occfast: Callable[..., Done]) -> None:
    images(tmp_path / "a", ["Ann_Lee/1.png", "Ben/1.png", "x1/1.png", "x1/2.png"], (100, 100))
    images(tmp_path / "b", ["ann lee/1.png", "Zoe/1.png"], (100, 100))
    from PIL import Image

    # x1 and Zoe are one person: the same pixels.
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), np.uint8)
    for name in ("a/x1/1.png", "a/x1/2.png", "b/Zoe/1.png"):
        Image.fromarray(noise).save(tmp_path / name)
    done = occfast("data", "overlap", "a", "b", "-o", "names.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "names.csv").read_text().splitlines() == [
        "person,matches,found_by,similarity",
        "Ann_Lee,ann lee,name,",
    ]
    done = occfast("data", "overlap", "a", "b", "-m", weights, "--resize", "--threshold", 0.99999, "--json")
    assert done.returncode == 0, done.stderr
    pairs = [(e["person"], e["matches"], e["found_by"]) for e in json.loads(done.stdout)["shared"]]
    assert ("Ann_Lee", "ann lee", "name") in pairs and ("x1", "Zoe", "similarity") in pairs
