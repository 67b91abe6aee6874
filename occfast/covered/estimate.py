"""Estimate how much of each face is covered, and where."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .. import checks
from ..data import Aligned, FaceDataset, WithLandmarks
from ..errors import DataError
from ..files import write_atomically
from ..progress import Report
from ..progress import progress as show_progress
from .network import covered_probability, load_network
from .regions import REGIONS, TEMPLATE, region_masks
from .rejection import RejectionModel


@dataclass(frozen=True, eq=False)
class Coverage:
    """Estimates for N faces.

    Attributes:
        names: Names of the images.
        share: Share of the face that is covered, in [0, 1], float64 [N].
        regions: Share covered of each region of :data:`REGIONS`, float64 [N, len(REGIONS)].
        rejection: Probability that a genuine pair of this face and an uncovered one is rejected, float64 [N]. It is
            that of the recognizer, false match rate and photographs that ``model.about`` names.
        masks: Probability that each pixel of the aligned face is covered, uint8 [N, 64, 64], 255 for 1; None if it was
            not asked for.
        model: The model of rejection.
    """

    names: Sequence[str]
    share: Tensor
    regions: Tensor
    rejection: Tensor
    masks: Tensor | None
    model: RejectionModel

    def write_csv(
        self, path: str | os.PathLike[str], *, limit: float = 0.5, failures: dict[str, str] | None = None
    ) -> Path:
        """Write one line for each image: its name, the shares, the probability of rejection and a verdict.

        Args:
            path: The file.
            limit: Probability of rejection from which the verdict is "do not match", else "match"; in [0, 1].
            failures: Why other images have no estimate, by name; they follow.
        """
        checks.number(limit, "limit", 0.0, 1.0)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image", "covered", *(name.replace(" ", "_") for name in REGIONS), "rejection", "verdict"])
        for name, share, regions, rejection in zip(
            self.names, self.share.tolist(), self.regions.tolist(), self.rejection.tolist(), strict=True
        ):
            numbers = (f"{value:.4f}" for value in (share, *regions, rejection))
            writer.writerow([name, *numbers, "do not match" if rejection >= limit else "match"])
        for name, reason in (failures or {}).items():
            writer.writerow([name, *[""] * (len(REGIONS) + 2), reason])
        return write_atomically(path, out.getvalue().encode())


def estimate_coverage(
    faces: FaceDataset,
    *,
    network: str | os.PathLike[str] | None = None,
    rejection: RejectionModel | None = None,
    masks: bool = False,
    batch_size: int = 64,
    unreadable: dict[str, str] | None = None,
    progress: bool | Report = True,
) -> Coverage:
    """Estimate which part of each face is covered, and how likely a recognizer rejects it for that.

    Faces are aligned by their landmarks to :data:`TEMPLATE`; those that are aligned already and come without landmarks
    by the points of their template. The network knows sunglasses, masks, scarves, hands and other things before a face;
    clear glasses, beards and hair do not count as covering.

    Args:
        faces: Data set with landmarks for every image, or aligned.
        network: A network of another training; default: that of the package.
        rejection: Model of rejection of another recognizer, see
            :func:`~occfast.covered.fit_rejection`; default: that of the network's file.
        masks: Also return the probability of each pixel.
        batch_size: Number of faces per forward pass, at least 1.
        unreadable: Receives why images can't be read, by name; these are left out. None: the first of them raises.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).

    Raises:
        DataError: An image can't be read (unless ``unreadable`` is given) or has no landmarks, or the network's file is
            damaged.
        ValueError: An argument is out of range.
    """
    checks.integer(batch_size, "batch_size", 1)
    model, shipped = load_network(network)
    rejection = rejection or shipped
    faces = _aligned(faces)
    found, kept, names = [], [], []
    with show_progress("estimating coverage", "faces", progress) as report:
        for start in range(0, len(faces), batch_size):
            numbers = range(start, min(start + batch_size, len(faces)))
            images = []
            for k in numbers:
                try:
                    images.append(faces[k].image)
                except DataError as error:
                    if unreadable is None:
                        raise
                    unreadable[faces.names[k]] = str(error)
                else:
                    names.append(faces.names[k])
            if images:
                probability = covered_probability(model, torch.stack(images))
                if masks:
                    kept.append((probability * 255).round().to(torch.uint8))
                found.append(region_pixels(probability))
            report(numbers.stop, len(faces))
    sizes = _regions().sum((1, 2))
    covered = torch.cat(found) if found else torch.zeros(0, len(REGIONS), dtype=torch.float64)
    shares = covered / sizes
    return Coverage(
        names,
        covered.sum(1) / sizes.sum(),
        shares,
        rejection.probability(shares),
        (torch.cat(kept) if kept else torch.zeros(0, 64, 64, dtype=torch.uint8)) if masks else None,
        rejection,
    )


def region_pixels(probability: Tensor) -> Tensor:
    """Return the expected number of covered pixels of each region, float64 [N, len(REGIONS)].

    Args:
        probability: Probability that each pixel is covered, or whether it is, [N, 64, 64].
    """
    return torch.einsum("nhw,rhw->nr", probability.double(), _regions())


@cache
def _regions() -> Tensor:
    """Return the regions as numbers; made once, not for each batch."""
    return region_masks().double()


def _aligned(faces: FaceDataset) -> FaceDataset:
    if faces.landmarks is None and faces.alignment is not None:
        points = torch.tensor(faces.alignment.points, dtype=torch.float64)
        faces = WithLandmarks(faces, points.expand(len(faces), 5, 2))
    return Aligned(faces, TEMPLATE, gray=False)
