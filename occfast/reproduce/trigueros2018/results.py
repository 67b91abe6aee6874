"""The results of the steps of trigueros2018, by network and seed, and their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...evaluate import PairProtocol
from ...evaluate.resampling import resampled_rates
from ...files import read_npz
from ...sweep import OcclusionMap
from ..graph import Done
from ..values import Comparison
from .effects import Effects, Measured
from .judging import PairDraws, judged
from .settings import Settings, pretty, times
from .sources import DOUBTFUL, Sources

Floats = NDArray[np.float64]
_FARS = (1e-4, 1e-3, 1e-2, 1e-1)
#: Resamples of the people of pairs.
RESAMPLES = 1000
Size = tuple[int, int]
#: A cell of Table 1: network and occluder.
Cell = tuple[str, Size]


class Results:
    """The results of the steps, by name and seed.

    Args:
        settings: of the run.
        steps: the finished steps by name.
        sources: of the run.
    """

    def __init__(self, settings: Settings, steps: Mapping[str, Done], sources: Sources) -> None:
        self.settings, self.steps, self._sources = settings, steps, sources
        self._effects: dict[tuple[int, Size], Effects | None] = {}
        self._pair_draws: dict[tuple[str, str], Floats] = {}
        self._rates: dict[tuple[str, str, int, bool], Floats] = {}

    def step(self, name: str, seed: int | None = None) -> Done:
        """Return a step of a seed, by default the first."""
        return self.steps[f"seed {self.settings.seeds[0] if seed is None else seed}: {name}"]

    def values(self, name: str, read: Callable[[dict[str, Any]], float]) -> tuple[float, ...]:
        """Read a value of a step's result for each seed."""
        return tuple(float(read(self.step(name, seed).result)) for seed in self.settings.seeds)

    def cell(self, network: str, size: Size, key: str) -> tuple[float, ...]:
        """Return "mean", "std" or "clean" of Table 1 in %, for each seed."""
        return self.values(f"table {network} {times(size)}", lambda result: 100 * result[key])

    def map(self, name: str) -> OcclusionMap:
        """Read the map of a step of the first seed."""
        return OcclusionMap.load(self.step(name).folder / "map.npz")

    # -- Table 1 -------------------------------------------------------------------------------------------

    def effects(self, size: Size, seed: int | None = None) -> Effects | None:
        """Return paired comparisons of a seed, by default the first; None where maps kept no single images."""
        seed = self.settings.seeds[0] if seed is None else seed
        if (seed, size) not in self._effects:
            found = {
                name: Measured.of_step(self.step(f"table {name} {times(size)}", seed).folder)
                for name in self.settings.rows
            }
            whole = {name: one for name, one in found.items() if one is not None}
            self._effects[seed, size] = (
                Effects(whole, self._recognized(seed), seed=seed) if len(whole) == len(found) else None
            )
        return self._effects[seed, size]

    def _recognized(self, seed: int) -> dict[str, NDArray[np.bool_]]:
        if not self.settings.same_images:
            return {}
        flags = read_npz(self.step("recognized", seed).folder / "flags.npz")["right"]
        return dict(zip(self.settings.rows, flags, strict=True))

    def compare(self, a: str, b: str, size: Size, key: str = "mean") -> Comparison:
        """Compare two networks of Table 1.

        Args:
            a: a network.
            b: another one.
            size: of the occluder.
            key: "mean": a − b of the mean accuracies in points; "std": b − a of the standard deviations, so that a
                positive difference means that ``a`` depends less on the location.
        """
        verb = "above" if key == "mean" else "varies less than"
        name = f"{pretty(a)} {verb} {pretty(b)} under {pretty(times(size))}"
        return self.difference(name, [((a, size), (b, size)) if key == "mean" else ((b, size), (a, size))], key)

    def difference(self, name: str, pairs: Sequence[tuple[Cell, Cell]], key: str = "mean") -> Comparison:
        """Compare cells of Table 1: the mean over pairs of first − second, in points.

        With several seeds the interval is over seeds and images. Each seed has its own images.

        Args:
            name: of the comparison.
            pairs: cells of the same occluder.
            key: "mean", "std" or "clean".
        """
        seen = np.mean([np.subtract(self.cell(*a, key), self.cell(*b, key)) for a, b in pairs], 0)
        if len(seen) > 1 and not self.settings.same_images:
            return Comparison(name, tuple(map(float, seen)))  # Student's over seeds, each with its own images
        draws = self._difference_draws(pairs, key)
        if draws is None:
            return Comparison(name, tuple(map(float, seen)))
        if len(seen) > 1:
            return judged(name, seen, draws)
        one = float(seen[0])
        low, high = map(float, np.quantile(draws, [0.025, 0.975]))  # basic bootstrap, see Effects
        return Comparison(name, (one,), over_images=(2 * one - high, 2 * one - low))

    def _difference_draws(self, pairs: Sequence[tuple[Cell, Cell]], key: str) -> Floats | None:
        """Return the mean difference over seeds in each resample of the images, [R]; None if there are no images."""
        total: list[Floats] = []
        for seed in self.settings.seeds:
            for (a, size), (b, _) in pairs:
                effects = self.effects(size, seed)
                if effects is None:
                    return None
                total.append(effects.draws(a, key) - effects.draws(b, key))
        found = np.mean(total, 0)
        found = found[~np.isnan(found)]  # resamples without an image that all networks recognize
        return found if len(found) > 1 else None

    # -- pairs: Table 2 and Figure 4 -----------------------------------------------------------------------

    def accuracy(self, network: str) -> tuple[float, ...]:
        """Return the accuracy over pairs in %, for each seed."""
        return self.values(f"verify {network}", lambda result: 100 * result["accuracy"])

    def compare_pairs(self, name: str, a: str, b: str, what: str = "accuracy") -> Comparison:
        """Compare two networks on pairs, a − b: "accuracy" in points, or one of :data:`.judging.SCORES`."""
        factor = 100.0 if what == "accuracy" else 1.0
        first, second = (self.values(f"verify {n}", lambda result: factor * result[what]) for n in (a, b))
        seen = np.subtract(first, second)
        return judged(name, seen, factor * (self._drawn(a, what) - self._drawn(b, what)).mean(1))

    def _drawn(self, network: str, what: str) -> Floats:
        if (network, what) not in self._pair_draws:
            file = "correct" if what == "accuracy" else "scores"
            folders = [self.step(f"verify {network}", seed).folder for seed in self.settings.seeds]
            stored = np.stack([read_npz(folder / "scores.npz")[file] for folder in folders], 1)
            if what == "accuracy":
                found = {what: self._people.accuracies(stored)}
            else:
                found = self._people.moments(stored.astype(np.float64), self._sources.pairs[1].same.numpy())
            self._pair_draws.update({(network, key): value for key, value in found.items()})
        return self._pair_draws[network, what]

    @cached_property
    def _people(self) -> PairDraws:
        faces, protocol = self._sources.pairs
        return PairDraws(_people_of(faces.labels, protocol), RESAMPLES)

    # -- real occlusions: Figure 6 -------------------------------------------------------------------------

    @cached_property
    def far(self) -> float:
        """The lowest false acceptance rate of Figure 6 that thirty pairs of different people or more can show."""
        n = self.step("roc A").result["conditions"]["clean"]["n_different"]
        return next((far for far in _FARS if far * n >= 30), _FARS[-1])

    @property
    def doubtful(self) -> str | None:
        """The person of AR whose covered photographs seem to show somebody else; None if there is none."""
        return next((name for name in DOUBTFUL if name in self._sources.ar[0].people), None)

    def tar(self, network: str, condition: str, *, all_people: bool = True) -> tuple[float, ...]:
        """Return the true acceptance rate in % at :attr:`far`, for each seed; without the doubtful person if asked."""
        return tuple(
            100 * float(self._accepted(network, condition, seed, all_people)[0]) for seed in self.settings.seeds
        )

    def compare_tar(self, name: str, a: str, b: str, condition: str, *, all_people: bool = True) -> Comparison:
        """Compare the true acceptance rates of two networks at :attr:`far`, a − b in points."""
        first, second = (self.tar(n, condition, all_people=all_people) for n in (a, b))
        seen = np.subtract(first, second)
        draws = [
            self._accepted(a, condition, seed, all_people)[1:] - self._accepted(b, condition, seed, all_people)[1:]
            for seed in self.settings.seeds
        ]
        return judged(name, seen, 100 * np.mean(draws, 0))

    def _accepted(self, network: str, condition: str, seed: int, all_people: bool) -> Floats:
        """Return the true acceptance rate, then that of each resample of the people, [1 + R]."""
        key = network, condition, seed, all_people
        if key not in self._rates:
            faces, conditions = self._sources.ar
            protocol = next(one.protocol for one in conditions if one.name == condition)
            scores = read_npz(self.step(f"roc {network}", seed).folder / "scores.npz")[condition].astype(np.float64)
            people, same = _people_of(faces.labels, protocol), protocol.same.numpy()
            if not all_people and self.doubtful is not None:
                kept = (people != faces.people.index(self.doubtful)).all(1)
                scores, people, same = scores[kept], people[kept], same[kept]
            self._rates[key] = resampled_rates(scores, same, people, self.far, resamples=RESAMPLES)
        return self._rates[key]


def _people_of(labels: Tensor, protocol: PairProtocol) -> NDArray[np.int64]:
    found = labels[protocol.index] if protocol.people is None else protocol.people
    return np.asarray(found.numpy())


__all__ = ["Cell", "Results", "Size"]
