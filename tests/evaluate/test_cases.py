"""Inputs from the field: odd pair lists, changed images and networks, several networks, hostile names."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from occfast.data import LFW, Folder, Subset, VerificationBin, write_verification_bin
from occfast.data.resize import Resized
from occfast.evaluate import (
    Comparison,
    PairProtocol,
    compare,
    drawn_pairs,
    gallery_and_probes,
    identification,
    lfw,
    listed_pairs,
    packed_pairs,
    verification,
)
from occfast.evaluate.fingerprints import code_fingerprint, image_digests
from occfast.models import Preprocessing
from occfast.occlude.drawn import Band, Block
from tests.evaluate.test_embedding import OFF, PRE, Projection, Squares
from tests.evaluate.test_protocols import images, pairs_of

# -- folds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "folds"), [(53, 10), (7, 3), (10, 10)])
def test_a_number_of_folds_is_scikit_learns_kfold(count: int, folds: int) -> None:
    from sklearn.model_selection import KFold

    random = np.random.default_rng(count)
    scores, same = random.normal(size=count), np.arange(count) % 2 == 0
    ids = np.empty(count, np.int64)
    for fold, (_, test) in enumerate(KFold(folds).split(scores)):
        ids[test] = fold
    given, mine = verification(scores, same, ids), verification(scores, same, folds)
    assert mine.fold_accuracies.tolist() == given.fold_accuracies.tolist() and mine.accuracy == given.accuracy
    assert mine.fold_of is not None and mine.fold_of.tolist() == ids.tolist()


def test_same_pairs_first_have_an_accuracy() -> None:
    same = np.arange(40) < 20
    result = verification(np.where(same, 0.9, 0.1) + np.arange(40) / 1000, same, 10)
    assert result.accuracy == 1.0 and len(result.folds) == 10


def test_a_bin_of_53_pairs(tmp_path: Path) -> None:
    from PIL import Image

    content = []
    for k in range(106):
        file = io.BytesIO()
        Image.new("L", (20, 24), 2 * k).save(file, format="PNG")
        content.append(file.getvalue())
    same = [k < 30 for k in range(53)]
    faces = VerificationBin(write_verification_bin(tmp_path / "odd.bin", content, same))
    protocol = packed_pairs(faces)
    x = torch.randn(106, 8, generator=torch.Generator().manual_seed(0))
    result = protocol.evaluate(x, x)
    assert result.accuracy is not None and len(result.folds) == 10 and result.n_same == 30


def test_pairs_txt_without_a_header_gives_an_accuracy_and_a_warning(tmp_path: Path) -> None:
    names = [f"{p}/{p}_{k:04d}.jpg" for p in ("Ann", "Ben", "Cem", "Dan") for k in range(1, 6)]
    images(tmp_path / "images", names)
    lines = []
    for k in range(1, 6):
        lines += [f"Ann\t{k}\t{k % 5 + 1}", f"Ben\t{k}\t{k % 5 + 1}", f"Ann\t{k}\tBen\t{k}", f"Cem\t{k}\tDan\t{k}"]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    faces = LFW(tmp_path)
    with pytest.warns(UserWarning, match=r"pairs\.txt: no header .* ten successive runs"):
        protocol = lfw(faces)
    assert protocol.folds is not None and protocol.folds.tolist() == [k // 2 for k in range(20)]
    x = torch.eye(len(faces.people))[faces.labels] + 0.1
    assert protocol.evaluate(x, x).accuracy == 1.0 and "10 successive runs" in protocol.note
    # A missing image moves no other pair to another fold.
    (tmp_path / "images/Ann/Ann_0001.jpg").unlink()
    with pytest.warns(UserWarning):
        fewer = lfw(LFW(tmp_path))
    assert fewer.missing == 3 and fewer.folds is not None
    assert fewer.folds.tolist() == [k // 2 for k in range(20) if k not in (0, 2, 16)]


def test_a_list_without_folds_says_so_in_the_report(tmp_path: Path) -> None:
    images(tmp_path / "faces", [f"{p}/{p}_{k:04d}.png" for p in ("Ann", "Ben") for k in (1, 2, 3)])
    (tmp_path / "pairs.txt").write_text("Ann 1 2\nAnn 1 Ben 2\nBen 1 2\nBen 3 Ann 3\n")
    faces = Folder(tmp_path / "faces", gray=True)
    plain = compare(listed_pairs(faces, tmp_path / "pairs.txt"), Projection(), faces, PRE, **OFF)
    assert "No accuracy, since the pairs have no folds." in plain.note("pairs")
    two = compare(listed_pairs(faces, tmp_path / "pairs.txt", folds=2), Projection(), faces, PRE, **OFF)
    assert "accuracy" in two.rows[0].metrics and "2 successive runs of the list" in two.note("pairs")
    (tmp_path / "folded.txt").write_text("Ann/Ann_0001 Ann/Ann_0002 1 0\nAnn/Ann_0001 Ben/Ben_0001 0 1\n")
    with pytest.raises(ValueError, match=r"folds: expected None .*has folds of its own"):
        listed_pairs(faces, tmp_path / "folded.txt", folds=2)


# -- pairs of one's own folder ---------------------------------------------------------------------------------


def test_drawn_pairs_keep_people_in_one_fold() -> None:
    faces = Squares(people=23, images=5)
    protocol = drawn_pairs(faces, folds=4, seed=1)
    assert protocol.people is not None and protocol.folds is not None
    index, folds, people = protocol.index, torch.as_tensor(protocol.folds), protocol.people
    assert torch.equal(protocol.same, faces.labels[index[:, 0]] == faces.labels[index[:, 1]])
    whose = [set(people[folds == fold].flatten().tolist()) for fold in range(4)]
    assert all(not a & b for k, a in enumerate(whose) for b in whose[:k])
    for fold in range(4):
        kinds = protocol.same[folds == fold]
        assert int(kinds.sum()) * 2 == len(kinds) > 0
    pairs = {frozenset(pair) for pair in index.tolist()}
    assert len(pairs) == len(index) and all(len(pair) == 2 for pair in pairs)
    again = drawn_pairs(faces, folds=4, seed=1)
    assert torch.equal(again.index, index) and not torch.equal(drawn_pairs(faces, folds=4, seed=2).index, index)


def test_drawn_pairs_are_spread_over_people_and_counted() -> None:
    faces = Squares(people=20, images=4)
    faces.labels = torch.tensor([0] * 30 + [k for k in range(1, 26) for _ in range(2)])
    faces.people = [f"p{k}" for k in range(26)]
    protocol = drawn_pairs(faces, 20, folds=2)
    same = protocol.people[protocol.same][:, 0]  # type: ignore[index]
    assert len(same) == 20 and same.bincount().max() == 1  # the person of 30 images gets no more than others
    with pytest.raises(ValueError, match=r"count: expected at most \d+ pairs of each kind in 2 folds, got 100000"):
        drawn_pairs(faces, 100_000, folds=2)
    with pytest.raises(ValueError, match="count: expected a multiple of folds = 2, got 5"):
        drawn_pairs(faces, 5, folds=2)
    with pytest.raises(ValueError, match="folds: expected at most 13: each fold needs two people"):
        drawn_pairs(faces, folds=14)
    with pytest.raises(
        ValueError, match=r"dataset: expected at least 4 people, 2 of them with several images, .* got 3"
    ):
        drawn_pairs(Subset(faces, [k for k, label in enumerate(faces.labels.tolist()) if label < 3]))
    with pytest.raises(TypeError, match="folds: expected an int"):
        drawn_pairs(faces, folds=2.0)  # type: ignore[arg-type]


# -- features of images and networks that have changed ---------------------------------------------------------


def counting(calls: list[int], **changed: object) -> nn.Module:
    class Counting(Projection):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    model = Counting()
    for name, value in changed.items():
        setattr(model, name, value)
    return model


def test_every_image_counts_for_stored_features(tmp_path: Path) -> None:
    from PIL import Image

    names = [f"{p}/{k}.png" for p in "abcd" for k in range(6)]
    images(tmp_path / "faces", names)
    calls: list[int] = []
    model = counting(calls)

    def run(wrap: bool) -> int:
        calls.clear()
        source = Folder(tmp_path / "faces", gray=True)
        faces = Resized(source, (24, 20)) if wrap else source
        compare(gallery_and_probes(faces), model, faces, PRE, checkpoint=tmp_path / "features", **OFF)
        return sum(calls)

    for wrap in (False, True):
        assert run(wrap) > 0 and run(wrap) == 0
        for name in (names[5], names[13]):  # neither the first, the middle nor the last
            path = tmp_path / "faces" / name
            before = path.stat()
            noise = np.random.default_rng(before.st_size + wrap).integers(0, 255, (24, 20), np.uint8)
            Image.fromarray(noise).save(path)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert run(wrap) > 0 and run(wrap) == 0
        for path in (tmp_path / "faces").rglob("*.png"):
            path.touch()
        assert run(wrap) == 0  # the same content


def test_the_code_of_a_network_counts_for_stored_features(tmp_path: Path) -> None:
    faces, protocol, calls = Squares(), pairs_of(Squares()), []

    def run(model: nn.Module) -> int:
        calls.clear()
        compare(protocol, model, faces, PRE, checkpoint=tmp_path, **OFF)
        return sum(calls)

    class Squared(Projection):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x).square()

    assert run(counting(calls)) > 0 and run(counting(calls)) == 0
    assert run(Squared()) > 0  # the same weights
    assert run(counting(calls, slope=0.5)) > 0 and run(counting(calls, slope=0.25)) > 0
    hooked = counting(calls)
    hooked.register_forward_hook(lambda module, given, out: out * 2 + 1)
    assert run(hooked) > 0 and run(counting(calls)) == 0


def scaled(x: Tensor) -> Tensor:
    return x * FACTOR


FACTOR = 2.0


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(x)


def test_functions_and_constants_that_a_network_uses_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_fingerprint(Helped())
    assert before == code_fingerprint(Helped()) and before is not None
    monkeypatch.setattr("tests.evaluate.test_cases.FACTOR", 3.0)
    assert code_fingerprint(Helped()) != before
    monkeypatch.undo()
    monkeypatch.setattr("tests.evaluate.test_cases.scaled", lambda x: x + 1)
    assert code_fingerprint(Helped()) != before
    a, b = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    assert code_fingerprint(a) != code_fingerprint(b)
    assert code_fingerprint(lambda x: x) is None


def test_a_data_sets_own_pixels_count() -> None:
    faces = Squares()
    before = image_digests(faces, range(24), progress=False)
    faces.images[7, 0, 3, 3] ^= 1
    after = image_digests(faces, range(24), progress=False)
    assert [k for k in range(24) if before[k] != after[k]] == [7]
    faces.landmarks = faces.landmarks.clone()
    faces.landmarks[9] += 0.5
    moved = image_digests(faces, range(24), progress=False)
    assert [k for k in range(24) if moved[k] != after[k]] == [9]


def test_start_anew(tmp_path: Path) -> None:
    faces, protocol, calls = Squares(), pairs_of(Squares()), []
    model = counting(calls)
    for resume in (True, False):
        calls.clear()
        compare(protocol, model, faces, PRE, checkpoint=tmp_path, resume=resume, **OFF)
        assert calls


# -- intervals and paired tests --------------------------------------------------------------------------------


def test_rank_intervals_resample_people() -> None:
    """All probes of a person are found, or none is: 400 probes are worth 20."""
    random = np.random.default_rng(0)
    people, each = 20, 20
    gallery = torch.from_numpy(np.eye(people))
    labels = np.repeat(np.arange(people), each)
    found = random.random(people) < 0.6
    probes = gallery[np.where(found[labels], labels, (labels + 1) % people)]
    by_people = identification(gallery, np.arange(people), probes, labels)
    by_probes = identification(gallery, np.arange(people), probes, labels, resamples=0)
    wide, narrow = by_people.rank_intervals[1], by_probes.rank_intervals[1]
    assert by_people.ranks == by_probes.ranks
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    spread = np.sqrt(found.mean() * (1 - found.mean()) / people)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


@pytest.mark.slow
def test_rank_intervals_cover_the_truth_where_people_differ() -> None:
    random = np.random.default_rng(1)
    people, each = 60, 12
    labels = np.repeat(np.arange(people), each)
    gallery = torch.from_numpy(np.eye(people))
    by_people = by_probes = 0
    for _ in range(200):
        skill = random.beta(2, 1, people)  # mean 2/3
        hit = random.random(people * each) < skill[labels]
        probes = gallery[np.where(hit, labels, (labels + 1) % people)]
        for resamples in (300, 0):
            low, high = identification(gallery, np.arange(people), probes, labels, resamples=resamples).rank_intervals[
                1
            ]
            covered = low <= 2 / 3 <= high
            by_people, by_probes = by_people + (covered and resamples > 0), by_probes + (covered and resamples == 0)
    assert by_people / 200 >= 0.9 > 0.85 > by_probes / 200


def test_two_networks_are_compared_in_pairs() -> None:
    faces = Squares(people=14)
    pairs = pairs_of(faces)
    pairs = replace(pairs, people=faces.labels[pairs.index])
    protocols = [pairs, gallery_and_probes(faces)]
    good, same = Projection(), Projection()
    bad = Projection()
    with torch.no_grad():
        bad.weight.copy_(torch.randn(480, 32, generator=torch.Generator().manual_seed(5)))
        bad.weight[10:] *= 0.02  # looks at ten pixels
    covers = {"eyes": Band("eyes")}
    reports = {
        name: compare(protocols, model, faces, PRE, covers, resamples=200, model_name=name, dataset_name="toy", **OFF)
        for name, model in (("good", good), ("same", same), ("bad", bad))
    }
    joined = Comparison.join(reports, resamples=200)
    assert joined.models == ["good", "same", "bad"] and joined.title.endswith("good, same, bad on toy")
    found = {(d.protocol, d.occlusion, d.second): d.difference for d in joined.differences}
    assert len(found) == 8
    for (protocol, occlusion, second), d in found.items():
        main = [reports[name][protocol, occlusion] for name in ("good", second)]
        name = next(iter(main[0].metrics))
        assert d.value == pytest.approx(main[1].metrics[name] - main[0].metrics[name], abs=1e-12)
        assert d.interval.low <= d.value <= d.interval.high and d.method == "bootstrap over people"
        assert (d.value, d.p_value) == (0, 1) if second == "same" else d.p_value <= 1
    clean = found["pairs", "clean", "bad"]
    assert clean.value < -0.05 and clean.interval.high < 0 and clean.p_value < 0.05
    about = json.loads(json.dumps(joined.as_dict(), allow_nan=False))
    assert len(about["differences"]) == 8 and {row["model"] for row in about["rows"]} == {"good", "same", "bad"}
    assert set(about["settings"]["models"]) == {"good", "same", "bad"} and about["settings"]["data"] == "toy"
    header, cells = joined.table("pairs")
    assert header[:4] == ["occlusion", "model", "accuracy", "cost"] and len(cells) == 6
    assert "bad − good" in joined.to_markdown() and "Paired differences" in joined.to_html()
    assert next(csv.reader(io.StringIO(joined.roc_csv()))) == [
        "protocol",
        "occlusion",
        "model",
        "far",
        "tar",
        "threshold",
    ]
    with pytest.raises(ValueError, match="expected the same protocols and occlusions, those of 'b' differ"):
        Comparison.join({"a": reports["good"], "b": compare(protocols, good, faces, PRE, resamples=20, **OFF)})


def test_paired_tests_without_people_are_the_textbooks() -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import roc_auc_score

    from occfast.evaluate.resampling import accuracy_difference, auc_difference

    random = np.random.default_rng(3)
    first, second = random.random(300) < 0.7, random.random(300) < 0.8
    d = accuracy_difference(first, second, None, None, confidence=0.95, resamples=1000)
    b, c = int((second & ~first).sum()), int((first & ~second).sum())
    assert d.value == pytest.approx((b - c) / 300) and d.p_value == pytest.approx(binomtest(b, b + c).pvalue)
    same = np.arange(400) < 150
    level = random.normal(size=400)
    scores = [level + apart * same + 0.5 * random.normal(size=400) for apart in (1.0, 1.4)]
    d = auc_difference(scores[0], scores[1], same, None, confidence=0.95, resamples=0)
    assert d.value == pytest.approx(roc_auc_score(same, scores[1]) - roc_auc_score(same, scores[0]))
    # DeLong's error is that of a bootstrap of pairs.
    drawn = []
    for _ in range(1000):
        rows = np.r_[random.integers(0, 150, 150), random.integers(150, 400, 250)]
        drawn.append(roc_auc_score(same[rows], scores[1][rows]) - roc_auc_score(same[rows], scores[0][rows]))
    assert (d.interval.high - d.interval.low) / (2 * 1.96) == pytest.approx(np.std(drawn), rel=0.1)
    assert d.method == "DeLong" and d.p_value < 0.05


# -- the report ------------------------------------------------------------------------------------------------


def test_a_far_that_the_pairs_cannot_support_is_marked() -> None:
    faces = Squares(people=12)
    row = compare(pairs_of(faces), Projection(), faces, PRE, **OFF)
    clean = row.rows[0].result
    assert clean.n_different < 1000
    assert not clean.tar_at_far[1e-4].supported and clean.tar_at_far[0.1].supported
    assert clean.tar_at_far[1e-4].tar == clean.tar_at_far[1e-3].tar  # both are the TAR at a FAR of 0
    assert row.rows[0].shown("TAR@FAR=0.0001").endswith("*") and not row.rows[0].shown("TAR@FAR=0.1").endswith("*")
    assert "* Fewer than 1 / FAR pairs of different people: the value is that at a FAR of 0." in row.note("pairs")
    assert clean.tar_at_far[1e-4].as_dict()["supported"] is False
    opened = gallery_and_probes(faces, impostors=0.3, fars=(0.001, 0.1))
    shown = compare(opened, Projection(), faces, PRE, **OFF)
    assert shown.rows[0].shown("DIR@FAR=0.001").endswith("*") and not shown.rows[0].shown("DIR@FAR=0.1").endswith("*")


def test_names_run_no_formula_and_add_no_html(tmp_path: Path) -> None:
    faces = Squares()
    protocol = replace(pairs_of(faces), name='=cmd|"/c calc"!A1<script>alert(1)</script>')
    covers = {"@SUM(1)|<b>x</b>": Band("eyes"), "$x_$": Block((5, 5))}
    report = compare(protocol, Projection(), faces, PRE, covers, model_name="<i>n</i>", dataset_name="a|b\n# c", **OFF)
    report.write(tmp_path)
    rows = list(csv.reader((tmp_path / "roc.csv").open(newline="")))
    assert {row[0][:2] for row in rows[1:]} == {"'="} and {row[1] for row in rows[1:]} >= {"clean", "'@SUM(1)|<b>x</b>"}
    assert all(not row[k].startswith(("=", "+", "-", "@")) for row in rows for k in (0, 1))
    text = (tmp_path / "report.md").read_text()
    assert "<" not in text.replace("&lt;", "") and "\n# c" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1  # no name adds a cell
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<b>x" not in page and "<i>n" not in page


def test_the_page_shows_what_matters_first() -> None:
    faces = Squares()
    covers = {"eyes": Band("eyes")}
    report = compare(
        [pairs_of(faces), gallery_and_probes(faces)],
        Projection(),
        faces,
        PRE,
        covers,
        model_name="net",
        dataset_name="lfw",
        **OFF,
    )
    assert report.table("pairs")[0][:3] == ["occlusion", "accuracy", "cost"]
    assert report.table("Identification, 1 gallery image per person")[0][:3] == ["occlusion", "rank-1", "cost"]
    page = report.to_html()
    assert "<h1>Accuracy under occlusion: net on lfw</h1>" in page and report.settings["date"] in page
    assert "color gray; mean 0.5; size 24 × 20; std 0.5" in page and '{"' not in page
    figure = report.figure("Identification, 1 gallery image per person")
    figure.canvas.draw()
    ticks = [tick for tick in figure.axes[0].get_xticks() if 1 <= tick <= 6]
    assert ticks and all(tick == round(tick) for tick in ticks)


def test_an_older_report_is_replaced_whole(tmp_path: Path) -> None:
    faces = Squares()
    compare([pairs_of(faces), gallery_and_probes(faces)], Projection(), faces, PRE, **OFF).write(tmp_path)
    compare(gallery_and_probes(faces), Projection(), faces, PRE, **OFF).write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curve-1.png",
        "report.html",
        "report.json",
        "report.md",
    ]


# -- networks of other formats ---------------------------------------------------------------------------------


def test_a_network_of_another_input_size_is_one_line() -> None:
    script = torch.jit.trace(Projection().eval(), torch.zeros(1, 1, 24, 20))
    faces = Squares()
    protocol: PairProtocol = pairs_of(faces)
    assert compare(protocol, script, faces, PRE, **OFF).rows[0].result.accuracy is not None
    with pytest.raises(ValueError, match=r"model: failed on images \[\d+, 1, 24, 22\]: .*shape.*give it as size="):
        compare(protocol, script, Resized(faces, (24, 22)), Preprocessing((24, 22), "gray"), **OFF)
