"""Drawn occlusions on training images: which image gets which kind, and the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import checks
from ..occlude import Occlusion, OcclusionResult, named_occlusion
from ..occlude.base import paint, pixel_grid, uniform
from ..occlude.drawn import BANDS
from ..occlude.frame import FaceFrame

#: Name of :class:`AnyBand` among the kinds.
BAND = "band"
_STREAM = 7  # of the draws that choose a kind, beside those of the occlusions themselves


@dataclass(frozen=True)
class AnyBand(Occlusion):
    """A band over one part of the face, across the full width of the image: the regions LM2 of pdsn-landmarks.

    Attributes:
        seed: Seed of the part, one of :data:`~occfast.occlude.drawn.BANDS`, and of the gray value of each sample.
    """

    seed: int = 0

    def _occlude(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> OcclusionResult:
        assert landmarks is not None
        draws = uniform(self.seed, sample_ids, 2)
        edges = torch.tensor(list(BANDS.values()), dtype=torch.float64, device=images.device)
        start, end = edges[(draws[:, 0] * len(BANDS)).long()].unbind(1)
        eyes, mouth = landmarks[:, :2, 0].mean(1), landmarks[:, 3:, 0].mean(1)
        rows, columns = pixel_grid(images)
        place = (rows - eyes[:, None, None]) / (mouth - eyes)[:, None, None]
        inside = (place >= start[:, None, None]) & (place < end[:, None, None])
        return paint(images, inside.expand(-1, -1, columns.shape[-1]).float(), draws[:, 1, None, None, None])


@dataclass(frozen=True)
class DrawnOccluders:
    """Shares of the kinds of occlusion on training images, of which each image gets one at most.

    The kind of an image depends on (seed, sample id) alone, as the drawing does.

    Attributes:
        shares: Share of the images by kind: a name of :func:`~occfast.occlude.named_occlusion`, or "band".
        noisy: Share of the images that are left to the noisy occluder.
        seed: Seed in [0, 2**63).

    Raises:
        ValueError: If a kind is unknown, a share is not in [0, 1], or they add up to more than 1.
    """

    shares: Mapping[str, float]
    noisy: float = 0.0
    seed: int = 0
    occlusions: list[Occlusion] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        occlusions: list[Occlusion] = []
        for name, share in self.shares.items():
            checks.number(share, f"drawn.{name}", 0.0, 1.0)
            try:
                occlusions.append(AnyBand(self.seed) if name == BAND else named_occlusion(name, self.seed))
            except ValueError as error:
                raise ValueError(f"drawn.{name}: expected {BAND}, or a name of an occlusion ({error})") from error
        if (total := self.noisy + sum(self.shares.values())) > 1 + 1e-9:
            raise ValueError(
                f"drawn: expected shares that add up to at most 1 together with occluder.share, got {total:g}"
            )
        object.__setattr__(self, "occlusions", occlusions)

    @property
    def needs_landmarks(self) -> bool:
        """Whether a kind with a share above 0 is placed by landmarks."""
        return any(
            one.needs_landmarks for one, share in zip(self.occlusions, self.shares.values(), strict=True) if share
        )

    def kinds(self, sample_ids: Tensor) -> Tensor:
        """Return the kind of each sample, int64 [B]: 0 noisy, 1, 2, … in the order of ``shares``, the next for none."""
        edges = torch.tensor([self.noisy, *self.shares.values()], dtype=torch.float64).cumsum(0)
        draws = uniform(self.seed, sample_ids, 1, stream=_STREAM)[:, 0]
        return torch.bucketize(draws, edges.to(draws.device), right=True)

    def __call__(self, images: Tensor, landmarks: Tensor | None, sample_ids: Tensor) -> Tensor:
        """Return images with the drawn kinds; images of other kinds are unchanged.

        Args:
            images: Floating point in [0, 1], gray or RGB, [B, C, H, W].
            landmarks: float64 [B, 5, 2]; None if no kind needs them.
            sample_ids: int64 [B].
        """
        kinds, out = self.kinds(sample_ids), images.clone()
        for number, occlusion in enumerate(self.occlusions, 1):
            rows = (kinds == number).nonzero()[:, 0]
            if len(rows):
                points = None if landmarks is None else landmarks[rows]
                out[rows] = occlusion(images[rows], points, sample_ids[rows]).images
        return out


def check_landmarks(landmarks: Tensor | None, size: tuple[int, int], names: Sequence[str]) -> None:
    """Check before training that accessories can be drawn on every image.

    Args:
        landmarks: float64 [N, 5, 2], NaN for images without landmarks; or None.
        size: (height, width) of the images.
        names: Names of the images.

    Raises:
        ValueError: If landmarks are missing, the eyes coincide, the mouth is not at least a pixel below the eyes, or
            the nose lies outside of the image.
    """
    if landmarks is None:
        raise ValueError(
            "drawn: expected a data set with landmarks to draw by, got none; find them with occfast data landmarks, "
            "and give them as data.arguments.landmarks"
        )
    points = landmarks.double()
    found = points.isfinite().flatten(1).all(1)
    frame = FaceFrame.of(points)
    nose = points[:, 2]
    fits = (
        ((points[:, 1] - points[:, 0]).norm(dim=1) >= 1e-6)
        & (frame.down[:, 0] >= 1)
        & (frame._span().abs() >= 1)
        & (nose >= 0).all(1)
        & (nose < torch.tensor(size)).all(1)
    )
    for bad, what in ((~found, "landmarks to draw by"), (~fits, "the mouth below two eyes and the nose in the image")):
        if bool(bad.any()):
            first = names[int(bad.nonzero()[0])]
            raise ValueError(f"drawn: expected {what} on every image, not on {int(bad.sum())}, such as {first}")
