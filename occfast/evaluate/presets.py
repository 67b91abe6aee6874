"""The preset of a recognizer whose file does not say how images are prepared, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import FaceDataset
from ..models import PRESETS, Preset, Recognizer
from ..progress import Report
from .embedding import embed
from .scores import pair_scores

_PEOPLE, _EACH = 60, 3  # of the data that are tried


@dataclass(frozen=True)
class PresetTrial:
    """Separation of one preset on a few pairs.

    Attributes:
        preset: Name of the preset.
        separation: d', the difference between the mean cosines of pairs of one person and of two people, in units of
            their pooled standard deviation (Green and Swets 1966); None if the preset can't be tried.
        reason: Why it can't be tried.
    """

    preset: str
    separation: float | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.preset}: " + (self.reason if self.separation is None else f"d' {self.separation:.2f}")


def try_presets(
    recognizer: Recognizer,
    source: FaceDataset,
    prepare: Callable[[FaceDataset, Preset], FaceDataset],
    *,
    seed: int = 0,
    progress: bool | Report = True,
) -> list[PresetTrial]:
    """Compare the presets that fit a recognizer's input by how well they separate people.

    At most 60 people with three images each are embedded per preset. A preset that differs from the network's training
    in size, colors or alignment usually lowers d' visibly; scalings that differ little may not be told apart.

    Args:
        recognizer: The network.
        source: Faces of at least two people, two of them with two images.
        prepare: Function that aligns or resizes the faces for a preset.
        seed: Random seed for the people tried.
        progress: As in :func:`~occfast.evaluate.embed`.

    Returns:
        The presets, the best separation first; presets that can't be tried last.

    Raises:
        ValueError: No preset can be tried, or the data have too few images per person.
    """
    indices = _some(source.labels, seed)
    labels = source.labels[indices]
    first, second = torch.triu_indices(len(indices), len(indices), 1)
    same = labels[first] == labels[second]
    if not same.any() or same.all():
        raise ValueError("preset: auto needs faces of at least two people with two images each; name a preset instead")
    found = []
    for name, preset in PRESETS.items():
        how = preset.preprocessing
        if recognizer.channels not in (None, how.channels) or recognizer.size not in (None, how.size):
            found.append(PresetTrial(name, None, "another size or number of channels than the network's input"))
            continue
        try:
            faces = prepare(source, preset)
            features = embed(
                recognizer.embed, faces, how, indices=indices, flip="none", progress=progress, title=f"preset {name}"
            ).features
        except ValueError as error:
            found.append(PresetTrial(name, None, str(error).splitlines()[0]))
            continue
        found.append(PresetTrial(name, _separation(pair_scores(features, features, first, second), same)))
    found.sort(key=lambda trial: -float("inf") if trial.separation is None else trial.separation, reverse=True)
    if found[0].separation is None:
        raise ValueError(f"preset: none can be tried: {'; '.join(map(str, found))}")
    return found


def _some(labels: Tensor, seed: int) -> Tensor:
    """Return the numbers of a few images of people drawn at random, those with several images first."""
    generator = torch.Generator().manual_seed(seed)
    counts = labels.bincount()
    people = torch.randperm(len(counts), generator=generator)
    people = people[(counts[people] < 2).to(torch.int8).argsort(stable=True)][:_PEOPLE]
    chosen = [(labels == person).nonzero().flatten()[:_EACH] for person in people.tolist()]
    return torch.cat(chosen).sort().values


def _separation(scores: Tensor, same: Tensor) -> float:
    genuine, impostor = scores[same].double(), scores[~same].double()
    spread = ((genuine.var(correction=0) + impostor.var(correction=0)) / 2).sqrt()
    return float((genuine.mean() - impostor.mean()) / spread.clamp(min=1e-12))
