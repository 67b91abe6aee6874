"""One-to-many comparison: nearest neighbors by cosine, in a closed and in an open set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from .curves import Interval, _allowed, binomial_interval
from .scores import check_features


@dataclass(frozen=True)
class DirAtFar:
    """Open set: the share of known probes found at rank 1 with a score of at least the threshold.

    Attributes:
        far: what was asked for: the share of unknown probes whose best score may reach the threshold.
        rate: detection and identification rate, the largest within it.
        threshold: inf where only accepting nothing will do.
        false_alarms: unknown probes that reach it.
        interval: Clopper-Pearson for the rate at this threshold, over probes.
    """

    far: float
    rate: float
    threshold: float
    false_alarms: int
    interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """For JSON: an infinite threshold is null."""
        threshold = self.threshold if np.isfinite(self.threshold) else None
        return {**vars(self), "threshold": threshold, "interval": list(self.interval)}


@dataclass(frozen=True, eq=False)
class Identification:
    """The result of :func:`identification`.

    Attributes:
        ranks: share of known probes whose person is at rank k or better, for each k asked for.
        rank_intervals: Clopper-Pearson over probes.
        rank: int64 [N], of each probe's person from 1; 0 for probes of nobody in the gallery.
        nearest: int64 [N], row of the gallery with the highest score.
        score: float32 [N], that score.
        dir_at_far: open set, for each FAR asked for.
        n_known, n_unknown: probes with and without their person in the gallery.
        n_people: in the gallery.
    """

    ranks: dict[int, float]
    rank_intervals: dict[int, Interval]
    rank: NDArray[np.int64]
    nearest: NDArray[np.int64]
    score: NDArray[np.float32]
    dir_at_far: dict[float, DirAtFar]
    n_known: int
    n_unknown: int
    n_people: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """Rank-1 identification rate."""
        return float((self.rank[self.rank > 0] == 1).mean())

    def cmc(self, ranks: int) -> NDArray[np.float64]:
        """Cumulative match characteristic: the share found at rank k or better for k = 1 … ``ranks``."""
        known = self.rank[self.rank > 0]
        return np.asarray(np.cumsum(np.bincount(known, minlength=ranks + 1)[1 : ranks + 1]) / len(known))

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "ranks": [
                {"rank": k, "rate": rate, "interval": list(self.rank_intervals[k])} for k, rate in self.ranks.items()
            ],
            "dir_at_far": [entry.as_dict() for entry in self.dir_at_far.values()],
            "n_known": self.n_known,
            "n_unknown": self.n_unknown,
            "n_people": self.n_people,
            "confidence": self.confidence,
        }

    def __repr__(self) -> str:
        rates = ", ".join(f"rank-{k} {rate:.2%}" for k, rate in self.ranks.items())
        return (
            f"Identification({rates}, {self.n_known} known and {self.n_unknown} unknown probes, {self.n_people} people)"
        )


def identification(
    gallery: Any,
    gallery_labels: Any,
    probes: Any,
    probe_labels: Any,
    ranks: Sequence[int] = (1, 5),
    *,
    fars: Sequence[float] = (),
    count: Literal["people", "images"] = "people",
    confidence: float = 0.95,
    memory: int | str = "256MiB",
) -> Identification:
    """Find each probe's person in a gallery by the highest cosine similarity.

    A person's score is that of the best of their gallery images.  The rank of the probe's person is 1 plus the number
    of others with a score at least as high: a tie counts against the recognizer, so equal features never score by luck
    of order.

    Args:
        gallery, probes: features, float [G, D] and [N, D] on one device; need not be normalized.
        gallery_labels, probe_labels: integers [G], [N].
        ranks: each at least 1.
        fars: FARs in (0, 1] of the open set, where probes of people outside the gallery must be refused.  Without
            them every probe's person must be in the gallery.
        count: what a rank counts: other ``"people"``, or their gallery ``"images"`` (k nearest neighbors).
        confidence: of the intervals, over probes taken as independent.
        memory: of one block of scores; probes are compared in as many blocks as that takes.

    Raises:
        TypeError, ValueError: naming the argument; also for probes of nobody in the gallery without ``fars``.
    """
    g, p = check_features(gallery, "gallery"), check_features(probes, "probes")
    if g.shape[1] != p.shape[1] or g.dtype != p.dtype or g.device != p.device:
        raise ValueError(
            f"probes: expected {g.dtype} [N, {g.shape[1]}] on {g.device} as the gallery, "
            f"got {p.dtype} {list(p.shape)} on {p.device}"
        )
    if count not in ("people", "images"):
        raise ValueError(f"count: expected 'people' or 'images', got {count!r}")
    if not ranks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ranks):
        raise ValueError(f"ranks: expected numbers of at least 1, got {ranks!r}")
    gl, pl = _labels(gallery_labels, len(g), "gallery_labels"), _labels(probe_labels, len(p), "probe_labels")
    people, gallery_person = np.unique(gl, return_inverse=True)
    person = np.searchsorted(people, pl)
    known = people[np.minimum(person, len(people) - 1)] == pl
    if not known.any():
        raise ValueError("probe_labels: expected people of the gallery, none of them is in it")
    if not fars and not known.all():
        raise ValueError(
            f"probe_labels: {np.count_nonzero(~known)} probes show people who are not in the gallery, the first is "
            f"probe {np.flatnonzero(~known)[0]} ({pl[~known][0]}); give fars for an open set, or leave them out"
        )
    if fars and known.all():
        raise ValueError("fars: expected some probes of people who are not in the gallery, all are in it")
    rank, nearest, score = _search(g, p, gallery_person, np.where(known, person, -1), len(people), count, memory)
    n = int(known.sum())
    found = {k: int((rank[known] <= k).sum()) for k in ranks}
    return Identification(
        ranks={k: hits / n for k, hits in found.items()},
        rank_intervals={k: binomial_interval(hits, n, confidence) for k, hits in found.items()},
        rank=rank,
        nearest=nearest,
        score=score,
        dir_at_far={float(f): _dir(f, score, rank, known, confidence) for f in fars},
        n_known=n,
        n_unknown=len(p) - n,
        n_people=len(people),
        confidence=confidence,
    )


def _labels(labels: Any, count: int, name: str) -> NDArray[np.int64]:
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name}: expected shape [{count}], got {list(array.shape)}")
    return array.astype(np.int64)


def _search(
    g: Tensor,
    p: Tensor,
    gallery_person: NDArray[Any],
    probe_person: NDArray[Any],
    people: int,
    count: str,
    memory: int | str,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    device = g.device
    owner, mates = torch.from_numpy(gallery_person).to(device), torch.from_numpy(probe_person).to(device)
    by_people = count == "people" and people < len(g)
    block = max(1, checks.memory(memory, "memory") // (g.element_size() * len(g) * 3))
    rank, nearest, score = [], [], []
    for part, mate in zip(p.split(block), mates.split(block), strict=True):
        s = g @ part.T  # [G, block]: one row of memory for each image, to be gathered by person
        best = s.max(0)
        by_person = torch.full((people, len(part)), -torch.inf, dtype=s.dtype, device=device)
        by_person.scatter_reduce_(0, owner[:, None].expand_as(s), s, "amax")
        own = by_person.gather(0, mate.clamp(min=0)[None])
        if by_people or people == len(g):
            ahead = (by_person >= own).sum(0)  # the person's own score counts itself: the 1 of the rank
        else:
            ahead = ((s >= own) & (owner[:, None] != mate)).sum(0) + 1
        rank.append(torch.where(mate >= 0, ahead, 0).cpu())
        nearest.append(best.indices.cpu())
        score.append(best.values.float().cpu())
    return torch.cat(rank).numpy(), torch.cat(nearest).numpy(), torch.cat(score).numpy()


def _dir(far: float, score: NDArray[Any], rank: NDArray[Any], known: NDArray[Any], confidence: float) -> DirAtFar:
    checks.number(far, "fars", 1e-300, 1.0)
    unknown = np.sort(score[~known])[::-1]
    allowed = _allowed(far, len(unknown))
    # The lowest score above that of unknown probe number `allowed` (from 0), so that no more than allowed reach it.
    reachable = score if allowed >= len(unknown) else score[score > unknown[allowed]]
    threshold = float(reachable.min()) if len(reachable) else float("inf")
    hits = int(((rank == 1) & (score >= threshold) & known).sum())
    n = int(known.sum())
    return DirAtFar(
        float(far), hits / n, threshold, int((unknown >= threshold).sum()), binomial_interval(hits, n, confidence)
    )
