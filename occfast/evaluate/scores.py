"""Similarity scores of pairs: how they are checked, computed from features, and normalized by a cohort."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import checks

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

#: How scores are normalized by the scores against a cohort of other people.
Normalization = Literal["z", "t", "s"]


def as_array(values: Any, name: str) -> NDArray[Any]:
    """A NumPy array on the CPU from a tensor, an array or a sequence."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy())
    if hasattr(values, "__dlpack__") and not isinstance(values, np.ndarray):
        return as_array(checks.as_tensor(values, name), name)
    return np.asarray(values)


def check_scores(scores: Any, name: str = "scores") -> Floats:
    """Scores as floats [P] (float32 and float64 stay as they are, others become float64).

    Raises:
        TypeError: not real numbers.
        ValueError: no scores, not one dimension, NaN or infinite; it names the first place.
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


def check_same(same: Any, count: int, name: str = "same") -> Bools:
    """Which pairs show one person, as bool [P]; 0 and 1 are taken too.

    Raises:
        TypeError: neither booleans nor integers.
        ValueError: another length than the scores, numbers beside 0 and 1, or pairs of one kind only.
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


def check_features(features: Any, name: str) -> Tensor:
    """Features as float [N, D] of length 1, so that products are cosines.

    Raises:
        TypeError: not floating point.
        ValueError: another shape, NaN, or a feature of length 0, which has no direction.
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


def pair_scores(a: Any, b: Any, first: Any, second: Any, *, chunk: int = 65_536) -> Tensor:
    """Cosine similarity of row ``first[p]`` of ``a`` and row ``second[p]`` of ``b`` for each pair p.

    Beside the scores, memory for two chunks of features is used, whatever the number of pairs.

    Args:
        a, b: features, float [N, D] and [M, D] on one device; need not be normalized.
        first, second: int64 [P].
        chunk: pairs at a time.

    Returns:
        float32 [P] (float64 for float64 features), on the features' device.
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


def _indices(values: Any, limit: int, name: str) -> Tensor:
    index = torch.as_tensor(values)
    if index.dtype != torch.int64 or index.dim() != 1 or index.numel() == 0:
        raise TypeError(f"{name}: expected int64 [P] with P at least 1, got {index.dtype} {list(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= limit:
        raise ValueError(f"{name}: expected rows in [0, {limit}), got {int(index.min())} to {int(index.max())}")
    return index


def normalized_scores(
    scores: Any, first: Any, second: Any, cohort: Any, method: Normalization = "s", *, top: int | None = None
) -> Tensor:
    """Scores in standard deviations above what strangers get (Auckenthaler et al. 2000; adaptive: Matějka et al. 2017).

    With μ_a and σ_a the mean and standard deviation of the cosine similarities of side a to the cohort:

    - ``"z"``: (score − μ_first) / σ_first, the first side is the reference;
    - ``"t"``: (score − μ_second) / σ_second, the second side is the probe;
    - ``"s"``: the mean of both.

    Args:
        scores: cosine similarities, float [P].
        first, second: features of both sides of each pair, float [P, D].
        cohort: features of people who appear in no pair, float [K, D], K at least 2.
        top: use the ``top`` most similar of the cohort for each side (adaptive normalization); None: all.

    Returns:
        float64 [P].
    """
    if method not in ("z", "t", "s"):
        raise ValueError(f"method: expected 'z', 't' or 's', got {method!r}")
    score = torch.from_numpy(check_scores(scores)).double()
    others = check_features(cohort, "cohort")
    if len(others) < 2 or (top is not None and not 2 <= top <= len(others)):
        raise ValueError(f"top: expected 2 to {len(others)} of the cohort, got {top}")
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
            raise ValueError("cohort: expected different people, got the same similarity to all of them")
        out += (score - mean) / std / len(sides)
    return out
