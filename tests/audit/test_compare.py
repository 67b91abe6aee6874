"""Two recognizers beside each other, and the gate."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from occfast.audit import Audit, AuditRecord, Covering, Figure, audit, compare, gate
from occfast.audit.figures import RANK_1, Resampled, fnmr_at, from_json, to_json
from occfast.audit.page import comparison_page
from occfast.audit.paired import differences
from occfast.data import WithLandmarks
from occfast.errors import DataError
from occfast.models import Preprocessing
from occfast.occlude import named_occlusion
from tests.audit.test_audit import HOW, SIZE, Net, faces, folder  # noqa: F401 - fixtures
from tests.browser import CHROMIUM, look
from tests.evaluate.test_protocols import Done, occfast  # noqa: F401 - a fixture

MAIN = fnmr_at(0.01)


class Worse(Net):
    """The same network on images with noise that depends on their pixels."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.sin(1e4 * x.flatten(1).sum(1))[:, None, None, None] * torch.sin(
            torch.arange(x.shape[2] * x.shape[3]).float() ** 2
        ).reshape(1, 1, x.shape[2], x.shape[3])
        return self.body(x + 2.0 * noise)


def audited(faces: WithLandmarks, network: nn.Module, how: Preprocessing = HOW, **settings: object) -> Audit:  # noqa: F811
    usual = {"fmr": 0.01, "fmrs": (0.1,), "resamples": 200, "map_images": 6, "curve": False, "progress": False}
    coverings = [Covering(name, named_occlusion(name)) for name in ("sunglasses", "mouth")]
    return audit(network.eval(), faces, how, coverings, **{**usual, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def first(faces: WithLandmarks, tmp_path_factory: pytest.TempPathFactory) -> Audit:  # noqa: F811
    return audited(faces, Net(), model_name="good", checkpoint=tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="module")
def second(faces: WithLandmarks, tmp_path_factory: pytest.TempPathFactory) -> Audit:  # noqa: F811
    return audited(faces, Worse(), model_name="bad", checkpoint=tmp_path_factory.mktemp("b"))


@pytest.fixture(scope="module")
def files(first: Audit, second: Audit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("audits")
    first.write(place / "good")
    second.write(place / "bad")
    return place / "good" / "audit.json", place / "bad" / "audit.json"


@pytest.mark.parametrize("alternative", ["two-sided", "worse"])
def test_differences_equal_the_definition(alternative: str) -> None:
    random = np.random.default_rng(0)
    figures = [Figure("uncovered", MAIN), Figure("eyes", MAIN), Figure("eyes", RANK_1), Figure("mouth", MAIN)]
    draws = random.normal(0.3, 0.02, (2, 4, 99))
    draws[1, 1] += 0.1
    draws[1, 3] = draws[0, 3]  # equal everywhere
    draws[:, :, 5] = np.nan  # nobody with two images was drawn
    one, two = ({f: Resampled(float(np.nanmean(d)), d) for f, d in zip(figures, draw, strict=True)} for draw in draws)
    found = differences(one, two, people=20, level=0.1, alternative=alternative)  # type: ignore[arg-type]
    apart = np.delete(draws[1] - draws[0], 5, axis=1)
    error = apart.std(1, ddof=1)
    sign = np.array([1, 1, -1, 1.0])[:, None]
    largest = []
    for b in range(98):
        each = [sign[k, 0] * (apart[k, b] - apart[k].mean()) / error[k] for k in range(3)] + [0.0]
        largest.append(max(map(abs, each)) if alternative == "two-sided" else max(each))
    for k, d in enumerate(found):
        t = 0.0 if k == 3 else sign[k, 0] * d.value / error[k]
        t = abs(t) if alternative == "two-sided" else t
        t = stats.norm.ppf(
            stats.t.cdf(t * np.sqrt(19 / 20), 19)
        )  # as likely by chance: 20 people's deviation is estimated
        assert d.p_value == pytest.approx((1 + sum(x >= t - 1e-12 for x in largest)) / 99)
        assert d.significant == (d.p_value <= 0.1)
        outside = not d.interval.low <= 0 <= d.interval.high
        assert d.significant == outside
    assert found[1].significant and found[1].second_is_worse
    assert found[3].p_value == 1.0 and found[3].interval == ((0.0, 0.0) if alternative == "two-sided" else (0, np.inf))


def test_a_loss_without_exception_is_significant() -> None:
    figures = {Figure("eyes", RANK_1): Resampled(1.0, np.ones(100))}
    lost = {Figure("eyes", RANK_1): Resampled(0.0, np.zeros(100))}
    (found,) = differences(figures, lost, people=5, alternative="worse")
    assert found.significant and found.second_is_worse and found.interval.high == -1.0


@pytest.mark.parametrize("people", [8, 20])
def test_few_people_raise_no_more_false_alarms(people: int) -> None:
    """Means over people of six figures, whose resamples know the deviation only as well as people allow."""
    random = np.random.default_rng(0)
    figures = [Figure(str(k), MAIN) for k in range(6)]
    failed = 0
    for _ in range(400):
        times = random.multinomial(people, np.full(people, 1 / people), size=199) / people
        apart = 0.1 * (random.normal(size=(people, 1)) + random.normal(size=(people, 6)))
        one = {f: Resampled(0.0, np.zeros(199)) for f in figures}
        two = {f: Resampled(float(apart[:, k].mean()), times @ apart[:, k]) for k, f in enumerate(figures)}
        failed += any(d.significant for d in differences(one, two, people=people, alternative="worse"))
    assert 8 <= failed <= 34  # 5 % are 20, whose standard deviation is 4.4; without Student's t it is up to 16 %


def test_a_level_below_every_p_value_is_refused(files: tuple[Path, Path]) -> None:
    good, bad = files
    with pytest.raises(ValueError, match=r"level: expected at least 0.005, the smallest p-value of 200 resamples, got"):
        gate(bad, good, level=0.004)
    assert not gate(bad, good, level=1 / 201).passed


def test_intervals_end_where_rates_do() -> None:
    random = np.random.default_rng(0)
    one = {Figure("eyes", RANK_1): Resampled(0.95, np.full(100, 0.95))}
    two = {Figure("eyes", RANK_1): Resampled(0.1, random.normal(0.1, 0.2, 100))}
    (found,) = differences(one, two, people=5)
    assert found.interval.low == -1.0 and -0.85 < found.interval.high < 0.5


def test_differences_are_those_of_the_audits(first: Audit, second: Audit) -> None:
    result = compare(first, second)
    by_figure = {d.figure: d for d in result.differences}
    for mine, theirs in zip(first.conditions, second.conditions, strict=True):
        d = by_figure[Figure(mine.name, MAIN)]
        assert d.value == theirs.fnmr[0.01].value - mine.fnmr[0.01].value
        assert by_figure[Figure(mine.name, RANK_1)].value == theirs.rank1.value - mine.rank1.value
        assert d.second_is_worse and d.interval.low <= d.value <= d.interval.high
        assert d.significant or mine.name == "mouth"  # with a band over the mouth, the better one fails often, too
    reverse = {d.figure: d for d in compare(second, first).differences}
    for figure, d in by_figure.items():
        assert reverse[figure].value == -d.value and reverse[figure].p_value == d.p_value
        assert reverse[figure].interval == pytest.approx((-d.interval.high, -d.interval.low))
    text = " ".join(result.sentences)
    assert "Uncovered, bad rejects" in text and "more genuine pairs than good at FMR 0.01" in text
    assert "With sunglasses, bad rejects" in text and "fewer probes than good at rank 1" in text
    assert "preprocessing" not in text


def test_pages(first: Audit, second: Audit, tmp_path: Path) -> None:
    result = compare(first, second)
    page = result.write(tmp_path).read_text()
    about = json.loads((tmp_path / "compare.json").read_text())
    assert about["sentences"] == result.sentences and len(about["differences"]) == len(first.figures)
    assert about["maps"]["images"] == 6 and result.sentences[0] in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and page.count("data:image/png") == 2
    assert "simultaneous 95 % intervals" in (tmp_path / "compare.md").read_text()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("how", [{"dark": True}, {"width": 390}], ids=["dark", "phone"])
def test_a_browser_shows_it(first: Audit, second: Audit, tmp_path: Path, how: dict[str, Any]) -> None:
    bad = replace(second, settings={**second.settings, "model_name": "<script>alert(1)</script>"})
    result = compare(first, bad)
    found = look(result.write(tmp_path), tmp_path, **how)
    assert found["broken"] == [] and len(found["images"]) == 2
    assert found["outside"] == [] and found["scripts"] == 0 and not found["wide"]
    assert result.sentences[0] in found["text"]
    header, rows = result.table()
    assert found["tables"]["differences"] == [header, *(cells for cells, _ in rows)]


def test_maps_are_the_second_minus_the_first(first: Audit, second: Audit) -> None:
    result = compare(first, second)
    assert result.maps is not None and first.map is not None and second.map is not None
    np.testing.assert_allclose(result.maps.difference.values, second.map.values - first.map.values, atol=1e-6)


def test_each_keeps_its_own_preprocessing(faces: WithLandmarks, first: Audit) -> None:  # noqa: F811
    scaled = audited(faces, Worse(), Preprocessing(SIZE, "gray", mean=0.3, std=0.2), model_name="<b>scaled</b>")
    result = compare(first, scaled)
    assert set(result.differing) == {"mean", "std"} and result.maps is not None
    assert "preprocessing differs (mean, std); each keeps its own" in " ".join(result.sentences)
    assert "<b>" not in comparison_page(result) and "&lt;b&gt;scaled" in comparison_page(result)
    flipped = audited(faces, Net(), map_images=0, flip="sum", model_name="good")
    assert compare(first, flipped).names == ("A (good)", "B (good)")


def test_equal_recognizers_do_not_differ(faces: WithLandmarks, first: Audit, tmp_path: Path) -> None:  # noqa: F811
    again = audited(faces, Net(), model_name="again", checkpoint=tmp_path)
    result = compare(first, again)
    assert not any(d.significant for d in result.differences) and {d.p_value for d in result.differences} == {1.0}
    assert (
        "do not differ clearly" in result.sentences[0] and "do not differ clearly at any place" in result.sentences[-1]
    )
    first.write(tmp_path / "1")
    again.write(tmp_path / "2")
    assert gate(tmp_path / "2" / "audit.json", tmp_path / "1" / "audit.json").passed


def test_figures_survive_their_file(first: Audit, files: tuple[Path, Path]) -> None:
    record = AuditRecord.read(files[0])
    assert list(record.figures) == list(first.figures) and record.name == "good"
    for figure, found in first.figures.items():
        assert record.figures[figure].value == found.value
        np.testing.assert_allclose(record.figures[figure].drawn, found.drawn, rtol=1e-6, atol=1e-12)
    assert files[0].stat().st_size < 100_000
    with_nan = {Figure("eyes", MAIN): Resampled(0.25, np.array([0.5, np.nan]))}
    np.testing.assert_array_equal(from_json(to_json(with_nan), 2)[Figure("eyes", MAIN)].drawn, [0.5, np.nan])


def test_the_gate(files: tuple[Path, Path]) -> None:
    good, bad = files
    failed, passed = gate(bad, good), gate(good, bad)
    assert passed.passed and not failed.passed
    assert passed.sentences[0].startswith("good passes: none of")
    assert failed.sentences[0].startswith("bad fails:") and len(failed.sentences) == 1 + len(failed.worse)
    assert {d.figure.covering for d in failed.worse} == {"uncovered", "sunglasses", "mouth"}
    suite = ElementTree.fromstring(failed.to_junit()).find("testsuite")
    assert suite is not None and int(suite.attrib["tests"]) == len(failed.differences) == len(suite)
    assert int(suite.attrib["failures"]) == len(failed.worse) == len(suite.findall("testcase/failure"))
    assert len(ElementTree.fromstring(passed.to_junit()).findall(".//failure")) == 0
    assert "FAILED" in failed.to_markdown() and "**worse**" in failed.to_markdown()
    assert "passed" in passed.to_markdown() and "**worse**" not in passed.to_markdown()
    with pytest.raises(ValueError, match="level: expected"):
        gate(good, bad, level=0.0)


def test_the_gate_refuses_what_can_not_be_compared(
    faces: WithLandmarks,  # noqa: F811
    files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    good = files[0]

    def other(name: str, source: WithLandmarks = faces, **settings: object) -> Path:
        audited(source, Net(), map_images=0, **settings).write(tmp_path / name)  # type: ignore[arg-type]
        return tmp_path / name / "audit.json"

    fewer = faces.select(people=list(faces.people)[:12])
    with pytest.raises(ValueError, match=r"--baseline: expected an audit of the same images .* 48 images of 12 people"):
        gate(good, other("fewer", fewer))  # type: ignore[arg-type]
    for name, settings, message in (
        ("fmr", {"fmr": 0.02}, "got --fmr 0.02 in"),
        ("both", {"both": True}, "got covered both images of a pair in"),
        ("seed", {"seed": 1}, "got seed 1 in"),
        ("resamples", {"resamples": 150}, "got number of resamples 150 in"),
    ):
        with pytest.raises(ValueError, match=f"--baseline: expected an audit by the same protocol, {message}"):
            gate(good, other(name, **settings))

    content = json.loads(good.read_text())

    def refused(message: str, **changes: object) -> None:
        (tmp_path / "x.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(DataError, match=message):
            gate(good, tmp_path / "x.json")

    refused("expected an audit.json of occfast audit", kind="occfast.report")
    refused("written in format 2 by another version of occfast; this version reads format 3", format=2)
    refused("damaged audit", resamples=[])
    refused("damaged audit", resamples=[{**content["resamples"][0], "drawn": "AAAA"}])
    refused("damaged audit", settings={})
    for name, value in (
        ("images", "many"),
        ("people", None),
        ("people with genuine pairs", 1),
        ("people with genuine pairs", True),
        ("model_name", ["a"]),
        ("preprocessing", {}),
        ("pixels", 5),
        ("resamples", 10),
    ):
        refused(rf"x.json: damaged audit \(.*{name.split()[0]}", settings={**content["settings"], name: value})
    refused(r"damaged audit \(condition: ", conditions=[{**content["conditions"][0], "name": None}])
    refused("expected a rate, got True", resamples=[{**content["resamples"][0], "value": True}])
    del content["format"]
    refused("written in format 1 by another version")  # before audits stored their resamples
    with pytest.raises(DataError, match="can't be read"):
        gate(good, tmp_path / "none.json")
    with pytest.raises(ValueError, match="second: expected an audit by the same protocol, got coverings"):
        one, two = (
            audit(Net().eval(), faces, HOW, c, fmr=0.01, resamples=100, map_images=0, curve=False, progress=False)
            for c in ([], [Covering("eyes", named_occlusion("eyes"))])
        )
        compare(one, two)


def test_the_gate_names_preprocessing_that_differs(
    faces: WithLandmarks,  # noqa: F811
    files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    how = Preprocessing(SIZE, "gray", mean=0.3, std=0.2)
    audited(faces, Net(), how, map_images=0, model_name="scaled").write(tmp_path)
    result = gate(tmp_path / "audit.json", files[0])
    assert result.sentences[-1] == "Their preprocessing differs (mean, std); each keeps its own."
    assert result.as_dict()["preprocessing"] == {"mean": [HOW.mean, 0.3], "std": [HOW.std, 0.2]}
    assert "preprocessing" not in " ".join(gate(files[1], files[0]).sentences)


def test_hostile_names_stay_in_their_line(
    first: Audit,
    faces: WithLandmarks,  # noqa: F811
    files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    name = "a|b\n# c\x1b[31m\udcff.onnx"
    again = audited(faces, Net(), map_images=0, model_name=name, dataset_name=name)
    again.write(tmp_path / "a")
    compare(first, replace(again, map=None)).write(tmp_path / "b")
    result = gate(tmp_path / "a" / "audit.json", files[0])
    (tmp_path / "g.md").write_bytes(result.to_markdown().encode())
    shown = r"a|b\n# c\x1b[31m\udcff.onnx"
    assert result.name == shown and ElementTree.fromstring(result.to_junit()) is not None
    for path in ("a/audit.md", "a/audit.html", "b/compare.md", "b/compare.html", "g.md"):
        text = (tmp_path / path).read_text()
        assert shown in text and "\x1b" not in text, path


def test_maps_of_too_few_images_are_not_tested(faces: WithLandmarks, first: Audit) -> None:  # noqa: F811
    few = [audited(faces, network, map_images=5) for network in (Net(), Worse())]
    result = compare(*few)
    assert result.maps is None and "of 5 images, no difference can be significant; 6 images" in result.no_maps
    assert compare(*few, level=0.1).maps is not None


def test_features_of_zeros_are_named(faces: WithLandmarks) -> None:  # noqa: F811
    class Dark(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * (x[:, :, 20, 10:14].std(-1) > 0.01).float()  # a band over the mouth is even

    message = r"model: expected features that are not all 0, got \d+ of 80 that are, with mouth: person \d\d/\d.png"
    with pytest.raises(ValueError, match=message):
        audited(faces, Dark(), map_images=0)


def test_command_lines(folder: Path, tmp_path: Path, occfast) -> None:  # noqa: F811
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    for name, network in (("good.pt", Net()), ("bad.pt", Worse()), ("flat.pt", Flat())):
        torch.jit.script(network.eval()).save(str(tmp_path / name))  # type: ignore[no-untyped-call]
    how = ("--color", "gray", "--size", "28x24", "--resize", "--fmr", 0.01, "--bootstrap", 100, "--map-images", 2)
    how += ("--no-curve", "-q")
    done: Done = occfast("compare", tmp_path / "good.pt", tmp_path / "bad.pt", folder, *how)
    assert done.returncode == 0, done.stderr
    assert "bad.pt rejects" in done.stdout and (tmp_path / "compare" / "compare.html").is_file()
    good, bad = (tmp_path / "compare" / name / "audit.json" for name in "ab")
    again = occfast("compare", tmp_path / "good.pt", tmp_path / "bad.pt", folder, *how)
    assert again.returncode == 2 and "--resume continues the run" in again.stderr
    failed = occfast("gate", bad, "--baseline", good, "--junit", tmp_path / "j.xml", "--markdown", tmp_path / "g.md")
    assert failed.returncode == 1 and "bad.pt fails" in failed.stdout and not failed.stderr
    assert "<failure" in (tmp_path / "j.xml").read_text() and "FAILED" in (tmp_path / "g.md").read_text()
    assert occfast("gate", good, "--baseline", bad, "--json").returncode == 0
    wrong = occfast("gate", good, "--baseline", tmp_path / "compare" / "compare.json")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "expected an audit.json" in wrong.stderr
    flat = occfast("compare", tmp_path / "good.pt", tmp_path / "flat.pt", folder, *how, "-o", tmp_path / "flat")
    assert flat.returncode == 2 and "B (" in flat.stderr and "expected features [2, D]" in flat.stderr
    (tmp_path / "old" / "a").mkdir(parents=True)
    (tmp_path / "old" / "a" / "audit.json").write_text("{}")
    old = occfast("compare", tmp_path / "good.pt", tmp_path / "bad.pt", folder, *how, "-o", tmp_path / "old")
    assert old.returncode == 2 and "audit.json is an audit: --resume continues the run" in old.stderr
    file = occfast("compare", "a", "b", folder, "-o", tmp_path / "good.pt")
    assert file.returncode == 2 and "--output: expected a folder, got" in file.stderr
    rare = occfast("compare", "a", "b", folder, "--level", 1e-4)
    assert rare.returncode == 2 and "--level: expected at least 0.001, the smallest p-value" in rare.stderr
    over = occfast("gate", bad, "--baseline", good, "--junit", good)
    assert over.returncode == 2 and "--junit: expected a file of its own, got" in over.stderr
    assert json.loads(good.read_text())["kind"] == "occfast.audit"
    thrice = occfast("compare", "a", "b", folder, "--size", "1x1", "--size", "1x1", "--size", "1x1")
    assert thrice.returncode == 2 and "--size: expected one value for both recognizers" in thrice.stderr
