"""Input checks and distances that the losses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import checks
from ..native import ops

#: Rule that selects triplets; see :class:`~occfast.losses.BatchTripletLoss`.
Mining = Literal["violating", "semihard", "semihard_random", "hardest", "all"]
#: What the triplet losses keep of a batch; see :class:`~occfast.losses.BatchTripletLoss`.
Memory = Literal["auto", "quadratic", "linear"]
#: Distance between two embeddings; see :class:`~occfast.losses.BatchTripletLoss`.
Distance = Literal["squared_euclidean", "euclidean", "cosine"]


def check_options(margin: float, mining: str, distance: str, seed: int) -> float:
    """Check the options that the triplet losses and the miner share, and return the margin as a float."""
    checks.choice(mining, "mining", ops.MININGS)
    checks.choice(distance, "distance", ops.DISTANCES)
    checks.seed(seed)
    return checks.number(margin, "margin", 0.0, checks.MAX_FLOAT32)


def check_cosface(scale: float, margin: float) -> tuple[float, float]:
    """Check scale and margin of the large margin cosine loss; logits differ by up to scale x (margin + 2)."""
    scale = checks.number(scale, "scale", above=0.0)
    margin = checks.number(margin, "margin", 0.0)
    if scale * (margin + 2) > checks.MAX_FLOAT32:
        raise ValueError(
            f"scale: expected at most {checks.MAX_FLOAT32 / (margin + 2):.3g} with margin {margin:g}, so that logits "
            f"stay finite in float32, got {scale:g}"
        )
    return scale, margin


def check_batch(embeddings: Tensor, labels: Tensor | None, names: tuple[str, str], *, empty: bool = False) -> Tensor:
    """Check a batch by shape, dtype and device only, and return its labels as int64.

    Args:
        embeddings: Floating point [B, D].
        labels: Integers [B], on the device of ``embeddings``.
        names: Names of both arguments for error messages.
        empty: Accept B = 0, as for one rank of a distributed batch.
    """
    if not isinstance(embeddings, Tensor):
        raise TypeError(f"{names[0]}: expected a tensor, got {type(embeddings).__name__}")
    if embeddings.dim() != 2:
        raise ValueError(f"{names[0]}: expected shape [B, D], got {list(embeddings.shape)}")
    if not embeddings.is_floating_point():
        raise TypeError(f"{names[0]}: expected a floating-point tensor, got {embeddings.dtype}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"{names[1]}: expected a tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{names[1]}: expected an integer tensor, got {labels.dtype}")
    if tuple(labels.shape) != (embeddings.shape[0],):
        raise ValueError(f"{names[1]}: expected shape [{embeddings.shape[0]}], got {list(labels.shape)}")
    if labels.device != embeddings.device:
        raise ValueError(f"{names[1]}: expected a tensor on {embeddings.device}, got {labels.device}")
    if (not empty and embeddings.shape[0] == 0) or embeddings.shape[1] == 0:
        missing = "column" if embeddings.shape[1] == 0 else "row"
        raise ValueError(f"{names[0]}: expected at least one {missing}, got shape {list(embeddings.shape)}")
    return labels.long()


def check_features(features: Tensor, size: int, device: torch.device, *, empty: bool = False) -> None:
    """Check the features of a classifier: floating point [N, size] on ``device``; ``empty`` accepts N = 0."""
    if not isinstance(features, Tensor):
        raise TypeError(f"features: expected a tensor, got {type(features).__name__}")
    if features.dim() != 2 or features.shape[1] != size:
        raise ValueError(f"features: expected shape [N, {size}], got {list(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features: expected a floating-point tensor, got {features.dtype}")
    if features.device != device:
        raise ValueError(f"features: expected a tensor on {device}, got {features.device}")
    if not empty and features.shape[0] == 0:
        raise ValueError(f"features: expected at least one row, got shape {list(features.shape)}")


def check_indices(indices: Sequence[Tensor], name: str, rows: int, candidates: int, *, values: bool) -> None:
    """Check listed triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, negatives).

    Args:
        indices: 3 or 4 integer tensors, each [T]; of pairs the first two and the last two may differ in length.
        name: Name of the argument for error messages.
        rows: Number of anchors.
        candidates: Number of positives and negatives.
        values: Also check the range of the indices, which waits for a GPU.
    """
    if not isinstance(indices, (tuple, list)) or not all(isinstance(part, Tensor) for part in indices):
        raise TypeError(f"{name}: expected a tuple of tensors, got {type(indices).__name__}")
    if len(indices) not in (3, 4):
        raise ValueError(f"{name}: expected 3 or 4 tensors, got {len(indices)}")
    shapes = [list(part.shape) for part in indices]
    for part in indices:
        if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool:
            raise TypeError(f"{name}: expected integer tensors, got {part.dtype}")
    together = (shapes,) if len(indices) == 3 else (shapes[:2], shapes[2:])
    if any(len(shape) != 1 or shape != group[0] for group in together for shape in group):
        raise ValueError(f"{name}: expected tensors of shape [T], of one length, got shapes {shapes}")
    if not values:
        return
    for k, part in enumerate(indices):
        count = rows if k == 0 or (k, len(indices)) == (2, 4) else candidates
        if part.numel() and not bool((part.min() >= 0) & (part.max() < count)):
            raise ValueError(f"{name}: expected indices in [0, {count}), got [{int(part.min())}, {int(part.max())}]")


def prepare(embeddings: Tensor, distance: str) -> Tensor:
    """Return embeddings in float32 or float64, scaled to unit length (zero rows stay zero) for the cosine distance."""
    working = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    if distance != "cosine":
        return working
    length = torch.linalg.vector_norm(working, dim=1, keepdim=True, dtype=torch.float64)
    unit: Tensor = working / torch.where(length > 0, length, 1.0).to(working.dtype) * (length > 0)
    return unit


def listed_distances(a: Tensor, b: Tensor, i: Tensor, j: Tensor, distance: str) -> Tensor:
    """Compute the distances of the rows ``a[i]`` from the rows ``b[j]``.

    Args:
        a, b: Embeddings [B, D] and [M, D] from :func:`prepare`.
        i, j: int64 [P].
        distance: One of :data:`Distance`.

    Returns:
        [P], in the dtype of ``a``.
    """
    squares = (a[i] - b[j]).square().sum(1)
    if distance == "euclidean":  # the derivative at 0 is taken as 0
        return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    if distance == "cosine":
        zero = (a.detach()[i] == 0).all(1) | (b.detach()[j] == 0).all(1)
        return torch.where(zero, 1.0, squares * 0.5)
    return squares
