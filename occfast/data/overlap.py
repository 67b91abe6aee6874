"""People who occur in two data sets. Accuracy on people of the training set is too optimistic."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..files import write_atomically
from .lists import read_lines

_COLUMNS = ("person", "matches", "found_by", "similarity")


@dataclass(frozen=True)
class Shared:
    """A person of the first data set who also seems to be in the second.

    Attributes:
        person: name in the first set, from which people are excluded.
        matches: name in the second set.
        found_by: "name", "words" (the same words in another order) or "similarity".
        similarity: cosine similarity of the mean features; None if found by name.
    """

    person: str
    matches: str
    found_by: Literal["name", "words", "similarity"]
    similarity: float | None = None


def shared_names(first: Iterable[str], second: Iterable[str]) -> list[Shared]:
    """Find people of both sets by name, regardless of case, accents and punctuation.

    ``George_W_Bush``, ``george w. bush`` and ``Bush, George W.`` are one name; the last is reported as found by its
    words. Names that consist of numbers mean different people in different sets and are not compared.
    """
    by_name: dict[tuple[str, ...], list[str]] = {}
    by_words: dict[tuple[str, ...], list[str]] = {}
    for name in second:
        words = _words(name)
        by_name.setdefault(words, []).append(name)
        by_words.setdefault(tuple(sorted(words)), []).append(name)
    found: list[Shared] = []
    for name in first:
        words = _words(name)
        if all(word.isdecimal() for word in words):
            continue
        same = by_name.get(words, [])
        found += [Shared(name, other, "name") for other in same]
        found += [Shared(name, other, "words") for other in by_words.get(tuple(sorted(words)), []) if other not in same]
    return found


def _words(name: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return tuple("".join(c if c.isalnum() else " " for c in plain).split())


def shared_faces(
    first: Tensor,
    first_labels: Tensor,
    first_people: Sequence[str],
    second: Tensor,
    second_labels: Tensor,
    second_people: Sequence[str],
    *,
    threshold: float = 0.6,
    chunk: int = 4096,
) -> list[Shared]:
    """Find people of both sets by the cosine similarity of their mean normalized features, most similar first.

    Args:
        first, second: features, float [N, D] and [M, D].
        first_labels, second_labels: numbers of the people, int64 [N] and [M].
        first_people, second_people: names of the people.
        threshold: smallest cosine similarity, in [-1, 1]. A good value depends on the network: inspect the result.
        chunk: number of people of the first set that are compared at a time.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [-1, 1], got {threshold}")
    a, a_people = _means(first, first_labels, first_people, "first")
    b, b_people = _means(second, second_labels, second_people, "second")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"second: expected features of {a.shape[1]} numbers as in first, got {b.shape[1]}")
    found = []
    for start in range(0, len(a), chunk):
        cosine = a[start : start + chunk] @ b.T
        for i, j in (cosine >= threshold).nonzero().tolist():
            found.append(Shared(a_people[start + i], b_people[j], "similarity", float(cosine[i, j])))
    return sorted(found, key=lambda entry: (-(entry.similarity or 0.0), entry.person, entry.matches))


def _means(features: Tensor, labels: Tensor, people: Sequence[str], name: str) -> tuple[Tensor, list[str]]:
    """Return a normalized mean for each person with features, and the names of these people."""
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        shapes = f"{list(features.shape)} and {list(labels.shape)}"
        raise ValueError(f"{name}: expected features [N, D] and labels [N], got {shapes}")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= len(people)):
        raise ValueError(f"{name}_labels: expected numbers in [0, {len(people)}), got up to {int(labels.max())}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name}: expected finite features")
    present, index = labels.unique(return_inverse=True)
    sums = torch.zeros(len(present), features.shape[1], dtype=features.dtype, device=features.device)
    sums.index_add_(0, index, F.normalize(features))
    return F.normalize(sums), [people[k] for k in present.tolist()]


def write_shared(path: str | os.PathLike[str], shared: Sequence[Shared]) -> Path:
    """Write a CSV file with a header, ``person,matches,found_by,similarity``; :func:`read_exclude` reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for entry in shared:
        cosine = "" if entry.similarity is None else f"{entry.similarity:.4f}"
        writer.writerow((entry.person, entry.matches, entry.found_by, cosine))
    return write_atomically(path, text.getvalue().encode())


def read_exclude(path: str | os.PathLike[str]) -> list[str]:
    """Read the people to leave out, for the ``exclude`` argument of a data set.

    They are the first column of a CSV file whose header begins with ``person`` or ``identity``.

    Raises:
        DataError: if the file cannot be read or has no such header.
    """
    lines = read_lines(Path(path))
    try:
        rows = list(csv.reader(line for _, line in lines))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    if not rows or rows[0][0].strip() not in ("person", "identity"):
        raise DataError(f"{path}, line 1: expected a header that begins with person or identity")
    return list(dict.fromkeys(row[0] for row in rows[1:] if row))
