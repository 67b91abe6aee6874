"""Fit the model of rejection to a recognizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..data import Face, FaceDataset
from ..evaluate.curves import all_pairs_roc
from ..evaluate.embedding import Flip, embed
from ..models import Preprocessing
from ..occlude import OcclusionLike, named_occlusion
from ..progress import Report
from .estimate import estimate_coverage
from .rejection import RejectionModel

#: Coverings to which a model of rejection is fitted: accessories, and blocks at random places.
COVERINGS = (
    *(
        "sunglasses",
        "mask",
        "scarf",
        "hand",
        "sunglasses+mask",
        "sunglasses+scarf",
        "forehead",
        "eyes",
        "nose",
        "mouth",
    ),
    *("block:15%x40%", "block:30%x30%", "block:30%x60%", "block:50%x50%"),
)


def fit_rejection(
    model: Callable[[Tensor], Tensor],
    faces: FaceDataset,
    preprocessing: Preprocessing,
    *,
    coverings: Sequence[OcclusionLike] | None = None,
    fmr: float = 1e-3,
    flip: Flip = "none",
    network: str | os.PathLike[str] | None = None,
    name: str = "",
    seed: int = 0,
    batch_size: int = 64,
    progress: bool | Report = True,
) -> RejectionModel:
    """Fit how likely a recognizer rejects covered faces, by the estimated share of each region.

    Every face that has another photograph of its person is covered in each of the ways in turn and compared with that
    photograph, uncovered; and once uncovered. The threshold gives ``fmr`` on uncovered faces.

    Args:
        model: Function of prepared images that returns features [B, D]; see :func:`~occfast.evaluate.embed`.
        faces: Faces with landmarks, aligned for the recognizer.
        preprocessing: How images become the recognizer's input.
        coverings: What covers the faces; default: :data:`COVERINGS`.
        fmr: False match rate that sets the threshold, in (0, 0.5].
        flip: See :func:`~occfast.evaluate.embed`.
        network: See :func:`~occfast.covered.estimate_coverage`.
        name: Name of the recognizer, for reports.
        seed: Random seed of the coverings and of the photograph that each face is compared with.
        batch_size: Number of images per forward pass.
        progress: True for progress bars on the standard error, False for none, or a function of (done, total).

    Raises:
        ValueError: There are no two photographs of a person, too few pairs of two people for ``fmr``, all pairs, or
            none, are rejected, or as :func:`~occfast.evaluate.embed`.
        DataError: An image can't be read.
    """
    pairs = covered_pairs(
        model,
        faces,
        preprocessing,
        coverings=coverings,
        fmr=fmr,
        flip=flip,
        network=network,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return RejectionModel.fit(pairs.shares, pairs.rejected, {"recognizer": name, **pairs.about})


@dataclass(frozen=True, eq=False)
class CoveredPairs:
    """Genuine pairs of a covered and an uncovered face.

    Attributes:
        shares: Estimated share covered of each region of the covered face, float64 [N, regions].
        rejected: Whether the pair is rejected, bool [N].
        about: Threshold, numbers of faces and people, and settings.
    """

    shares: Tensor
    rejected: Tensor
    about: dict[str, Any]


def covered_pairs(
    model: Callable[[Tensor], Tensor],
    faces: FaceDataset,
    preprocessing: Preprocessing,
    *,
    coverings: Sequence[OcclusionLike] | None = None,
    fmr: float = 1e-3,
    flip: Flip = "none",
    network: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool | Report = True,
) -> CoveredPairs:
    """Cover faces, and compare them with others of the same people; arguments as for :func:`fit_rejection`."""
    checks.number(fmr, "fmr", 0.0, 0.5, above=0.0)
    checks.seed(seed)
    if faces.landmarks is None:
        raise ValueError("faces: expected landmarks for every face, got none")
    size = preprocessing.size
    covers = [_named(text, size, seed) for text in COVERINGS] if coverings is None else list(coverings)
    partner = _partners(faces.labels, seed)
    several = (partner >= 0).nonzero()[:, 0]
    if len(several) == 0:
        raise ValueError("faces: expected a person with two photographs, got none")

    def features(dataset: FaceDataset, title: str) -> Tensor:
        found = embed(
            model, dataset, preprocessing, flip=flip, batch_size=batch_size, progress=progress, title=title
        ).features
        return F.normalize(found.double())

    clean = features(faces, "uncovered")
    at_fmr = all_pairs_roc(clean, faces.labels).tar_at_far(fmr)
    if not at_fmr.supported:
        raise ValueError(
            f"fmr: {fmr:g} needs at least {round(1 / fmr):,} pairs of two people, got {at_fmr.n_different:,}"
        )
    threshold = at_fmr.threshold
    shares, rejected = [], []
    for cover in (None, *covers):
        covered = faces if cover is None else Covered(faces, cover)
        probes = clean if cover is None else features(covered, "covered")
        similarity = (probes[several] * clean[partner[several]]).sum(1)
        estimate = estimate_coverage(covered, network=network, batch_size=batch_size, progress=progress)
        shares.append(estimate.regions[several])
        rejected.append(similarity < threshold)
    about = {
        "fmr": fmr,
        "threshold": round(threshold, 6),
        "people": len(faces.people),
        "faces": len(several),
        "coverings": len(covers),
        "seed": seed,
    }
    return CoveredPairs(torch.cat(shares), torch.cat(rejected), about)


class Covered(FaceDataset):
    """A data set whose faces are covered when they are read."""

    def __init__(self, dataset: FaceDataset, occlusion: OcclusionLike) -> None:
        self.dataset, self.occlusion = dataset, occlusion
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people
        self.landmarks, self.alignment = dataset.landmarks, dataset.alignment

    def __getitem__(self, k: int) -> Face:
        face = self.dataset[k]
        points = None if face.landmarks is None else face.landmarks[None]
        image, _ = self.occlusion(face.image[None], points, torch.tensor([k]))
        return Face(image[0], face.label, face.name, face.landmarks)


def _named(text: str, size: tuple[int, int], seed: int) -> OcclusionLike:
    """Return a named occlusion; sizes in percent are those of the image."""
    kind, _, shape = text.partition(":")
    if shape.endswith("%"):
        height, width = (
            max(1, round(float(part.rstrip("%")) / 100 * length))
            for part, length in zip(shape.split("x"), size, strict=True)
        )
        text = f"{kind}:{height}x{width}"
    return named_occlusion(text, seed)


def _partners(labels: Tensor, seed: int) -> Tensor:
    """Return another image of the same person for each image, drawn at random; -1 where there is none."""
    random = torch.Generator().manual_seed(seed)
    partner = torch.full((len(labels),), -1)
    for person in labels.unique().tolist():
        own = (labels == person).nonzero()[:, 0]
        if len(own) > 1:  # a cyclic shift of a random order gives everyone another
            own = own[torch.randperm(len(own), generator=random)]
            partner[own] = own.roll(1)
    return partner
