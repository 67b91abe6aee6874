"""Mask dictionary: the features that survive the occlusion of each region (pdsn-landmarks, 3.3 and 3.5)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..errors import DataError
from ..files import read_npz, write_npz
from ..progress import Report
from ..progress import progress as show_progress
from .base import as_base, frozen
from .generator import Generators, TrainingOptions, cover, train_generators
from .regions import Regions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from typing_extensions import Unpack

_KIND = "occfast.MaskDictionary"


@dataclass(frozen=True, eq=False)
class MaskDictionary:
    """Masks of the base's maps, one for each region.

    Attributes:
        regions: The R regions.
        means: Mean masks m_k, float32 [R, C, H, W] in [0, 1]: outputs of the generators, each min-max normalized,
            averaged over pairs. Low values mark features that the occlusion of region k corrupts.
        percentile: Features at or below this percentile of m_k are discarded, in [0, 100].
        base: Fingerprint of the base network. Other networks are rejected.
        pairs: Number of pairs behind each mean mask, R of them.
        settings: Settings of the construction, for the record.
    """

    regions: Regions
    means: Tensor
    percentile: float
    base: str
    pairs: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.number(self.percentile, "percentile", 0.0, 100.0)
        if self.means.dim() != 4 or len(self.means) != len(self.regions):
            raise ValueError(f"means: expected shape [{len(self.regions)}, C, H, W], got {list(self.means.shape)}")

    @property
    def thresholds(self) -> Tensor:
        """Thresholds δ_k: the percentile of each mean mask, interpolated linearly, float64 [R]."""
        ordered = self.means.double().flatten(1)
        return torch.quantile(ordered, self.percentile / 100, dim=1)

    @property
    def masks(self) -> Tensor:
        """Binary masks M_k (Eq. 4), bool [R, C, H, W]: True where m_k > δ_k, for features to keep."""
        return self.means.double() > self.thresholds[:, None, None, None]

    @property
    def soft_masks(self) -> Tensor:
        """Soft masks, an extension of the paper: m_k stretched to [0, 1], float32 [R, C, H, W]."""
        return _stretch(self.means)

    def with_percentile(self, percentile: float) -> MaskDictionary:
        """Return a dictionary with the same mean masks and another percentile."""
        return replace(self, percentile=checks.number(percentile, "percentile", 0.0, 100.0))

    def combine(self, occluded: Tensor, *, soft: bool = False) -> Tensor:
        """Multiply the masks of the occluded regions; without an occluded region, the result is all ones.

        Args:
            occluded: Occluded regions of each image, bool [N, R].
            soft: Use :attr:`soft_masks`.

        Returns:
            bool [N, C, H, W]; float32 if ``soft``.
        """
        if occluded.dtype != torch.bool:
            raise TypeError(f"occluded: expected dtype bool, got {str(occluded.dtype).removeprefix('torch.')}")
        if occluded.dim() != 2 or occluded.shape[1] != len(self.regions):
            raise ValueError(f"occluded: expected shape [N, {len(self.regions)}], got {list(occluded.shape)}")
        masks = (self.soft_masks if soft else self.masks).to(occluded.device)
        out = torch.ones(len(occluded), *masks.shape[1:], dtype=masks.dtype, device=masks.device)
        for k, mask in enumerate(masks):
            rows = occluded[:, k].nonzero()[:, 0]
            out[rows] = out[rows] * mask
        return out

    def discard_mask(
        self, occlusion: Tensor, *, boxes: Tensor | None = None, share: float = 0.5, soft: bool = False
    ) -> Tensor:
        """Compute the feature discarding mask of each image (pdsn-landmarks, 3.5).

        Args:
            occlusion: Occluded pixels, bool [N, H, W], of the size of the regions.
            boxes: Regions of each image, int64 [N, R, 4]; see :meth:`Regions.at`. Default: the common regions.
            share: Share of a region, in (0, 1], from which it counts as occluded.
            soft: Use :attr:`soft_masks`.

        Returns:
            bool [N, C', H', W'], True for features to keep; float32 if ``soft``.
        """
        return self.combine(self.regions.occluded(occlusion, boxes, share), soft=soft)

    def check_base(self, base: nn.Module) -> None:
        """Check that this dictionary was built with a base.

        Raises:
            ValueError: It was built with another network.
        """
        found = as_base(base).fingerprint()
        if found != self.base:
            raise ValueError(f"dictionary: built with base {self.base}, got base {found}, whose features differ")

    def report(self, percentiles: Sequence[float] = (5, 10, 15, 20, 25, 30, 35, 40, 50)) -> list[dict[str, Any]]:
        """Compute the share of features that each percentile discards.

        Returns:
            One dict for each percentile with shares in [0, 1]: ``discarded`` for each region alone, ``all_regions`` if
            all of them are occluded, and ``overlap``, the largest intersection over union of the features that two
            regions discard.
        """
        rows = []
        for percentile in percentiles:
            gone = ~self.with_percentile(percentile).masks.flatten(1)
            both = (gone.double() @ gone.double().T).fill_diagonal_(0)
            union = gone.sum(1)[:, None] + gone.sum(1)[None] - both
            rows.append(
                {
                    "percentile": float(percentile),
                    "discarded": dict(zip(self.regions.names, gone.double().mean(1).tolist(), strict=True)),
                    "all_regions": float(gone.any(0).double().mean()),
                    "overlap": float((both / union.clamp_min(1)).max()),
                }
            )
        return rows

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw the share of channels that each region's mask keeps at each position of the maps.

        Args:
            axes: Matplotlib axes, one for each region. Default: those of a new figure.

        Returns:
            The axes.
        """
        from matplotlib.figure import Figure

        count = len(self.regions)
        if axes is None:
            axes = Figure(figsize=(1.5 * count, 2.2), layout="constrained").subplots(1, count, squeeze=False)[0]
        for ax, name, mask in zip(axes, self.regions.names, self.masks, strict=True):
            ax.imshow(mask.double().mean(0).numpy(), cmap="magma", vmin=0, vmax=1)
            ax.set_title(name, fontsize=9)
            ax.set_axis_off()
        return axes

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.npz`` file, atomically.

        Raises:
            ValueError: The name doesn't end in ``.npz``.
        """
        if Path(path).suffix != ".npz":
            raise ValueError(f"path: expected a name ending in .npz, got {os.fspath(path)!r}")
        about = {"percentile": self.percentile, "base": self.base, "pairs": self.pairs, "settings": self.settings}
        return write_npz(
            path, kind=_KIND, about=json.dumps(about), regions=self.regions.to_json(), means=self.means.cpu().numpy()
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskDictionary:
        """Read a file written by :meth:`save`. Nothing is unpickled.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: The file is damaged or something else.
        """
        content = read_npz(path)
        if str(content.get("kind", "")) != _KIND:
            raise DataError(f"{path}: not a saved MaskDictionary")
        try:
            about = json.loads(str(content["about"]))
            means = content["means"]
            if means.dtype != np.float32:
                raise ValueError(f"means are {means.dtype}")
            return cls(
                Regions.from_json(str(content["regions"]), str(path)),
                torch.from_numpy(means),
                float(about["percentile"]),
                str(about["base"]),
                tuple(map(int, about["pairs"])),
                dict(about["settings"]),
            )
        except DataError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: damaged MaskDictionary ({error})") from error


def build_dictionary(
    base: nn.Module,
    regions: Regions,
    loader: Iterable[tuple[Tensor, Tensor]],
    percentile: float | None = None,
    *,
    generators: Generators | None = None,
    boxes: Tensor | None = None,
    intensity: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 32,
    seed: int = 0,
    progress: bool | Report = True,
    **training: Unpack[TrainingOptions],
) -> MaskDictionary:
    """Average the masks of the generators over pairs of clean and occluded images (pdsn-landmarks, 3.3).

    Args:
        base: Base network; see :func:`~occfast.pdsn.as_base`.
        regions: Regions to build masks for.
        loader: Batches of images, uint8 or floating point in [0, 1], [N, C, H, W], and labels, int64 [N]. For images in
            memory, pass a list of one batch. Every image is paired with every region.
        percentile: See :class:`MaskDictionary`. Default: that of ``regions``, the paper's for their kind.
        generators: Trained mask generators. Default: they are trained on the same images first.
        boxes: Regions of each image, int64 [N, R, 4]. An empty region makes no pair. Default: the common regions.
        intensity: Lowest and highest gray level of the blocks, in [0, 1].
        batch_size: Number of images per forward pass of the base.
        seed: Random seed of the intensities and of the training.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).
        training: Keyword arguments of :func:`train_generators`, if ``generators`` is not given.

    Raises:
        TypeError: ``training`` is given together with ``generators``.
        ValueError: There is no image, or the generators are of another base or other regions.
    """
    base = as_base(base)
    batches = list(loader)
    if not batches:
        raise ValueError("loader: expected at least one batch, got none")
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    checks.seed(seed)
    checks.integer(batch_size, "batch_size", 1)
    if generators is None:
        generators = train_generators(
            base, regions, images, labels, boxes=boxes, intensity=intensity, seed=seed, progress=progress, **training
        )
    elif training:
        raise TypeError(f"{', '.join(sorted(training))}: only valid without generators, got trained ones")
    fingerprint = base.fingerprint()
    if generators.base and generators.base != fingerprint:
        raise ValueError(f"generators: trained with base {generators.base}, got base {fingerprint}")
    if generators.regions.to_json() != regions.to_json():
        raise ValueError("generators: trained for other regions")
    low, high = (checks.number(value, "intensity", 0.0, 1.0) for value in intensity)
    random = torch.Generator().manual_seed(seed)
    total: Tensor | None = None
    pairs = torch.zeros(len(regions), dtype=torch.int64)
    own = boxes if boxes is not None else regions.boxes.expand(len(images), -1, -1)
    title = f"mask dictionary, {regions.kind}"
    with torch.no_grad(), frozen(base), frozen(generators), show_progress(title, "images", progress) as report:
        for rows in torch.arange(len(images)).split(batch_size):
            clean = base.maps(images[rows])
            if total is None:
                total = torch.zeros(len(regions), *clean.shape[1:], dtype=torch.float64, device=clean.device)
            for k, each in enumerate(generators.each):
                gray = low + (high - low) * torch.rand(len(rows), generator=random)
                box = own[rows, k]
                there = ((box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])).nonzero()[:, 0]
                if len(there) == 0:
                    continue
                covered = base.maps(cover(images[rows[there]], box[there], gray[there]))
                mask = _stretch(each((clean[there.to(clean.device)] - covered).abs()))
                total[k] += mask.double().sum(0)
                pairs[k] += len(there)
            report(int(rows[-1]) + 1, len(images))
    if total is None or int(pairs.min()) == 0:
        raise ValueError(f"boxes: expected some image with a non-empty region {regions.names[int(pairs.argmin())]!r}")
    means = (total.cpu() / pairs[:, None, None, None]).float()
    settings = {"intensity": [low, high], "seed": seed, "own boxes": boxes is not None}
    return MaskDictionary(
        regions,
        means,
        regions.percentile if percentile is None else percentile,
        fingerprint,
        tuple(pairs.tolist()),
        settings,
    )


def _stretch(masks: Tensor) -> Tensor:
    """Min-max normalize each mask, [N, C, H, W]; a constant mask becomes 0."""
    flat = masks.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    stretched = (flat - low[:, None]) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
    return stretched.view_as(masks)
