"""The networks' results on LFW's pairs, and their differences with intervals over seeds and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....files import read_npz
from ...graph import Done
from ...values import Comparison
from ..judging import PairDraws, judged
from .settings import TrunkSettings

Floats = NDArray[np.float64]


class TrunkResults:
    """The results of the steps.

    Args:
        settings: of the run.
        steps: the finished steps by name.
        same: whether each pair of LFW shows one person, bool [P].
        people: the person on each side, int64 [P, 2].
    """

    def __init__(
        self, settings: TrunkSettings, steps: Mapping[str, Done], same: NDArray[np.bool_], people: NDArray[np.int64]
    ) -> None:
        self.settings, self.steps, self.same, self.people = settings, steps, same, people
        self._pairs = PairDraws(people, settings.resamples)
        self._resampled: dict[tuple[str, str], Floats] = {}
        self._files: dict[Path, dict[str, NDArray[Any]]] = {}

    def facts(self, step: str, network: str) -> list[Mapping[str, Any]]:
        """Return what "networks" or "verify" tells of a network, for each seed."""
        return [self._step(step, network, seed).result["networks"][network] for seed in self.settings.seeds]

    def _step(self, step: str, network: str, seed: int) -> Done:
        end = network.partition(" ")[0][1:]
        return self.steps[f"seed {seed}: {f'{step} {end}'.rstrip()}"]

    def values(self, network: str, what: str, step: str = "verify", factor: float = 1.0) -> tuple[float, ...]:
        """Return a number of a network for each seed."""
        return tuple(factor * float(found[what]) for found in self.facts(step, network))

    def choices(self) -> Mapping[str, Any]:
        """Return the results of the steps that choose hyperparameters."""
        names = ("A", "B and C", "occluders")
        return {name: self.steps[f"choose {name}"].result for name in names if f"choose {name}" in self.steps}

    # -- comparisons ----------------------------------------------------------------------------------------

    def compare(
        self, name: str, pairs: Sequence[tuple[str, str]], what: str = "accuracy", *, sign: int = 1
    ) -> Comparison:
        """Compare networks on LFW's pairs.

        Args:
            name: of the comparison.
            pairs: networks (a, b); the difference a − b is averaged over them.
            what: "accuracy", in points, or one of :data:`~..judging.SCORES`, in hundredths but for the decidability.
            sign: −1 for b − a.
        """
        factor = sign * (1.0 if what == "decidability" else 100.0)
        seen = np.mean([np.subtract(self.values(a, what), self.values(b, what)) for a, b in pairs], 0)
        drawn = np.mean([self._draws(a, what) - self._draws(b, what) for a, b in pairs], 0)
        return judged(name, factor * seen, factor * drawn.mean(1))

    def _draws(self, network: str, what: str) -> Floats:
        """Return a figure of a network in each resample of people for each seed, [R, S]."""
        if (network, what) not in self._resampled:
            if what == "accuracy":
                found = {what: self._pairs.accuracies(self._stored("correct.npz", network))}
            else:
                found = self._pairs.moments(self._stored("scores.npz", network), self.same)
            for key, value in found.items():
                self._resampled[network, key] = value
        return self._resampled[network, what]

    def _stored(self, file: str, network: str) -> Floats:
        """Read an array of the step "verify" for each seed, [P, S]."""
        found = []
        for seed in self.settings.seeds:
            path = self._step("verify", network, seed).folder / file
            if path not in self._files:
                self._files[path] = read_npz(path)
            found.append(self._files[path][network].astype(np.float64))
        return np.stack(found, 1)


__all__ = ["TrunkResults"]
