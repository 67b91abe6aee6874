"""Evaluation protocols: which images of a data set are compared, and how their scores are evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import checks
from ..data import AR, AR10P, AR100, LFW, FaceDataset, VerificationBin
from ..data.pairs import read_pairs
from .curves import FARS
from .pairs import Verification, fold_ids, held_out, verification
from .resampling import RESAMPLES
from .scores import pair_scores
from .search import Identification, identification

#: What a protocol evaluates to.
Result = Verification | Identification


@dataclass(frozen=True, eq=False)
class PairProtocol:
    """Verification protocol: a list of pairs of images.

    Attributes:
        name: Name in reports.
        index: Image numbers of the reference and the probe of each pair, int64 [P, 2].
        same: Whether each pair shows one person, bool [P].
        folds: Fold of each pair, int64 [P], or a number of successive runs; None: no accuracy, only the ROC curve.
        train: Pairs to choose the threshold on, instead of folds (LFW's View 1).
        fars: False acceptance rates for TAR@FAR.
        missing: Number of listed pairs whose images are missing.
        people: Person on each side of each pair, int64 [P, 2], for intervals from a bootstrap over people; None if
            unknown.
        note: Remark for the report, e.g. how the pairs were chosen.
    """

    name: str
    index: Tensor
    same: Tensor
    folds: Tensor | int | None = None
    train: PairProtocol | None = None
    fars: tuple[float, ...] = FARS
    missing: int = 0
    people: Tensor | None = None
    note: str = ""

    @property
    def references(self) -> Tensor:
        """Numbers of the images that stay clean if only probes are occluded; includes those of ``train``."""
        own = self.index[:, 0]
        return own if self.train is None else torch.cat([own, self.train.index.flatten()])

    @property
    def probes(self) -> Tensor:
        """Numbers of the images that are occluded."""
        return self.index[:, 1]

    def scores(self, references: Tensor, probes: Tensor) -> Tensor:
        """Compute the cosine similarity of each pair from features by image number, float [N, D] each."""
        return pair_scores(*_used(references, probes, self.index))

    def evaluate(self, references: Tensor, probes: Tensor, *, resamples: int | None = None) -> Verification:
        """Evaluate features.

        Args:
            references: Features of the clean images by image number, float [N, D]. Rows of other images are ignored.
            probes: Features of the probes by image number, float [N, D].
            resamples: Number of bootstrap resamples of people for the intervals; 0 treats pairs as independent.
                Default: 1000 if the people are known, else 0.

        Raises:
            ValueError: ``resamples`` is given, but the people are unknown.
        """
        people = self.people
        if resamples and people is None:
            raise ValueError(f"resamples: expected 0 for {self.name}, whose people are unknown, got {resamples}")
        if resamples == 0:
            people = None
        count = resamples or RESAMPLES
        scores = self.scores(references, probes)
        if self.train is None:
            return verification(scores, self.same, self.folds, fars=self.fars, people=people, resamples=count)
        clean = self.train.scores(references, references)
        return held_out(scores, self.same, clean, self.train.same, fars=self.fars, people=people, resamples=count)


@dataclass(frozen=True, eq=False)
class SearchProtocol:
    """Identification protocol: probes and a gallery.

    Attributes:
        name: Name in reports.
        gallery: Image numbers of the gallery, int64 [G].
        probes: Image numbers of the probes, int64 [P].
        labels: Person on each image of the data set, int64 [N].
        ranks: See :func:`~occfast.evaluate.identification`.
        fars: See :func:`~occfast.evaluate.identification`.
        count: See :func:`~occfast.evaluate.identification`.
        missing: Number of listed images that are missing.
        note: Remark for the report.
    """

    name: str
    gallery: Tensor
    probes: Tensor
    labels: Tensor
    ranks: tuple[int, ...] = (1, 5)
    fars: tuple[float, ...] = ()
    count: Literal["people", "images"] = "people"
    missing: int = 0
    note: str = ""

    @property
    def references(self) -> Tensor:
        """Numbers of the images that stay clean if only probes are occluded."""
        return self.gallery

    def evaluate(self, references: Tensor, probes: Tensor, *, resamples: int | None = None) -> Identification:
        """Evaluate features; see :meth:`PairProtocol.evaluate`."""
        return identification(
            references[self.gallery],
            self.labels[self.gallery],
            probes[self.probes],
            self.labels[self.probes],
            self.ranks,
            fars=self.fars,
            count=self.count,
            resamples=RESAMPLES if resamples is None else resamples,
        )


AnyProtocol = PairProtocol | SearchProtocol


def _used(a: Tensor, b: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Only the rows that the pairs use: others may be NaN.
    first, i = index[:, 0].unique(return_inverse=True)
    second, j = index[:, 1].unique(return_inverse=True)
    return a[first], b[second], i, j


def listed_pairs(
    dataset: FaceDataset,
    path: str | Path,
    name: str | None = None,
    *,
    folds: int | None = None,
    train: PairProtocol | None = None,
    fars: tuple[float, ...] = FARS,
) -> PairProtocol:
    """Read the pairs of a list (see :func:`occfast.data.pairs.read_pairs`).

    Pairs whose images are missing raise a warning and are counted in ``missing``.

    Args:
        dataset: Data set with the images.
        path: List of pairs.
        name: Name in reports. Default: the name of the file.
        folds: Number of folds, as successive runs of the list. Default: the folds of the list; without any, there is
            no accuracy.
        train: Pairs to choose the threshold on, instead of folds.
        fars: False acceptance rates for TAR@FAR.

    Raises:
        DataError: The list is malformed, or all of its images are missing.
        ValueError: ``folds`` is given, but the list has folds of its own or ``train`` is given as well.
    """
    listed = read_pairs(path)
    pairs = listed.resolve(dataset)
    ids = pairs.folds if train is None else None
    note = ""
    if folds is not None:
        if pairs.folds is not None or train is not None:
            raise ValueError(f"folds: expected None for {listed.path}, which has folds of its own, got {folds}")
        gone = {pair.line for pair in pairs.missing}
        here = np.array([pair.line not in gone for pair in listed.pairs])
        # By place in the list, so that missing images don't move pairs to other folds.
        ids = torch.from_numpy(fold_ids(folds, len(listed.pairs))[here])
        note = f"The folds are {folds} successive runs of the list."
    return PairProtocol(
        name or listed.path.stem,
        pairs.index,
        pairs.same,
        ids,
        train,
        fars,
        len(pairs.missing),
        dataset.labels[pairs.index],
        note,
    )


def lfw(dataset: LFW, view: Literal[1, 2] = 2, *, lists: str | Path | None = None) -> PairProtocol:
    """Return an LFW protocol, "unrestricted with labeled outside data" (Huang and Learned-Miller 2014).

    View 2 has 6,000 pairs in ten folds. View 1 is for development only: the threshold is chosen on
    ``pairsDevTrain.txt``, the accuracy is that on ``pairsDevTest.txt``.

    Args:
        dataset: The whole of LFW.
        view: 1 or 2.
        lists: Folder of the official lists. Default: that of the data set. If ``pairs.txt`` has no header, and so no
            folds, a warning is raised and its ten successive runs are the folds.
    """
    folder = dataset.base if lists is None else Path(lists)
    if view == 2:
        path = folder / "pairs.txt"
        protocol = listed_pairs(dataset, path, "LFW View 2")
        if protocol.folds is None:
            warnings.warn(
                f"{path}: no header with the number of folds; ten successive runs of the list are the folds",
                stacklevel=2,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # missing images have raised a warning above
                protocol = listed_pairs(dataset, path, "LFW View 2", folds=10)
        return protocol
    if view != 1:
        raise ValueError(f"view: expected 1 or 2, got {view!r}")
    train = listed_pairs(dataset, folder / "pairsDevTrain.txt", "LFW View 1, training")
    test = listed_pairs(dataset, folder / "pairsDevTest.txt", "LFW View 1", train=train)
    return replace(test, missing=test.missing + train.missing)


def packed_pairs(dataset: VerificationBin, *, folds: int | None = 10) -> PairProtocol:
    """Return the pairs of a verification ``.bin`` as a protocol.

    Args:
        dataset: The opened file.
        folds: Number of successive runs, as its makers evaluate them; None: no accuracy.
    """
    return PairProtocol(dataset.path.stem, dataset.pairs, dataset.same, folds)


def drawn_pairs(
    dataset: FaceDataset, count: int | None = None, *, folds: int = 10, seed: int = 0, fars: tuple[float, ...] = FARS
) -> PairProtocol:
    """Draw pairs from a data set of people, for verification without a list of pairs.

    People are divided among the folds at random, so that no person is in two folds, as in LFW's View 2. Each fold has
    as many pairs of the same person as of different people. Pairs of the same person are spread evenly over people.

    Args:
        dataset: Data set of people, some with at least two images.
        count: Number of pairs of each kind, a multiple of ``folds``. Default: as many as there are, at most 3000.
        folds: Number of folds, at least 2.
        seed: Random seed.
        fars: False acceptance rates for TAR@FAR.

    Raises:
        ValueError: There are too few people or images for this many folds or pairs.
    """
    folds = checks.integer(folds, "folds", 2)
    random = Random(checks.seed(seed))
    images: dict[int, list[int]] = {}
    for k, label in enumerate(dataset.labels.tolist()):
        images.setdefault(label, []).append(k)
    several = [person for person, own in images.items() if len(own) > 1]
    if len(several) < folds or len(images) < 2 * folds:
        if len(several) < 2 or len(images) < 4:
            raise ValueError(
                "dataset: expected at least 4 people, 2 of them with several images, to verify in folds; got "
                f"{len(images)} people, {len(several)} with several images"
            )
        raise ValueError(
            f"folds: expected at most {min(len(several), len(images) // 2)}: each fold needs two people, one of them "
            f"with two images; got {folds}"
        )
    # Dealt like cards, those with several images first, so that every fold gets some.
    single = [person for person, own in images.items() if len(own) == 1]
    random.shuffle(several)
    random.shuffle(single)
    groups: list[list[int]] = [(several + single)[fold::folds] for fold in range(folds)]
    there = min(min(_pair_counts([len(images[person]) for person in group])) for group in groups)
    each = min(there, max(1, 3000 // folds))
    if count is not None:
        if checks.integer(count, "count", folds) % folds:
            raise ValueError(f"count: expected a multiple of folds = {folds}, got {count}")
        each = count // folds
    if each > there:
        raise ValueError(f"count: expected at most {there * folds} pairs of each kind in {folds} folds, got {count}")
    index: list[tuple[int, int]] = []
    for group in groups:
        index += _same_pairs([images[person] for person in group], each, random)
        index += _different_pairs([images[person] for person in group], each, random)
    pairs = torch.tensor(index, dtype=torch.int64)
    people = dataset.labels[pairs]
    return PairProtocol(
        f"{folds * each} + {folds * each} drawn pairs",
        pairs,
        people[:, 0] == people[:, 1],
        torch.arange(folds).repeat_interleave(2 * each),
        fars=fars,
        people=people,
        note=f"Pairs are drawn at random (seed {seed}); no person is in two folds.",
    )


def _pair_counts(sizes: list[int]) -> tuple[int, int]:
    """Return the number of pairs of the same person and of different people, given the images of each person."""
    same = sum(n * (n - 1) // 2 for n in sizes)
    return same, sum(sizes) * (sum(sizes) - 1) // 2 - same


def _same_pairs(people: list[list[int]], count: int, random: Random) -> list[tuple[int, int]]:
    # One pair of each person, then a second one, and so on.
    left = [(own, _Draws(len(own) * (len(own) - 1) // 2, count, random)) for own in people if len(own) > 1]
    random.shuffle(left)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        for own, draws in left:
            if len(found) < count and draws.left:
                found.append(_pair(own, draws.next()))
    return found


class _Draws:
    """Different numbers below ``total`` in random order, at most ``most`` of them."""

    def __init__(self, total: int, most: int, random: Random) -> None:
        self.left = random.sample(range(total), min(total, most))

    def next(self) -> int:
        return self.left.pop()


def _pair(own: list[int], number: int) -> tuple[int, int]:
    # Pair number j (j - 1) / 2 + i is images i < j.
    j = int((1 + np.sqrt(1 + 8.0 * number)) / 2)
    j += number >= j * (j + 1) // 2
    j -= number < j * (j - 1) // 2
    return own[number - j * (j - 1) // 2], own[j]


def _different_pairs(people: list[list[int]], count: int, random: Random) -> list[tuple[int, int]]:
    total = _pair_counts([len(own) for own in people])[1]
    if total <= 4 * count:
        every = [(a, b) for k, one in enumerate(people) for other in people[:k] for a in one for b in other]
        return random.sample(every, count)
    found: dict[tuple[int, int], None] = {}
    numbers = [(k, image) for k, own in enumerate(people) for image in own]
    while len(found) < count:
        (p, a), (q, b) = random.choice(numbers), random.choice(numbers)
        if p != q and (b, a) not in found:
            found[a, b] = None
    return list(found)


def ar(dataset: AR | AR10P | AR100, *, reference: int = 1) -> list[PairProtocol]:
    """Return the protocols of Figure 6 of trigueros2018 on AR: other light, sunglasses, scarves.

    The reference of every person is compared with every query of every person. The paper marks one reference per
    person in Figure 5, but gives neither its number nor the sessions. Here queries come from both sessions; clean
    queries have light from the left, the right or both sides.

    Args:
        dataset: AR, or the ten people of AR10P, or the 100 of AR100.
        reference: Number of the reference photograph. Number 1 has a neutral expression and even light, and is from
            the first session.

    Raises:
        ValueError: No image has the number of the reference, or a condition has no images.
    """
    references = (dataset.numbers == reference).nonzero()[:, 0]
    if not len(references):
        raise ValueError(f"reference: expected the number of a photograph in the data set, got {reference}")
    queries = {
        "clean": dataset.shots(occlusion=None, light=("left", "right", "both"), expression="neutral"),
        "sunglasses": dataset.shots(occlusion="sunglasses"),
        "scarf": dataset.shots(occlusion="scarf"),
    }
    protocols = []
    for condition, images in queries.items():
        images = images[dataset.numbers[images] != reference]
        if not len(images):
            raise ValueError(f"dataset: expected images of the condition {condition!r}, found none")
        index = torch.cartesian_prod(references, images)
        same = dataset.labels[index[:, 0]] == dataset.labels[index[:, 1]]
        protocols.append(PairProtocol(f"AR {condition}", index, same, people=dataset.labels[index]))
    return protocols


def gallery_and_probes(
    dataset: FaceDataset,
    gallery_images: int = 1,
    *,
    ranks: Sequence[int] = (1, 5),
    fars: Sequence[float] = (),
    impostors: float = 0.0,
    seed: int = 0,
    count: Literal["people", "images"] = "people",
) -> SearchProtocol:
    """Return an identification protocol: some images of each person are the gallery, the others are the probes.

    Args:
        dataset: Any data set of people.
        gallery_images: Number of gallery images per person, drawn at random. People without another image have no
            probe.
        ranks: Ranks to report.
        fars: False alarm rates to report; required by an open set, and only valid there.
        impostors: Share of people, drawn at random, in [0, 1), who are left out of the gallery (open set). All of their
            images are probes.
        seed: Random seed.
        count: Unit of a rank: "people" or gallery "images".

    Raises:
        ValueError: An argument is out of range, or nobody has more than ``gallery_images`` images.
    """
    checks.integer(gallery_images, "gallery_images", 1)
    if not 0 <= checks.number(impostors, "impostors") < 1:
        raise ValueError(f"impostors: expected a share in [0, 1), got {impostors}")
    generator = torch.Generator().manual_seed(checks.seed(seed))
    order = torch.randperm(len(dataset), generator=generator)
    order = order[dataset.labels[order].argsort(stable=True)]
    person = dataset.labels[order]
    starts = torch.searchsorted(person, person, side="left")
    place = torch.arange(len(order)) - starts
    people = len(dataset.people)
    unknown = torch.zeros(people, dtype=torch.bool)
    unknown[torch.randperm(people, generator=generator)[: round(impostors * people)]] = True
    in_gallery = (place < gallery_images) & ~unknown[person]
    gallery, probes = order[in_gallery].sort().values, order[~in_gallery].sort().values
    if not len(gallery) or not len(probes):
        raise ValueError(f"gallery_images: expected people with more than {gallery_images} images, there are none")
    plural = "image" if gallery_images == 1 else "images"
    name = f"Identification, {gallery_images} gallery {plural} per person"
    if impostors:
        name += f", {impostors:.0%} impostors"
    return SearchProtocol(name, gallery, probes, dataset.labels, tuple(ranks), tuple(fars), count)
