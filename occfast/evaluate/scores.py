"""Check similarity scores, compute them from features, normalize them by a cohort, and read them from a file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import checks
from ..data.lists import read_lines
from ..errors import DataError

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
#: Numbers in a sequence, a NumPy array, a tensor, or any array with ``__dlpack__``.
Values = ArrayLike | Tensor | checks.SupportsDLPack
#: Features in a tensor, or in any array with ``__dlpack__``.
Features = Tensor | checks.SupportsDLPack

#: Score normalization by the reference's cohort scores, by the probe's, or by the mean of both.
Normalization = Literal["z", "t", "s"]


def as_array(values: Values, name: str) -> NDArray[Any]:
    """Convert a tensor, an array or a sequence to a NumPy array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy())
    if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        return as_array(checks.as_tensor(cast(checks.SupportsDLPack, values), name), name)
    return np.asarray(cast(ArrayLike, values))


def check_scores(scores: Values, name: str = "scores") -> Floats:
    """Return scores as floats, [P]; float32 and float64 are kept, other types become float64.

    Raises:
        TypeError: The scores are not real numbers.
        ValueError: There are no scores, they have more than one dimension, or one is NaN or infinite.
    """
    array = as_array(scores, name)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one dimension and at least one score, got shape {list(array.shape)}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{name}: expected finite numbers, got {array[bad]} at index {bad}")
    return array


def check_same(same: Values, count: int, name: str = "same") -> Bools:
    """Return pair labels as bool, [P]; 0 and 1 are accepted.

    Raises:
        TypeError: The labels are neither booleans nor integers.
        ValueError: Their number differs from ``count``, a value is not 0 or 1, or all pairs are of one kind.
    """
    array = as_array(same, name)
    if array.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected booleans (or 0 and 1), got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name}: expected shape [{count}], one entry for each score, got {list(array.shape)}")
    if array.dtype.kind != "b":
        if array.size and (int(array.min()) < 0 or int(array.max()) > 1):
            raise ValueError(f"{name}: expected 0 and 1, got numbers from {array.min()} to {array.max()}")
        array = array.astype(np.bool_)
    if array.all() or not array.any():
        kind = "the same person" if array.all() else "different people"
        raise ValueError(f"{name}: expected pairs of both kinds, got {count} pairs of {kind} only")
    return array


def check_features(features: Features, name: str) -> Tensor:
    """Return features scaled to unit length, float [N, D], so that dot products are cosines.

    Raises:
        TypeError: The features are not floating point.
        ValueError: The shape is wrong, or a feature has NaN or length 0.
    """
    x = checks.as_tensor(features, name).detach()
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected floating-point features, got {str(x.dtype).removeprefix('torch.')}")
    if x.dim() != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"{name}: expected shape [N, D], got {list(x.shape)}")
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    length = x.norm(dim=1)
    bad = ~(length.isfinite() & (length > 0))
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: expected finite features that are not all 0, got length {float(length[k]):g} in row {k}"
        )
    return F.normalize(x)


def pair_scores(a: Features, b: Features, first: Values, second: Values, *, chunk: int = 65_536) -> Tensor:
    """Compute the cosine similarity of row ``first[p]`` of ``a`` and row ``second[p]`` of ``b`` for each pair p.

    Peak memory beyond the result is that of two chunks of features.

    Args:
        a: Features, float [N, D]; need not be normalized.
        b: Features, float [M, D], on the same device.
        first: Row of ``a`` for each pair, int64 [P].
        second: Row of ``b`` for each pair, int64 [P].
        chunk: Number of pairs per step.

    Returns:
        float32 [P] (float64 for float64 features), on the device of the features.

    Raises:
        TypeError: The features are not floating point, or the rows not int64.
        ValueError: Shapes differ, a row is out of range, or a feature has NaN or length 0.
    """
    x = check_features(a, "a")
    y = x if b is a else check_features(b, "b")
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        raise ValueError(f"b: expected {x.dtype} [M, {x.shape[1]}] as of a, got {y.dtype} {list(y.shape)}")
    i, j = (_indices(v, n, name).to(x.device) for v, n, name in ((first, len(x), "first"), (second, len(y), "second")))
    if i.shape != j.shape:
        raise ValueError(f"second: expected shape {list(i.shape)} as of first, got {list(j.shape)}")
    parts = zip(i.split(chunk), j.split(chunk), strict=True)
    return torch.cat([(x[p] * y[q]).sum(1) for p, q in parts])


def _indices(values: Values, limit: int, name: str) -> Tensor:
    index = torch.as_tensor(values)
    if index.dtype != torch.int64 or index.dim() != 1 or index.numel() == 0:
        raise TypeError(f"{name}: expected int64 [P] with P at least 1, got {index.dtype} {list(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= limit:
        raise ValueError(f"{name}: expected rows in [0, {limit}), got {int(index.min())} to {int(index.max())}")
    return index


def normalized_scores(
    scores: Values,
    first: Features,
    second: Features,
    cohort: Features,
    method: Normalization = "s",
    *,
    top: int | None = None,
) -> Tensor:
    """Normalize scores by a cohort (Auckenthaler et al. 2000; adaptive: Matějka et al. 2017).

    With μ and σ the mean and standard deviation of the cosine similarities of one side of a pair to the cohort:

    - ``"z"``: (score − μ_first) / σ_first, where the first side is the reference;
    - ``"t"``: (score − μ_second) / σ_second, where the second side is the probe;
    - ``"s"``: the mean of both.

    Args:
        scores: Cosine similarities, float [P].
        first: Features of the first side of each pair, float [P, D].
        second: Features of the second side of each pair, float [P, D].
        cohort: Features of people who appear in no pair, float [K, D], K at least 2.
        method: "z", "t" or "s".
        top: Number of most similar cohort members to use for each side (adaptive normalization). Default: all.

    Returns:
        float64 [P].

    Raises:
        ValueError: Shapes differ, ``top`` is out of range, or a side has the same similarity to the whole cohort.
    """
    checks.choice(method, "method", ("z", "t", "s"))
    score = torch.from_numpy(check_scores(scores)).double()
    others = check_features(cohort, "cohort")
    if len(others) < 2:
        raise ValueError(f"cohort: expected at least 2 features, got {len(others)}")
    if top is not None:
        checks.integer(top, "top", 2, len(others))
    out = torch.zeros_like(score)
    sides = {"z": [(first, "first")], "t": [(second, "second")], "s": [(first, "first"), (second, "second")]}[method]
    for side, name in sides:
        x = check_features(side, name)
        if x.shape != (len(score), others.shape[1]):
            raise ValueError(f"{name}: expected shape [{len(score)}, {others.shape[1]}], got {list(x.shape)}")
        mean, std = (torch.empty_like(score) for _ in range(2))
        for part in torch.arange(len(score)).split(4096):
            to_cohort = (x[part.to(x.device)] @ others.T).double()
            if top is not None:
                to_cohort = to_cohort.topk(top, dim=1).values
            std[part], mean[part] = (v.cpu() for v in torch.std_mean(to_cohort, dim=1, correction=0))
        if not bool((std > 0).all()):
            raise ValueError("cohort: expected features that differ, all of them have the same similarity to a face")
        out += (score - mean) / std / len(sides)
    return out


def read_scores(path: str | os.PathLike[str]) -> tuple[NDArray[np.float64], Bools, NDArray[np.int64] | None]:
    """Read scores from a CSV file with a header.

    The columns are ``score``, ``same`` (0, 1, false or true) and optionally ``fold``, in any order. Other columns are
    ignored. The separator is a comma, a semicolon or a tab.

    Returns:
        Scores, float64 [P]; whether each pair shows one person, bool [P]; the fold of each pair, int64 [P], or None.

    Raises:
        DataError: The file can't be read or a line is malformed; the message names the line.
    """
    lines = read_lines(Path(path))
    divider = next((d for d in "\t;," if lines and d in lines[0][1]), ",")
    header = [cell.strip().lower() for cell in (lines[0][1].split(divider) if lines else [])]
    if "score" not in header or "same" not in header or len(set(header)) < len(header):
        got = ", ".join(header)
        raise DataError(f"{path}, line 1: expected a header with score, same and optionally fold, got {got!r:.80}")
    truth = {"0": False, "1": True, "false": False, "true": True}
    scores, same, folds = [], [], []
    for number, line in lines[1:]:
        try:
            cells = dict(zip(header, (cell.strip() for cell in _cells(line, divider)), strict=True))
            scores.append(float(cells["score"]))
            same.append(truth[cells["same"].lower()])
            folds.append(checks.integer(int(cells["fold"]), "fold", -(2**63), 2**63 - 1) if "fold" in cells else 0)
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}, line {number}: expected {', '.join(header)}, got {line!r:.80}") from error
    if not scores:
        raise DataError(f"{path}: expected scores after the header, found none")
    return np.array(scores), np.array(same), np.array(folds) if "fold" in header else None


def _cells(line: str, divider: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=divider), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error
