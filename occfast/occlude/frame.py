"""Coordinates on a face, from its five landmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Part of the face whose pixels are skin on nearly everybody: range of u and of v in :meth:`FaceFrame.coordinates`.
_SKIN = (0.65, (0.35, 0.85))


class FaceFrame(NamedTuple):
    """A coordinate system on each face.

    The five landmarks do not include the outline of the face. It follows from average proportions: the horizontal
    offset of the nose measures how far the head is turned, and the half that is turned away becomes narrower.

    Attributes:
        eyes: float64 [N, 2], the middle between the eyes (row, column).
        across: float64 [N, 2], unit vector from the left to the right eye.
        down: float64 [N, 2], from the eyes to the middle of the mouth.
        size: float64 [N, 1], half the width of a frontal face, about; in pixels.
        turn: float64 [N, 1], offset of the nose from the line between eyes and mouth, in units of ``size``.
        left, right: float64 [N, 1], width of the left and of the right half of the face in pixels.
    """

    eyes: Tensor
    across: Tensor
    down: Tensor
    size: Tensor
    turn: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, landmarks: Tensor) -> FaceFrame:
        """Return the frames of faces with landmarks [N, 5, 2]."""
        points = landmarks.double()
        eyes, mouth, nose = points[:, :2].mean(1), points[:, 3:].mean(1), points[:, 2]
        across, down = points[:, 1] - points[:, 0], mouth - eyes
        distance = across.norm(dim=1, keepdim=True)
        x = across / distance
        # Turning the head shortens the distance between the eyes but not the distance to the mouth; nodding does the
        # opposite.
        size = torch.maximum(distance, down.norm(dim=1, keepdim=True))
        along = ((nose - eyes) * down).sum(1, keepdim=True) / (down * down).sum(1, keepdim=True).clamp(min=1e-12)
        turn = ((nose - eyes - along * down) * x).sum(1, keepdim=True) / size
        # The tip of the nose protrudes by about 0.35 of half the head's width from the plane of eyes and mouth, which
        # lies about 0.7 in front of the axis of rotation. As the head turns, its outline therefore shifts relative to
        # eyes and mouth by about twice as much as the nose.
        left, right = (size * (1.02 + sign * 2 * turn).clamp(0.45, 1.4) for sign in (1, -1))
        return cls(eyes, x, down, size, turn, left, right)

    def check(self) -> FaceFrame:
        """Return the frames if eyes and mouth span an area.

        Raises:
            ValueError: the mouth lies within a pixel of the line of the eyes.
        """
        flat = self._span().abs() < 1
        if bool(flat.any()):
            k = int(flat.nonzero()[0])
            raise ValueError(f"landmarks: expected the mouth apart from the eyes, not in image {k}")
        return self

    def _span(self) -> Tensor:
        """Return the distance of the mouth from the line of the eyes, positive below it, float64 [N]."""
        return self.across[:, 1] * self.down[:, 0] - self.across[:, 0] * self.down[:, 1]

    @property
    def normal(self) -> Tensor:
        """Unit vector at a right angle to ``across``, downward on the face, float64 [N, 2]."""
        return torch.stack([self.across[:, 1], -self.across[:, 0]], 1) * self._span().sign()[:, None]

    def coordinates(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place on the face of each pixel of images [N, C, H, W].

        Returns:
            u and v, float32 [N, H, W]: u is 0 in the middle, -1 and 1 at the left and the right outline; v is 0 at the
            eyes and 1 at the mouth.
        """
        rows, columns = self._offsets(images, self.eyes)
        x, down = (vector.float()[..., None, None] for vector in (self.across, self.down))
        v = (x[:, 1] * rows - x[:, 0] * columns) / self._span().float()[:, None, None]
        along = (down * x).sum(1)
        u = columns * x[:, 1] + rows * x[:, 0] - v * along
        left, right = (width.float()[..., None] for width in (self.left, self.right))
        return torch.where(u < 0, u / left, u / right), v

    def placed(self, images: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates that keep shapes: x along the eyes, y downward at a right angle, in units of ``size``.

        Args:
            images: [N, C, H, W].
            origin: float64 [N, 2], (row, column) of x = y = 0.

        Returns:
            x and y, float32 [N, H, W].
        """
        rows, columns = self._offsets(images, origin)
        x, y = ((vector / self.size).float()[..., None, None] for vector in (self.across, self.normal))
        return columns * x[:, 1] + rows * x[:, 0], columns * y[:, 1] + rows * y[:, 0]

    @staticmethod
    def _offsets(images: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
        # Subtracted in float64, so that float32 holds the difference at any distance from the image's corner.
        rows = torch.arange(images.shape[2], dtype=torch.float64, device=images.device) - origin[:, :1]
        columns = torch.arange(images.shape[3], dtype=torch.float64, device=images.device) - origin[:, 1:]
        return rows.float()[:, :, None], columns.float()[:, None, :]

    def skin(self, images: Tensor) -> Tensor:
        """Return the mean color of each face between eyes and mouth, float64 [N, C, 1, 1] in [0, 1].

        Raises:
            ValueError: no pixel of a face between eyes and mouth lies within the image.
        """
        u, v = self.coordinates(images)
        inside = (u.abs() < _SKIN[0]) & (v > _SKIN[1][0]) & (v < _SKIN[1][1])
        count = inside.flatten(1).sum(1)
        if bool((count == 0).any()):
            k = int((count == 0).nonzero()[0])
            raise ValueError(
                f"landmarks: expected a face within the image to take the skin's color from, not image {k}"
            )
        steps = 255 if images.dtype == torch.uint8 else 65535
        # Whole numbers add up to the same in any order, so a color does not depend on the batch.
        whole = images.long() if images.dtype == torch.uint8 else (images.double() * steps).round().long()
        total = (whole * inside[:, None]).flatten(2).sum(2)
        return (total.double() / (count[:, None] * steps))[..., None, None]
