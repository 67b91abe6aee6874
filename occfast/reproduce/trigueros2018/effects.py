"""Differences between the networks of Table 1, with bootstrap intervals over the images of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...files import read_npz
from ...sweep import OcclusionMap

#: Resamples of the images.
RESAMPLES = 5000
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Measured:
    """Accuracy of one network under one occluder, image by image.

    Attributes:
        images: numbers of the images that the network recognizes without an occluder, int64 [n].
        accuracy: whether it recognizes each of them at each location, uint8 [n, locations].
        held: numbers of all images of the table, int64 [N].
    """

    images: NDArray[np.int64]
    accuracy: NDArray[np.uint8]
    held: NDArray[np.int64]

    @classmethod
    def of_step(cls, folder: Path) -> Measured | None:
        """Read the files of a step; None if it kept no single images, as adaptive and sampled maps do."""
        try:
            numbers = read_npz(folder / "images.npz")
        except FileNotFoundError:  # written before there were intervals over images
            return None
        per_image = OcclusionMap.load(folder / "map.npz").per_image
        if per_image is None:
            return None
        accuracy = 1 - per_image.reshape(len(per_image), -1).astype(np.uint8)
        return cls(numbers["mapped"], accuracy, numbers["held"])


@dataclass(frozen=True)
class Effect:
    """Difference of two networks, in points of per cent.

    Attributes:
        mean: difference of the mean accuracies over locations, as Table 1 shows them.
        std: difference of the standard deviations over locations.
        mean_interval: 95 % interval of ``mean`` over the choice of images.
        std_interval: 95 % interval of ``std``.
        images: images that both networks recognize without an occluder.
    """

    mean: float
    std: float
    mean_interval: Interval
    std_interval: Interval
    images: int


class Effects:
    """Paired comparisons of networks under one occluder.

    The images of the table are drawn again with replacement, the same draw for all networks, and each network's cell of
    Table 1 is computed from those of its images that were drawn. The intervals are basic bootstrap intervals
    (2·estimate − quantile): unlike quantiles, they correct for the spread that noise adds to a resampled map. They
    cover the choice of images, not that of the seed, nor what another machine changes in training.

    Args:
        networks: measurements by network, on the same ``held`` images.
        recognized: whether each network recognizes each of the ``held`` images uncovered, bool [N].
        seed: of the resampling.
        resamples: number of draws.
    """

    def __init__(
        self,
        networks: Mapping[str, Measured],
        recognized: Mapping[str, NDArray[np.bool_]] | None = None,
        *,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> None:
        self._networks = dict(networks)
        held = next(iter(self._networks.values())).held
        if any(not np.array_equal(one.held, held) for one in self._networks.values()):
            raise ValueError("networks: expected maps of the same images")
        random = np.random.default_rng(seed)
        counts = random.multinomial(len(held), np.full(len(held), 1 / len(held)), size=resamples).astype(np.float32)
        place = {int(number): k for k, number in enumerate(held)}
        self._drawn: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._clean = {
            name: counts @ flags.astype(np.float32) / counts.sum(1) for name, flags in (recognized or {}).items()
        }
        for name, one in self._networks.items():
            weights = counts[:, [place[int(number)] for number in one.images]]
            self._drawn[name] = _mean_and_std(weights, one.accuracy)

    def draws(self, name: str, key: str) -> NDArray[np.float64]:
        """Return "mean", "std" or "clean" of a network in each resample, in %, float64 [R]."""
        found = self._clean[name] if key == "clean" else self._drawn[name][("mean", "std").index(key)]
        return 100 * found.astype(np.float64)

    def compare(self, name: str, other: str) -> Effect:
        """Return the difference ``name`` − ``other``."""
        first, second = self._networks[name], self._networks[other]
        ones = [np.ones((1, len(one.images)), np.float32) for one in (first, second)]
        (mean, std), (mean_2, std_2) = (
            (float(value[0]) for value in _mean_and_std(weights, one.accuracy))
            for weights, one in zip(ones, (first, second), strict=True)
        )
        means, stds = (self._drawn[name][k] - self._drawn[other][k] for k in (0, 1))
        return Effect(
            mean=100 * (mean - mean_2),
            std=100 * (std - std_2),
            mean_interval=_basic(mean - mean_2, means),
            std_interval=_basic(std - std_2, stds),
            images=len(np.intersect1d(first.images, second.images)),
        )


def _mean_and_std(
    weights: NDArray[np.float32], accuracy: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # [resamples, n] and [n, locations]: mean and standard deviation over locations of the weighted mean map.
    totals = weights.sum(1, dtype=np.float64)
    totals[totals == 0] = np.nan
    means, stds = [], []
    for rows in np.array_split(np.arange(len(weights)), max(1, len(weights) * accuracy.shape[1] // 20_000_000)):
        maps = (weights[rows] @ accuracy.astype(np.float32)).astype(np.float64) / totals[rows, None]
        means.append(maps.mean(1))
        stds.append(maps.std(1))
    return np.concatenate(means), np.concatenate(stds)


def _basic(estimate: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return 100 * (2 * estimate - float(high)), 100 * (2 * estimate - float(low))
