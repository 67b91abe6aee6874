"""Deletion and insertion curves: how well a map orders the pixels by their importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .. import checks
from ..native.reference import cosine
from ..plots import shown_axes
from .evaluators.runner import checked_outputs
from .maps import OcclusionMap
from .options import check_fill_count, check_model, checked_fill, device_of, fill_for
from .precision import float32_as
from .source import Source
from .types import Fill, ImageInput, LabelInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The quantity along the curves, by name or a function of outputs [n, K] and labels [n, ...] or None.
CurveScore = Literal["probability", "output", "similarity"] | Callable[[Tensor, Tensor | None], Tensor]

_SCORES = ("probability", "output", "similarity")
_BLOCK = 16  # images


@dataclass(frozen=True, eq=False)
class Curves:
    """Deletion and insertion curves of some images.

    Attributes:
        fractions: Shares of the pixels that are deleted or inserted, float64 [steps + 1] from 0 to 1.
        deletion: Score of each image without its most important pixels, float64 [n, steps + 1].
        insertion: Score of each image with these pixels alone, float64 [n, steps + 1].
        score: Name of the score.
    """

    fractions: NDArray[np.float64]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    score: str

    @property
    def deletion_auc(self) -> NDArray[np.float64]:
        """Area under each image's deletion curve, float64 [n]. Lower is better."""
        return _area(self.fractions, self.deletion)

    @property
    def insertion_auc(self) -> NDArray[np.float64]:
        """Area under each image's insertion curve, float64 [n]. Higher is better."""
        return _area(self.fractions, self.insertion)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the mean curves and return the axes.

        Args:
            ax: Matplotlib axes; None: those of a new figure of pyplot.
        """
        ax = shown_axes() if ax is None else ax
        for name, values, area in (
            ("deletion", self.deletion, self.deletion_auc),
            ("insertion", self.insertion, self.insertion_auc),
        ):
            ax.plot(self.fractions, values.mean(0), label=f"{name}, area {area.mean():.3f}")
        ax.set_xlabel("share of the pixels")
        ax.set_ylabel(self.score)
        ax.legend()
        return ax

    def __repr__(self) -> str:
        deletion, insertion = self.deletion_auc.mean(), self.insertion_auc.mean()
        return f"Curves({len(self.deletion)} images, {self.score}: deletion {deletion:.4g}, insertion {insertion:.4g})"


@torch.no_grad()
def deletion_insertion(
    model: Callable[[Tensor], Tensor],
    images: ImageInput,
    labels: LabelInput | None,
    saliency: OcclusionMap | ArrayLike | Tensor,
    *,
    steps: int = 50,
    fill: Fill = 0.0,
    score: CurveScore = "probability",
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Curves:
    """Return the curves of a score while the most important pixels are deleted from images, or inserted into the fill.

    Source: Petsiuk et al. 2018, "RISE: randomized input sampling for explanation of black-box models", section 4.3.

    Args:
        model, images, labels, fill, device: As for :func:`~occfast.sweep.occlusion_map`; the fill is the content of
            deleted pixels.
        saliency: A map, of which each image's own scores are used where it holds them, interpolated to every pixel;
            or numbers [H, W] for all images or [N, H, W]. The largest are most important.
        steps: Number of steps, each of the same number of pixels up to rounding, at least 1.
        score: "probability" (softmax) or "output" of the label; "similarity" of the embedding to that of the image,
            or to ``labels``; or a function of outputs [n, ...] and labels [n, ...] that returns numbers [n].
        batch_size: Images in a forward pass.
        seed: Of the order of pixels that are equally important, and of ``fill="noise"``.

    Raises:
        TypeError, ValueError: An argument is wrong.
    """
    check_model(model)
    count = checks.integer(steps, "steps", 1)
    size = checks.integer(batch_size, "batch_size", 1)
    seed, content = checks.seed(seed), checked_fill(fill)
    if not callable(score):
        checks.choice(score, "score", _SCORES)
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    source = Source(images, labels, device_of(model, device))
    if source.total is not None:
        check_fill_count(content, source.total)
    with float32_as("ieee"):
        for block in source.blocks(_BLOCK):
            filled = fill_for(content, block.images, seed, block.indices).expand_as(block.images)
            value = _score(score, model, block.images, block.labels, size)
            for k, image in enumerate(block.images):
                number = int(block.indices[k])
                rank = _rank(_importance(saliency, number, image.shape[-2:]), seed, number).to(image.device)
                taken = [round(step * rank.numel() / count) for step in range(count + 1)]
                inside = [rank < limit for limit in taken]
                deleted = [torch.where(mask, filled[k], image) for mask in inside]
                inserted = [torch.where(mask, image, filled[k]) for mask in inside]
                found.append((value(k, deleted), value(k, inserted)))
    check_fill_count(content, len(found))
    deletion, insertion = (np.stack(curves) for curves in zip(*found, strict=True))
    name = score if isinstance(score, str) else getattr(score, "__name__", "score")
    return Curves(np.linspace(0.0, 1.0, count + 1), deletion, insertion, name)


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = ((y[:, 1:] + y[:, :-1]) / 2 * np.diff(x)).sum(1)
    return found


def _importance(saliency: Any, number: int, size: torch.Size) -> NDArray[np.float64]:
    """Return the importance of each pixel of an image, [H, W]."""
    height, width = size
    if isinstance(saliency, OcclusionMap):
        own = saliency.image_indices is not None and number in saliency.image_indices
        values = saliency.every_pixel(number if own and saliency.per_image is not None else None)
    else:
        given = saliency.detach().cpu().numpy() if isinstance(saliency, Tensor) else np.asarray(saliency)
        if given.dtype.kind not in "biuf" or given.ndim not in (2, 3):
            raise TypeError(f"saliency: expected a map or numbers [H, W] or [N, H, W], got {type(saliency).__name__}")
        if given.ndim == 3 and number >= len(given):
            raise ValueError(f"saliency: expected one map for each image, got {len(given)}")
        values = (given if given.ndim == 2 else given[number]).astype(np.float64)
    if values.shape != (height, width) or not np.isfinite(values).all():
        raise ValueError(f"saliency: expected finite numbers for {height}x{width} pixels, got {list(values.shape)}")
    return values


def _rank(importance: NDArray[np.float64], seed: int, number: int) -> Tensor:
    """Return the place of each pixel [H, W] in the order of importance; equal ones are in random order."""
    generator = np.random.default_rng([seed, number, 0xDE1E])
    tie = generator.permutation(importance.size)
    order = np.lexsort((tie, -importance.ravel()))
    rank = np.empty(importance.size, np.int64)
    rank[order] = np.arange(importance.size)
    return torch.from_numpy(rank.reshape(importance.shape))


def _score(
    score: CurveScore, model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor | None, size: int
) -> Callable[[int, list[Tensor]], NDArray[np.float64]]:
    """Return a function of the number of an image in the block and of copies, which returns their scores."""

    def outputs(copies: Tensor) -> Tensor:
        found = []
        for part in copies.split(size):
            raw = model(part.clone())
            outputs = checked_outputs(raw, len(part), any_shape=callable(score)).double()
            found.append(outputs.reshape(raw.shape) if callable(score) else outputs)
        return torch.cat(found)

    classes = labels is not None and labels.dtype == torch.int64 and labels.dim() == 1
    if score in ("probability", "output") and not classes:
        raise ValueError(f"labels: expected int64 [N] for score={score!r}")
    # One image at a time, so that how the images came in batches changes no bit.
    own = score == "similarity" and labels is None
    references = torch.cat([outputs(image[None]) for image in images]) if own else labels

    def value(k: int, copies: list[Tensor]) -> NDArray[np.float64]:
        found = outputs(torch.stack(copies))
        mine = None if references is None else references[k : k + 1].expand(len(found), *references.shape[1:])
        if callable(score):
            result = score(found, mine)
        elif score == "similarity":
            assert mine is not None
            result = cosine(found, mine.double())
        else:
            assert mine is not None
            if int(mine[0]) < 0 or int(mine[0]) >= found.shape[1]:
                raise ValueError(f"labels: expected classes in [0, {found.shape[1]}), got {int(mine[0])}")
            result = (found.softmax(1) if score == "probability" else found).gather(1, mine[:, None])[:, 0]
        if not isinstance(result, Tensor) or result.shape != (len(found),) or not bool(result.isfinite().all()):
            raise ValueError("score: expected finite numbers, one for each output")
        return result.double().cpu().numpy()

    return value
