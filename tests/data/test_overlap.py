"""People who are in two data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from occfast import DataError
from occfast.data.overlap import Shared, read_exclude, shared_faces, shared_names, write_shared


def test_names_without_case_accents_and_what_is_between_words() -> None:
    found = shared_names(
        ["George_W_Bush", "José Álvarez", "Ann Lee", "1234", "Straße", "李 明"],
        ["george w. bush", "Jose_Alvarez", "Lee, Ann", "Anne Lee", "1234", "STRASSE", "李_明"],
    )
    assert found == [
        Shared("George_W_Bush", "george w. bush", "name"),
        Shared("José Álvarez", "Jose_Alvarez", "name"),
        Shared("Ann Lee", "Lee, Ann", "words"),
        Shared("Straße", "STRASSE", "name"),
        Shared("李 明", "李_明", "name"),
    ]
    assert shared_names([], ["a"]) == shared_names(["_"], ["-"]) == []


def test_faces_by_the_mean_of_their_features() -> None:
    centers = torch.nn.functional.normalize(torch.randn(12, 64))
    draw = lambda who: centers[who] + 0.05 * torch.randn(len(who), 64)  # noqa: E731
    first, second = torch.arange(8).repeat_interleave(3), torch.arange(5).repeat_interleave(2)
    names = [f"a{k}" for k in range(8)], [f"b{k}" for k in range(5)]
    for chunk in (3, 100):
        # Person k of the second set is person k + 6 of the pool: b0 is a6, b1 is a7.
        found = shared_faces(
            draw(first), first, names[0], draw(second + 6), second, names[1], threshold=0.6, chunk=chunk
        )
        assert sorted((s.person, s.matches) for s in found) == [("a6", "b0"), ("a7", "b1")]
        assert all(s.found_by == "similarity" and 0.6 <= s.similarity <= 1 for s in found)
    # People without an image have no mean and match nobody.
    some = shared_faces(draw(first[:3]), first[:3], names[0], draw(second), second, names[1])
    assert [(s.person, s.matches) for s in some] == [("a0", "b0")]


def test_list_to_exclude_goes_to_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "exclude.csv"
    write_shared(
        path, [Shared('Ann, "B"', "x", "name"), Shared("C", "y", "similarity", 0.81234), Shared("C", "z", "words")]
    )
    assert path.read_text().splitlines() == [
        "person,matches,found_by,similarity",
        '"Ann, ""B""",x,name,',
        "C,y,similarity,0.8123",
        "C,z,words,",
    ]
    assert read_exclude(path) == ['Ann, "B"', "C"]
    path.write_text("identity,similarity,likely_lfw_name\r\n7398,0.88,Oxana_Fedorova\r\n")
    assert read_exclude(path) == ["7398"]
    path.write_text("name\nAnn\n")
    with pytest.raises(DataError, match="line 1: expected a header"):
        read_exclude(path)


def test_one_clear_error() -> None:
    x, y = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="threshold: expected"):
        shared_faces(x, y, ["a", "b"], x, y, ["a", "b"], threshold=2)
    with pytest.raises(ValueError, match="second: expected features of 4 numbers"):
        shared_faces(x, y, ["a", "b"], torch.randn(2, 3), y, ["a", "b"])
    with pytest.raises(ValueError, match=r"first_labels: expected numbers in \[0, 1\)"):
        shared_faces(x, y, ["a"], x, y, ["a", "b"])
    with pytest.raises(ValueError, match="first: expected finite"):
        shared_faces(x / 0, y, ["a", "b"], x, y, ["a", "b"])
