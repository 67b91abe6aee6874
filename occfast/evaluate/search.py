"""Face identification (one-to-many comparison) by cosine similarity, closed set and open set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from .curves import Interval, allowed_accepts
from .resampling import RESAMPLES, rate_interval
from .scores import Features, Values, as_array, check_features


@dataclass(frozen=True)
class DirAtFar:
    """Detection and identification rate (DIR) in an open set.

    The DIR is the share of known probes whose person is at rank 1 with a score of at least the threshold.

    Attributes:
        far: Requested share of unknown probes whose best score may reach the threshold.
        rate: Largest DIR of a threshold with a false alarm rate of at most ``far``.
        threshold: Threshold that gives ``rate``; inf if every probe has to be rejected.
        false_alarms: Number of unknown probes that reach the threshold.
        interval: Confidence interval of the rate at this threshold.
        n_unknown: Number of unknown probes.
    """

    far: float
    rate: float
    threshold: float
    false_alarms: int
    interval: Interval
    n_unknown: int

    @property
    def supported(self) -> bool:
        """Whether there are enough unknown probes to allow one false alarm, i.e. ``n_unknown`` >= 1 / ``far``."""
        return allowed_accepts(self.far, self.n_unknown) >= 1

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON; an infinite threshold becomes None."""
        threshold = self.threshold if np.isfinite(self.threshold) else None
        return {**vars(self), "threshold": threshold, "interval": list(self.interval), "supported": self.supported}


@dataclass(frozen=True, eq=False)
class Identification:
    """Result of :func:`identification`.

    Attributes:
        ranks: Share of known probes whose person is at rank k or better, for each requested k.
        rank_intervals: Confidence intervals of these shares.
        rank: Rank of the person on each probe, from 1, int64 [N]; 0 for probes of people outside the gallery.
        nearest: Gallery row with the highest score, int64 [N].
        score: That score, float32 [N].
        dir_at_far: DIR at each requested FAR (open set).
        n_known: Number of probes whose person is in the gallery.
        n_unknown: Number of probes whose person is not.
        n_people: Number of people in the gallery.
        confidence: Confidence level of the intervals.
        resamples: Number of resamples of people behind the intervals; 0: probes are treated as independent.
        persons: Person on each probe, int64 [N].
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
    resamples: int
    persons: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Rank-1 identification rate."""
        return float((self.rank[self.rank > 0] == 1).mean())

    def cmc(self, ranks: int) -> NDArray[np.float64]:
        """Compute the cumulative match characteristic: the share at rank k or better for k = 1 … ``ranks``."""
        known = self.rank[self.rank > 0]
        return np.asarray(np.cumsum(np.bincount(known, minlength=ranks + 1)[1 : ranks + 1]) / len(known))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, without the values of single probes."""
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
    gallery: Features,
    gallery_labels: Values,
    probes: Features,
    probe_labels: Values,
    ranks: Sequence[int] = (1, 5),
    *,
    fars: Sequence[float] = (),
    count: Literal["people", "images"] = "people",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    memory: int | str = "256MiB",
) -> Identification:
    """Rank the people of a gallery for each probe by cosine similarity.

    The score of a person is that of their best gallery image. The rank of the probe's person is 1 plus the number of
    other people with a score at least as high, so ties count against the recognizer.

    Args:
        gallery: Features, float [G, D]; need not be normalized.
        gallery_labels: Person on each gallery image, int [G].
        probes: Features, float [N, D], on the device of the gallery.
        probe_labels: Person on each probe, int [N].
        ranks: Ranks to report, each at least 1.
        fars: False alarm rates in (0, 1] for an open set, in which probes of people outside the gallery have to be
            rejected. Without them, the person on each probe must be in the gallery.
        count: Unit of a rank: other "people", or their gallery "images" (k nearest neighbors).
        confidence: Confidence level of all intervals, in (0, 1).
        resamples: Number of bootstrap resamples of people for the intervals, at least 20; 0 treats probes as
            independent (Clopper and Pearson 1934), as is done where no person has two probes.
        seed: Random seed of the bootstrap.
        memory: Memory limit for one block of scores, in bytes or as a string such as "256MiB".

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ, a feature has NaN or length 0, or a probe shows a person outside the gallery and
            ``fars`` is empty.
    """
    g, p = check_features(gallery, "gallery"), check_features(probes, "probes")
    if g.shape[1] != p.shape[1] or g.dtype != p.dtype or g.device != p.device:
        raise ValueError(
            f"probes: expected {g.dtype} [N, {g.shape[1]}] on {g.device} as the gallery, "
            f"got {p.dtype} {list(p.shape)} on {p.device}"
        )
    checks.choice(count, "count", ("people", "images"))
    if not ranks:
        raise ValueError("ranks: expected at least one rank, got none")
    ranks = [checks.integer(k, "ranks", 1) for k in ranks]
    if resamples != 0:
        checks.integer(resamples, "resamples", 20)
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
        rank_intervals={k: rate_interval(rank[known] <= k, pl[known], confidence, resamples, seed) for k in ranks},
        rank=rank,
        nearest=nearest,
        score=score,
        dir_at_far={float(f): _dir(f, score, rank, known, pl, confidence, resamples, seed) for f in fars},
        n_known=n,
        n_unknown=len(p) - n,
        n_people=len(people),
        confidence=confidence,
        resamples=resamples,
        persons=pl,
    )


def _labels(labels: Values, count: int, name: str) -> NDArray[np.int64]:
    array = as_array(labels, name)
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
        s = g @ part.T  # [G, block]: rows are contiguous, to be reduced by person
        best = s.max(0)
        by_person = torch.full((people, len(part)), -torch.inf, dtype=s.dtype, device=device)
        by_person.scatter_reduce_(0, owner[:, None].expand_as(s), s, "amax")
        own = by_person.gather(0, mate.clamp(min=0)[None])
        if by_people or people == len(g):
            ahead = (by_person >= own).sum(0)  # includes the person's own score: the 1 of the rank
        else:
            ahead = ((s >= own) & (owner[:, None] != mate)).sum(0) + 1
        rank.append(torch.where(mate >= 0, ahead, 0).cpu())
        nearest.append(best.indices.cpu())
        score.append(best.values.float().cpu())
    return torch.cat(rank).numpy(), torch.cat(nearest).numpy(), torch.cat(score).numpy()


def _dir(
    far: float,
    score: NDArray[np.float32],
    rank: NDArray[np.int64],
    known: NDArray[np.bool_],
    persons: NDArray[np.int64],
    confidence: float,
    resamples: int,
    seed: int,
) -> DirAtFar:
    far = checks.number(far, "fars", 1e-300, 1.0)
    unknown = np.sort(score[~known])[::-1]
    allowed = allowed_accepts(far, len(unknown))
    # The lowest score above that of unknown probe number `allowed` (from 0), so that at most `allowed` reach it.
    reachable = score if allowed >= len(unknown) else score[score > unknown[allowed]]
    threshold = float(reachable.min()) if len(reachable) else float("inf")
    hits = ((rank == 1) & (score >= threshold))[known]
    return DirAtFar(
        far,
        float(hits.sum() / len(hits)),
        threshold,
        int((unknown >= threshold).sum()),
        rate_interval(hits, persons[known], confidence, resamples, seed),
        len(unknown),
    )
