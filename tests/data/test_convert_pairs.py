"""Lists of pairs as a ``.bin``: from the command to what evaluates it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from occfast import DataError, cli
from occfast.data import Aligned, Folder, VerificationBin, read_pairs
from occfast.data.convert import convert_pairs
from occfast.evaluate import embed, listed_pairs, packed_pairs
from occfast.models import Preprocessing
from tests.data.pictures import write_faces


@pytest.fixture
def faces(tmp_path: Path) -> Folder:
    write_faces(tmp_path / "faces", [f"{person}/{k}.jpg" for person in "ABCD" for k in range(5)], landmarks=True)
    lines = []
    for fold in (1, 0):  # folds that are not in order
        people = "AB" if fold else "CD"
        for k in range(4):
            lines.append(f"{people[0]}/{k}.jpg,{people[0]}/{k + 1}.jpg,1,{fold}")
            lines.append(f"{people[0]}/{k}.jpg,{people[1]}/{k}.jpg,0,{fold}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    return Folder(tmp_path / "faces")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["occfast", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_images_go_there_and_back(
    faces: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "pairs.bin"
    assert run(monkeypatch, "data", "bin", tmp_path / "pairs.csv", tmp_path / "faces", target, "-q") == 0
    assert f"{target}: 16 pairs, 8 of one person and 8 of two" in capsys.readouterr().out
    packed = VerificationBin(target)
    names = [f"{p}/{k}.jpg" for one, other in ("CD", "AB") for k in range(4) for p, k in _pair(one, other, k)]
    assert [packed.encoded(k) for k in range(32)] == [faces.encoded(faces.names.index(name)) for name in names]
    assert packed.same.tolist() == [True, False] * 8 and packed.alignment is None
    assert run(monkeypatch, "data", "bin", tmp_path / "pairs.csv", tmp_path / "faces", target, "-q") == 2
    assert f"{target}: expected a new file" in capsys.readouterr().err
    assert sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")) == ["pairs.bin"]


def _pair(one: str, other: str, k: int) -> list[tuple[str, int]]:
    return [(one, k), (one, k + 1), (one, k), (other, k)]


def test_an_aligned_one_evaluates_as_its_list(faces: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "pairs.bin"
    options = ("--template", "arcface-112", "--gray", "-q")
    assert run(monkeypatch, "data", "bin", tmp_path / "pairs.csv", tmp_path / "faces", target, *options) == 0
    aligned, packed = Aligned(faces, "arcface-112", gray=True), VerificationBin(target, gray=None)
    assert packed.alignment == aligned.alignment and packed[0].image.shape == (1, 112, 112)
    assert torch.equal(packed[0].image, aligned[faces.names.index("C/0.jpg")].image)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(112 * 112, 8))
    how = Preprocessing((112, 112), alignment=aligned.alignment.as_dict())
    results = []
    for dataset, protocol in (
        (aligned, listed_pairs(faces, tmp_path / "pairs.csv")),
        (packed, packed_pairs(packed, folds=2)),
    ):
        found = embed(model, dataset, how, progress=False).features
        results.append(protocol.evaluate(found, found, resamples=0))
    assert results[0].accuracy == results[1].accuracy and results[0].auc == results[1].auc < 1
    other = {**json.loads((tmp_path / "pairs.json").read_text()), "bin_bytes": 5}
    (tmp_path / "pairs.json").write_text(json.dumps(other))
    with pytest.warns(UserWarning, match=r"pairs.json is not used: .* expected the record of a file of"):
        assert VerificationBin(target).alignment is None
    (tmp_path / "pairs.json").write_text('{"people": ["A"]}')  # of a .rec of that name
    assert VerificationBin(target).alignment is None


def test_what_cannot_be_used_is_refused_or_listed(
    faces: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces" / "A" / "1.jpg").write_bytes(faces.encoded(1)[:300])
    (tmp_path / "faces" / "D" / "0.jpg").unlink()
    target = tmp_path / "pairs.bin"
    arguments = ("data", "bin", tmp_path / "pairs.csv", tmp_path / "faces", target, "-q")
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert (
        "1 of 16 pairs name an image that is not there, the first is line 10: D/0.jpg" in error
        and len(error.splitlines()) == 1
    )
    assert run(monkeypatch, *arguments, "--skip", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] == 12 and result["same"] == 6 and set(result["left_out"]) == {"line 10", "A/1.jpg"}
    assert len(VerificationBin(target).same) == 12
    for arguments, message in (
        ((tmp_path / "pairs.csv", tmp_path / "faces", tmp_path / "pairs.npz"), "expected a name that ends in .bin"),
        ((tmp_path / "pairs.csv", tmp_path / "faces", target, "--gray"), "--gray: expected together with --template"),
    ):
        assert run(monkeypatch, "data", "bin", *arguments, "-q", "--skip") == 2
        assert message in capsys.readouterr().err


def test_an_interrupted_writing_leaves_no_file_and_starts_again(faces: Folder, tmp_path: Path) -> None:
    pairs, target = read_pairs(tmp_path / "pairs.csv").resolve(faces), tmp_path / "pairs.bin"

    def stop(done: int, total: int | None) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_pairs(Aligned(faces, "arcface-112"), pairs, target, progress=stop)
    assert not target.exists() and not (tmp_path / "pairs.json").exists()
    assert len(VerificationBin(convert_pairs(faces, pairs, target, progress=False)).same) == 16
    (tmp_path / "faces" / "A" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"A/1.jpg"):
        convert_pairs(faces, pairs, tmp_path / "other.bin", progress=False)
    assert not (tmp_path / "other.bin").exists()
