"""Nearest neighbors under the mask of each probe, without a loop over pairs.

With w = mask² (for a binary mask, the mask itself), probe p and gallery image g,

    cosine(mask·p, mask·g) = Σ w p g / √(Σ w p² · Σ w g²).

The numerators of all probes and gallery images are one matrix product, (w∘p) Gᵀ, whatever the masks. The norms of the
gallery depend on the mask alone, so probes are grouped by mask, and a second product, W (G∘G)ᵀ, gives the norms.

Features are first rounded to fixed point, i.e. integers scaled by a power of two, which is chosen from the largest
feature of each image such that every partial sum is below 2⁵³. In float64 these sums are exact in any order. So the
result is the same to the bit for any grouping, batch size, number of threads, tiling and device. The rounding error
(2⁻¹⁸ of the largest feature of an image with 24,576 features) is about that of float32 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import checks
from ..checks import as_tensor
from .base import Base, as_base, frozen
from .dictionary import MaskDictionary

#: Soft weights are rounded to multiples of 1 / 256.
_SOFT_BITS = 8
#: Number of probes in one matrix product, and of gallery images in one tile: 0.5 GB at 24,576 features.
_PROBES, _TILE = 1024, 256


@dataclass(frozen=True, eq=False)
class Ranking:
    """The k nearest gallery images of each probe, nearest first; ties are in the order of the gallery.

    Attributes:
        neighbors: Numbers of the gallery images, int64 [P, k].
        labels: People on these images, int64 [P, k].
        similarities: Cosine similarities, float64 [P, k].
        occluded: Occluded regions of each probe, bool [P, R]; R is 0 without a dictionary.
        groups: Number of different masks among the probes.
    """

    neighbors: Tensor
    labels: Tensor
    similarities: Tensor
    occluded: Tensor
    groups: int

    def right(self, labels: Tensor, k: int = 1) -> Tensor:
        """Return whether the person on each probe is among its k nearest gallery images.

        Args:
            labels: Person on each probe, int64 [P].
            k: Rank, from 1 to the number of neighbors kept.

        Returns:
            bool [P].

        Raises:
            ValueError: ``k`` is out of range, or the shape of ``labels`` is wrong.
        """
        checks.integer(k, "k", 1, self.labels.shape[1])
        if labels.shape != self.labels.shape[:1]:
            raise ValueError(f"labels: expected shape [{len(self.labels)}], got {list(labels.shape)}")
        return (self.labels[:, :k] == labels.to(self.labels.device)[:, None]).any(1)

    def accuracy(self, labels: Tensor, k: int = 1) -> float:
        """Compute the rank-k accuracy, in [0, 1]; see :meth:`right`."""
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
    compare: Literal["maps", "features"] = "maps",
    k: int = 5,
    batch_size: int = 32,
) -> Ranking:
    """Rank the gallery for each probe, with both masked by the probe's discard mask (pdsn-landmarks, 4.3).

    Args:
        base: Base network; see :func:`~occfast.pdsn.as_base`.
        dictionary: Mask dictionary built with this base; None compares without masks.
        gallery: Clean images, uint8 or floating point in [0, 1], [G, C, H, W].
        gallery_labels: Person on each gallery image, int64 [G].
        probes: Images, [P, C, H, W].
        occlusion: Occluded pixels of the probes, known or from a segmentation, bool [P, H, W]; None: no pixel.
        boxes: Regions of each probe, int64 [P, R, 4]; see :meth:`Regions.at`. Default: the common regions.
        share: See :meth:`MaskDictionary.discard_mask`.
        soft: See :meth:`MaskDictionary.discard_mask`.
        compare: "maps" compares the masked maps, "features" the base's features of the masked maps.
        k: Number of neighbors to keep, 1 to G.
        batch_size: Number of images per forward pass of the base.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes differ, an argument is out of range, or the dictionary is of another base.
    """
    base = as_base(base)
    if dictionary is not None:
        dictionary.check_base(base)
    masks = occluded = None
    if dictionary is not None:
        if occlusion is None:
            occlusion = torch.zeros(len(probes), *dictionary.regions.size, dtype=torch.bool)
        if len(occlusion) != len(probes):
            raise ValueError(f"occlusion: expected one mask for each of {len(probes)} probes, got {len(occlusion)}")
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
    compare: Literal["maps", "features"] = "maps",
    base: Base | None = None,
) -> Ranking:
    """Rank the gallery for each probe, from maps; see :func:`identify`.

    Args:
        gallery: Maps of the gallery, float [G, C, H, W].
        gallery_labels: Person on each gallery image, int64 [G].
        probes: Maps of the probes, float [P, C, H, W].
        masks: Different masks, bool or float in [0, 1], [U, C, H, W], and the number of each probe's mask, int64 [P].
            Default: no masks.
        k: Number of neighbors to keep, 1 to G.
        compare: "maps", or "features" to pass the masked maps through the tail of ``base`` first, those of the gallery
            once for each mask.
        base: Base network, required by "features".

    Raises:
        ValueError: Shapes differ, an argument is out of range, or a map is not finite.
    """
    _check(gallery, gallery_labels, probes, masks, k, compare, base)
    gallery_labels = gallery_labels.to(probes.device)
    if masks is None:
        masks = probes.new_ones(1, *probes.shape[1:], dtype=torch.bool), torch.zeros(len(probes), dtype=torch.int64)
    weights, group = masks[0].to(probes.device), masks[1].to(probes.device)
    # Equal masks are one group, also if they are of different regions.
    weights, alike = weights.flatten(1).unique(dim=0, return_inverse=True)
    group = alike[group]
    with torch.no_grad():
        if compare == "maps":
            neighbors, best = _masked_cosines(gallery.flatten(1), probes.flatten(1), weights, group, k)
        else:
            assert base is not None
            neighbors, best = _feature_cosines(base, gallery, probes, weights.view(-1, *probes.shape[1:]), group, k)
    return Ranking(
        neighbors,
        gallery_labels[neighbors],
        best,
        torch.zeros(len(probes), 0, dtype=torch.bool),
        int(group.unique().numel()),
    )


def fixed_point(rows: Tensor, weight_bits: int = 0) -> Tensor:
    """Round rows to integers whose products have exact sums in float64.

    Each row is multiplied by a power of two and rounded to even, such that its Euclidean norm is at most about
    2^((52 - ``weight_bits``) / 2). Then every partial sum of products of two rows, with weights of this many bits, is
    an integer below 2⁵³. A row of zeros stays zero.

    Args:
        rows: float [N, D].
        weight_bits: Number of bits of the weights.

    Returns:
        float64 [N, D].
    """
    bits = (52 - weight_bits) // 2 - math.ceil(math.log2(max(rows.shape[1], 1)) / 2)
    largest = torch.maximum(rows.amax(1), -rows.amin(1))
    # ldexp on the CPU is exact; power functions of other devices need not be.
    exponent = np.frexp(largest.double().cpu().numpy())[1]  # largest < 2^exponent
    scale = torch.from_numpy(np.ldexp(1.0, bits - exponent)).to(rows.device)
    return (rows.double() * scale[:, None]).round_()


def _masked_cosines(gallery: Tensor, probes: Tensor, weights: Tensor, group: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the nearest of the gallery for each probe, under weights [U, D] and the number of each probe's row."""
    if weights.dtype == torch.bool:
        return _weighted_cosines(gallery, probes, weights.double(), 0, group, k)
    # Weights of 0 and 1 need no bits, so a soft mask that keeps everything equals no mask, to the bit.
    binary = ((weights == 0) | (weights == 1)).all(1)
    fixed = (weights.double().square() * 2**_SOFT_BITS).round()
    neighbors = torch.empty(len(probes), k, dtype=torch.int64, device=probes.device)
    best = torch.empty(len(probes), k, dtype=torch.float64, device=probes.device)
    for part, bits, w in ((binary, 0, weights.double()), (~binary, _SOFT_BITS, fixed)):
        rows = part[group].nonzero()[:, 0]
        if len(rows):
            number = (part.cumsum(0) - 1)[group[rows]]
            neighbors[rows], best[rows] = _weighted_cosines(gallery, probes[rows], w[part], bits, number, k)
    return neighbors, best


def _weighted_cosines(
    gallery: Tensor, probes: Tensor, w: Tensor, bits: int, group: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    neighbors, best = [], []
    count = max(1, min(_PROBES, 2**27 // len(gallery)))  # at most 1 GiB of similarities
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
    # The gallery under a mask doesn't depend on the probes that share the mask, and each probe is a batch of its own.
    # So grouping changes nothing, to the bit, for any deterministic tail.
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
    """Compute correctly rounded square roots, as IEEE 754 defines them.

    Those of CUDA and NumPy are. PyTorch's on a CPU (MKL's) are sometimes off by one bit, depending on the position.
    """
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
        raise ValueError(
            f"probes: expected maps of shape {list(shape)}, as those of the gallery, got {list(probes.shape[1:])}"
        )
    if labels.shape != gallery.shape[:1]:
        raise ValueError(f"gallery_labels: expected shape [{len(gallery)}], got {list(labels.shape)}")
    checks.integer(k, "k", 1, len(gallery))
    checks.choice(compare, "compare", ("maps", "features"))
    if compare == "features" and base is None:
        raise ValueError("base: expected the base network, which comparing features needs, got none")
    if masks is not None:
        if masks[0].shape[1:] != shape:
            raise ValueError(f"masks: expected shape [U, {', '.join(map(str, shape))}], got {list(masks[0].shape)}")
        if masks[1].shape != probes.shape[:1]:
            raise ValueError(f"masks: expected mask numbers of shape [{len(probes)}], got {list(masks[1].shape)}")
