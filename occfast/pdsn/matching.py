"""Whose face is it?  Nearest neighbors under each probe's own mask, without a loop over pairs.

With w = mask² (for a binary mask the mask itself), probe p and gallery image g,

    cosine(mask·p, mask·g) = Σ w p g / √(Σ w p² · Σ w g²).

The numerators of all probes against all gallery images are one matrix product, (w∘p) Gᵀ, whatever their masks; the
gallery's norms depend on the mask alone, so probes are grouped by it and one more product, W (G∘G)ᵀ, gives them.

Features are first rounded to fixed point: integers, scaled by a power of two chosen from each image's largest
feature so that every partial sum stays below 2⁵³.  In float64 these sums are exact, in any order: grouping, batch
size, threads, tiles and device change nothing, to the bit.  The rounding (2⁻¹⁸ of an image's largest feature where
there are 24,576) is about that of float32 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import as_tensor
from .base import Base, as_base, frozen
from .dictionary import MaskDictionary

#: Soft weights are rounded to multiples of 1 / 256.
_SOFT_BITS = 8
#: Probes in one matrix product, and gallery images in one tile: 0.5 GB at 24,576 features.
_PROBES, _TILE = 1024, 256


@dataclass(frozen=True, eq=False)
class Ranking:
    """The nearest gallery images of each probe, nearest first; of equals the one that stands first in the gallery.

    Attributes:
        neighbors: numbers of gallery images, int64 [P, k].
        labels: theirs, int64 [P, k].
        similarities: cosines, float64 [P, k].
        occluded: which regions of each probe counted as occluded, bool [P, R] (R = 0 without a dictionary).
        groups: number of different masks among the probes.
    """

    neighbors: Tensor
    labels: Tensor
    similarities: Tensor
    occluded: Tensor
    groups: int

    def right(self, labels: Tensor, k: int = 1) -> Tensor:
        """For which probes the right person is among the k nearest gallery images; bool [P]."""
        if not 1 <= k <= self.labels.shape[1]:
            raise ValueError(f"k: expected 1 to {self.labels.shape[1]}, the neighbors that were kept, got {k}")
        if labels.shape != self.labels.shape[:1]:
            raise ValueError(f"labels: expected shape [{len(self.labels)}], got {list(labels.shape)}")
        return (self.labels[:, :k] == labels.to(self.labels.device)[:, None]).any(1)

    def accuracy(self, labels: Tensor, k: int = 1) -> float:
        """Rank-k accuracy in [0, 1]."""
        return float(self.right(labels, k).double().mean())


def identify(
    base: nn.Module,
    dictionary: MaskDictionary | None,
    gallery: Tensor,
    gallery_labels: Tensor,
    probes: Tensor,
    occlusion: Tensor | None,
    *,
    boxes: Tensor | None = None,
    share: float = 0.5,
    soft: bool = False,
    compare: str = "maps",
    k: int = 5,
    batch_size: int = 32,
) -> Ranking:
    """Rank the gallery for each probe, both masked by the probe's discard mask (pdsn-landmarks, 4.3).

    Args:
        base: see :func:`~occfast.pdsn.as_base`.
        dictionary: made with this base; None compares without masks.
        gallery: images, uint8 or float in [0, 1], [G, C, H, W]; clean.
        gallery_labels: int64 [G].
        probes: images, [P, C, H, W].
        occlusion: bool [P, H, W], occluded pixels of the probes, known or from a segmentation; None: none are.
        boxes: int64 [P, R, 4], regions of each probe's own.
        share, soft: see :meth:`MaskDictionary.discard_mask`.
        compare: "maps": cosine of the masked maps; "features": of the base's feature of the masked maps.
        k: neighbors to keep, 1 to G.
        batch_size: of the base.
    """
    base = as_base(base)
    if dictionary is not None:
        dictionary.check_base(base)
    masks = occluded = None
    if dictionary is not None:
        if occlusion is None:
            occlusion = torch.zeros(len(probes), *dictionary.regions.size, dtype=torch.bool)
        if len(occlusion) != len(probes):
            raise ValueError(f"occlusion: expected one for each of {len(probes)} probes, got {len(occlusion)}")
        occluded = dictionary.regions.occluded(as_tensor(occlusion, "occlusion"), boxes, share)
        patterns, group = occluded.unique(dim=0, return_inverse=True)
        masks = dictionary.combine(patterns, soft=soft), group
    gallery_maps, probe_maps = base.all_maps(gallery, batch_size), base.all_maps(probes, batch_size)
    found = match(
        gallery_maps,
        gallery_labels,
        probe_maps,
        masks,
        k=k,
        base=base if compare == "features" else None,
        compare=compare,
    )
    if occluded is None:
        return found
    return Ranking(found.neighbors, found.labels, found.similarities, occluded, found.groups)


def match(
    gallery: Tensor,
    gallery_labels: Tensor,
    probes: Tensor,
    masks: tuple[Tensor, Tensor] | None = None,
    *,
    k: int = 5,
    compare: str = "maps",
    base: Base | None = None,
) -> Ranking:
    """:func:`identify` for maps that are there already.

    Args:
        gallery, probes: float maps [G, C, H, W] and [P, C, H, W].
        gallery_labels: int64 [G].
        masks: the different masks, bool or float in [0, 1], [U, C, H, W], and the number of each probe's, int64 [P].
        compare, base: "features" sends the masked maps through the tail of ``base`` first, the gallery's once
            for each mask.
        k: neighbors to keep.
    """
    _check(gallery, gallery_labels, probes, masks, k, compare, base)
    gallery_labels = gallery_labels.to(probes.device)
    if masks is None:
        masks = probes.new_ones(1, *probes.shape[1:], dtype=torch.bool), torch.zeros(len(probes), dtype=torch.int64)
    weights, group = masks[0].to(probes.device), masks[1].to(probes.device)
    # Masks that come out alike (regions whose masks discard the same) are one group.
    weights, alike = weights.flatten(1).unique(dim=0, return_inverse=True)
    group = alike[group]
    with torch.no_grad():
        if compare == "maps":
            similarity = _masked_cosines(gallery.flatten(1), probes.flatten(1), weights, group, k)
        else:
            assert base is not None
            similarity = _feature_cosines(base, gallery, probes, weights.view(-1, *probes.shape[1:]), group, k)
    neighbors, best = similarity
    return Ranking(
        neighbors,
        gallery_labels[neighbors],
        best,
        torch.zeros(len(probes), 0, dtype=torch.bool),
        int(group.unique().numel()),
    )


def fixed_point(rows: Tensor, weight_bits: int = 0) -> Tensor:
    """Rows as integers whose products sum exactly in float64; the same type, [N, D].

    Each row is multiplied by a power of two and rounded (to even), such that its Euclidean norm is at most about
    2^((52 - ``weight_bits``) / 2): with weights of so many bits every partial sum of products of two rows is an
    integer below 2⁵³.  A row of zeros stays zero.
    """
    bits = (52 - weight_bits) // 2 - math.ceil(math.log2(max(rows.shape[1], 1)) / 2)
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    # ldexp on the CPU: a power of two to the bit, which no device's power function promises.
    exponent = np.frexp(largest.double().cpu().numpy())[1]  # largest < 2^exponent
    scale = torch.from_numpy(np.ldexp(1.0, bits - exponent)).to(rows.device)
    return (rows.double() * scale[:, None]).round_()


def _masked_cosines(gallery: Tensor, probes: Tensor, weights: Tensor, group: Tensor, k: int) -> tuple[Tensor, Tensor]:
    soft = weights.dtype != torch.bool
    bits = _SOFT_BITS if soft else 0
    w = (weights.double().square() * 2**bits).round() if soft else weights.double()
    neighbors, best = [], []
    count = max(1, min(_PROBES, 2**27 // len(gallery)))  # their similarities take at most 1 GiB
    for part, which in zip(probes.split(count), group.split(count), strict=True):
        p = fixed_point(part, bits)
        masked = p * w[which]
        own = (masked * p).sum(1, keepdim=True)
        similarity = torch.empty(len(part), len(gallery), dtype=torch.float64, device=part.device)
        for first, tile in zip(range(0, len(gallery), _TILE), gallery.split(_TILE), strict=True):
            g = fixed_point(tile, bits)
            dots = masked @ g.T
            scale = _sqrt(own * (w @ g.square_().T)[which])
            similarity[:, first : first + _TILE] = torch.where(scale > 0, dots / scale, 0.0)
        found = _nearest(similarity, k)
        neighbors.append(found[0])
        best.append(found[1])
    return torch.cat(neighbors), torch.cat(best)


def _feature_cosines(
    base: Base, gallery: Tensor, probes: Tensor, masks: Tensor, group: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    # Each mask's gallery is the same whichever probes share it, and each probe goes through the tail in a batch of its
    # own: so grouping changes nothing, to the bit, for any tail that repeats itself.
    with frozen(base):
        own = torch.cat([base.features(p[None] * masks[u]) for p, u in zip(probes, group.tolist(), strict=True)])
        neighbors = torch.empty(len(probes), k, dtype=torch.int64, device=probes.device)
        best = torch.empty(len(probes), k, dtype=torch.float64, device=probes.device)
        for u in group.unique().tolist():
            rows = (group == u).nonzero()[:, 0]
            features = torch.cat([base.features(part * masks[u]) for part in gallery.split(_TILE)])
            one = torch.ones(1, features.shape[1], dtype=torch.bool, device=features.device)
            neighbors[rows], best[rows] = _masked_cosines(features, own[rows], one, torch.zeros_like(rows), k)
    return neighbors, best


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, as IEEE 754 has it: CUDA's and NumPy's are, PyTorch's on a CPU (MKL's) is off by one bit
    now and then, not always at the same place."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best, order = similarity.sort(dim=1, descending=True, stable=True)
    return order[:, :k].clone(), best[:, :k].clone()


def _check(
    gallery: Tensor,
    labels: Tensor,
    probes: Tensor,
    masks: tuple[Tensor, Tensor] | None,
    k: int,
    compare: str,
    base: Base | None,
) -> None:
    for name, maps in (("gallery", gallery), ("probes", probes)):
        if maps.dim() != 4 or len(maps) == 0:
            raise ValueError(f"{name}: expected maps [N, C, H, W] with N at least 1, got {list(maps.shape)}")
        if not bool(torch.isfinite(maps).all()):
            raise ValueError(f"{name}: expected finite maps, got NaN or infinity")
    shape: Sequence[int] = gallery.shape[1:]
    if probes.shape[1:] != shape:
        raise ValueError(f"probes: expected maps of shape {list(shape)} as the gallery's, got {list(probes.shape[1:])}")
    if labels.shape != gallery.shape[:1]:
        raise ValueError(f"gallery_labels: expected shape [{len(gallery)}], got {list(labels.shape)}")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k: expected 1 to {len(gallery)}, the gallery's images, got {k}")
    if compare not in ("maps", "features"):
        raise ValueError(f"compare: expected 'maps' or 'features', got {compare!r}")
    if compare == "features" and base is None:
        raise ValueError("base: comparing features needs the base network, got none")
    if masks is not None:
        if masks[0].shape[1:] != shape:
            raise ValueError(f"masks: expected shape [U, {', '.join(map(str, shape))}], got {list(masks[0].shape)}")
        if masks[1].shape != probes.shape[:1]:
            raise ValueError(f"masks: expected the number of a mask for each of {len(probes)} probes")
