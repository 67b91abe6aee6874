"""The mask dictionary: for each region the features that survive its occlusion.  (pdsn-landmarks, 3.3 and 3.5)"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import number
from ..checks import seed as check_seed
from ..errors import DataError
from ..files import read_npz, write_npz
from ..progress import Report
from ..progress import progress as show_progress
from .base import as_base, frozen
from .generator import Generators, cover, train_generators
from .regions import Regions

_KIND = "occfast.MaskDictionary"


@dataclass(frozen=True, eq=False)
class MaskDictionary:
    """A mask of the base's maps for each region, and how to combine those of the occluded ones.

    Attributes:
        regions: R of them.
        means: m_k, float32 [R, C, H, W] in [0, 1]: outputs of the generators, each min-max normalized, averaged over
            pairs; low where the features are corrupted when region k is occluded.
        percentile: features at or below this percentile of m_k are discarded, in [0, 100].
        base: fingerprint of the base network; any other is refused.
        pairs: how many pairs each mean is of, [R].
        settings: for the record.
    """

    regions: Regions
    means: Tensor
    percentile: float
    base: str
    pairs: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number(self.percentile, "percentile", 0.0, 100.0)
        if self.means.dim() != 4 or len(self.means) != len(self.regions):
            raise ValueError(f"means: expected shape [{len(self.regions)}, C, H, W], got {list(self.means.shape)}")

    @property
    def thresholds(self) -> Tensor:
        """δ_k, the percentile of each mean mask (interpolated linearly), float64 [R]."""
        ordered = self.means.double().flatten(1)
        return torch.quantile(ordered, self.percentile / 100, dim=1)

    @property
    def masks(self) -> Tensor:
        """M_k, bool [R, C, H, W]: True where m_k > δ_k, features to keep (Eq. 4)."""
        return self.means.double() > self.thresholds[:, None, None, None]

    @property
    def soft_masks(self) -> Tensor:
        """Past the paper: m_k stretched to [0, 1] instead of cut at δ_k; float32 [R, C, H, W]."""
        return _stretch(self.means)

    def with_percentile(self, percentile: float) -> MaskDictionary:
        """The same means cut elsewhere."""
        return MaskDictionary(
            self.regions, self.means, number(percentile, "percentile", 0.0, 100.0), self.base, self.pairs, self.settings
        )

    def combine(self, occluded: Tensor, *, soft: bool = False) -> Tensor:
        """Product of the masks of the occluded regions; without any all ones.

        Args:
            occluded: bool [N, R].

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
        """The feature discarding mask of each image (pdsn-landmarks, 3.5).

        Args:
            occlusion: bool [N, H, W], occluded pixels of images of the size of the regions.
            boxes: int64 [N, R, 4], regions of each image's own (:meth:`Regions.at`).
            share: a region counts as occluded when so much of it is, or more.
            soft: see :attr:`soft_masks`.

        Returns:
            bool [N, C', H', W'], True for features to keep; float32 if ``soft``.
        """
        return self.combine(self.regions.occluded(occlusion, boxes, share), soft=soft)

    def check_base(self, base: nn.Module) -> None:
        """ValueError unless this dictionary was made with that base."""
        found = as_base(base).fingerprint()
        if found != self.base:
            raise ValueError(f"dictionary: it was made with base {self.base}, got base {found}: features differ")

    def report(self, percentiles: Sequence[float] = (5, 10, 15, 20, 25, 30, 35, 40, 50)) -> list[dict[str, Any]]:
        """What each percentile would discard: one row each, with shares in [0, 1].

        ``discarded`` is of each region alone; ``all_regions`` of all occluded together; ``overlap`` the largest
        share (of the union) that two regions' discarded features have in common.
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

    def plot(self, axes: Any = None) -> Any:
        """Draw, for each region, the share of channels that is kept at each place of the maps; returns the axes."""
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
        """Write everything to ``.npz``, atomically."""
        if Path(path).suffix != ".npz":
            raise ValueError(f"path: expected a name ending in .npz, got {os.fspath(path)!r}")
        about = {"percentile": self.percentile, "base": self.base, "pairs": self.pairs, "settings": self.settings}
        return write_npz(
            path, kind=_KIND, about=json.dumps(about), regions=self.regions.to_json(), means=self.means.cpu().numpy()
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskDictionary:
        """Read what :meth:`save` wrote; DataError if it is damaged or something else.  Nothing is unpickled."""
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
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a whole MaskDictionary ({error})") from error


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
    **training: Any,
) -> MaskDictionary:
    """Average the generators' masks over pairs of clean and covered images (pdsn-landmarks, 3.3).

    Args:
        base: see :func:`~occfast.pdsn.as_base`.
        regions: what to make masks for.
        loader: batches (images, labels): uint8 or float in [0, 1], [N, C, H, W], and int64 [N]; a list of one pair
            for what is in memory already.  Every image makes one pair with every region.
        percentile: see :class:`MaskDictionary`; by default the paper's for the kind of regions.
        generators: trained ones; without them they are trained on the same images first, with the
            keyword arguments ``training`` of :func:`train_generators`.
        boxes: int64 [N, R, 4], regions of each image's own; an empty one makes no pair.
        intensity: lowest and highest gray of the blocks.
        seed: of the intensities (and of the training).
    """
    base = as_base(base)
    batches = list(loader)
    if not batches:
        raise ValueError("loader: expected at least one batch, got none")
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    check_seed(seed)
    if generators is None:
        generators = train_generators(
            base, regions, images, labels, boxes=boxes, intensity=intensity, seed=seed, progress=progress, **training
        )
    elif training:
        raise TypeError(f"build_dictionary: {sorted(training)} are for training, but trained generators were given")
    fingerprint = base.fingerprint()
    if generators.base and generators.base != fingerprint:
        raise ValueError(f"generators: they were trained with base {generators.base}, got base {fingerprint}")
    if generators.regions.to_json() != regions.to_json():
        raise ValueError("generators: they were trained for other regions")
    low, high = (number(value, "intensity", 0.0, 1.0) for value in intensity)
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
        raise ValueError(f"boxes: no image has a region {regions.names[int(pairs.argmin())]!r} that is not empty")
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
    """Each mask [N, C, H, W] min-max normalized; a constant one becomes 0."""
    flat = masks.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    stretched = (flat - low[:, None]) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
    return stretched.view_as(masks)
