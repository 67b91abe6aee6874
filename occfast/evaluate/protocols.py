"""Published protocols: which images of a data set are compared with which, and how the scores are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data import AR, AR10P, LFW, FaceDataset, VerificationBin
from ..data.pairs import read_pairs
from .pairs import FARS, Verification, held_out, verification
from .scores import pair_scores
from .search import Identification, identification


@dataclass(frozen=True, eq=False)
class PairProtocol:
    """Verification: pairs of images.

    Attributes:
        name: for tables.
        index: numbers of the reference and of the probe of each pair, int64 [P, 2].
        same: whether they show one person, bool [P].
        folds: fold of each pair, int64 [P]; a number of equal runs; None: no accuracy, only the curve.
        train: pairs to choose the threshold on instead (View 1).
        fars: for TAR@FAR.
        missing: pairs of the list whose images are not there.
        people: who is on each side of each pair, int64 [P, 2], for intervals from a bootstrap over people; None where
            that is not known.
    """

    name: str
    index: Tensor
    same: Tensor
    folds: Tensor | int | None = None
    train: PairProtocol | None = None
    fars: tuple[float, ...] = FARS
    missing: int = 0
    people: Tensor | None = None

    @property
    def references(self) -> Tensor:
        """Numbers of the images that stay clean where only probes are covered; also those of ``train``."""
        own = self.index[:, 0]
        return own if self.train is None else torch.cat([own, self.train.index.flatten()])

    @property
    def probes(self) -> Tensor:
        """Numbers of the images that are covered."""
        return self.index[:, 1]

    def evaluate(self, references: Tensor, probes: Tensor, resamples: int = 0) -> Verification:
        """The result from features by image number, float [N, D] each (rows of other images are not looked at).

        ``resamples``: of a bootstrap over people; 0: none.
        """
        options: dict[str, Any] = {"fars": self.fars}
        if resamples:
            if self.people is None:
                raise ValueError(f"resamples: expected 0 for {self.name}: who is on its images is not known")
            options |= {"people": self.people, "resamples": resamples}
        scores = pair_scores(*_used(references, probes, self.index))
        if self.train is None:
            return verification(scores, self.same, self.folds, **options)
        clean = pair_scores(*_used(references, references, self.train.index))
        return held_out(scores, self.same, clean, self.train.same, **options)


@dataclass(frozen=True, eq=False)
class SearchProtocol:
    """Identification: each probe among a gallery.

    Attributes:
        name: for tables.
        gallery, probes: numbers of the images, int64.
        labels: of all images of the data set, int64.
        ranks, fars, count: as in :func:`~occfast.evaluate.identification`.
    """

    name: str
    gallery: Tensor
    probes: Tensor
    labels: Tensor
    ranks: tuple[int, ...] = (1, 5)
    fars: tuple[float, ...] = ()
    count: Literal["people", "images"] = "people"
    missing: int = 0

    @property
    def references(self) -> Tensor:
        """Numbers of the images that stay clean where only probes are covered."""
        return self.gallery

    def evaluate(self, references: Tensor, probes: Tensor, resamples: int = 0) -> Identification:
        """As :meth:`PairProtocol.evaluate`, without a bootstrap: probes are taken as independent."""
        return identification(
            references[self.gallery],
            self.labels[self.gallery],
            probes[self.probes],
            self.labels[self.probes],
            self.ranks,
            fars=self.fars,
            count=self.count,
        )


Result = Verification | Identification
AnyProtocol = PairProtocol | SearchProtocol


def _used(a: Tensor, b: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Only the rows that the pairs use: the others may be empty.
    first, i = index[:, 0].unique(return_inverse=True)
    second, j = index[:, 1].unique(return_inverse=True)
    return a[first], b[second], i, j


def listed_pairs(dataset: FaceDataset, path: str | Path, name: str | None = None, **settings: Any) -> PairProtocol:
    """Pairs of a list (:func:`occfast.data.pairs.read_pairs`); with its folds, else without accuracy.

    A pair that names a missing image is told of in a warning and counted in ``missing``.  ``settings`` are those of
    :class:`PairProtocol`.
    """
    listed = read_pairs(path)
    pairs = listed.resolve(dataset)
    about = {"folds": pairs.folds, "missing": len(pairs.missing), "people": dataset.labels[pairs.index], **settings}
    return PairProtocol(name or listed.path.stem, pairs.index, pairs.same, **about)


def lfw(dataset: LFW, view: Literal[1, 2] = 2, lists: str | Path | None = None) -> PairProtocol:
    """LFW, unrestricted with labeled outside data (Huang and Learned-Miller 2014).

    View 2: 6,000 pairs in ten folds.  View 1: the threshold from ``pairsDevTrain.txt``, the accuracy on
    ``pairsDevTest.txt``; for development only.

    Args:
        dataset: all of LFW.
        lists: folder of the official lists; None: the data set's.
    """
    folder = dataset.base if lists is None else Path(lists)
    if view == 2:
        return listed_pairs(dataset, folder / "pairs.txt", "LFW View 2")
    if view != 1:
        raise ValueError(f"view: expected 1 or 2, got {view!r}")
    train = listed_pairs(dataset, folder / "pairsDevTrain.txt", "LFW View 1, training")
    test = listed_pairs(dataset, folder / "pairsDevTest.txt", "LFW View 1", folds=None, train=train)
    return replace(test, missing=test.missing + train.missing)


def packed_pairs(dataset: VerificationBin, folds: int | None = 10) -> PairProtocol:
    """The pairs of a verification ``.bin``; ``folds`` runs of equal length, as their makers judge them."""
    return PairProtocol(dataset.path.stem, dataset.pairs, dataset.same, folds)


def ar(dataset: AR | AR10P, reference: int = 1) -> list[PairProtocol]:
    """AR, Figure 6 of trigueros2018: a clean reference against clean faces in other light, sunglasses and scarves.

    Every person's reference is compared with every query of everybody.  The paper uses faces of different light and
    occlusion only and marks one reference a person in Figure 5; it names neither its number nor the sessions.  Here it
    is photograph ``reference`` (1: neutral, even light, first session), and queries come from both sessions where both
    are there: clean ones have light from the left, the right or both sides.

    Raises:
        ValueError: no image has the reference's number, or a condition has no images.
    """
    references = (dataset.numbers == reference).nonzero()[:, 0]
    if not len(references):
        raise ValueError(f"reference: expected a photograph's number that is there, got {reference}")
    queries = {
        "clean": dataset.shots(occlusion=None, light=("left", "right", "both"), expression="neutral"),
        "sunglasses": dataset.shots(occlusion="sunglasses"),
        "scarf": dataset.shots(occlusion="scarf"),
    }
    protocols = []
    for condition, images in queries.items():
        images = images[dataset.numbers[images] != reference]
        if not len(images):
            raise ValueError(f"dataset: expected images of the condition {condition!r}, there are none")
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
    """Identification on any data set: some images of each person are the gallery, the others are the probes.

    Args:
        gallery_images: of each person, drawn at random by ``seed``.  People without another image have no probe.
        impostors: share of the people, drawn at random, in [0, 1), who are left out of the gallery (open set); all
            their images are probes.
    """
    if gallery_images < 1:
        raise ValueError(f"gallery_images: expected at least 1, got {gallery_images}")
    if not 0 <= impostors < 1:
        raise ValueError(f"impostors: expected a share in [0, 1), got {impostors}")
    generator = torch.Generator().manual_seed(seed)
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
    name = f"gallery of {gallery_images} a person" + (f", {impostors:.0%} impostors" if impostors else "")
    return SearchProtocol(name, gallery, probes, dataset.labels, tuple(ranks), tuple(fars), count)
