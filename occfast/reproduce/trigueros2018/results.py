"""The results of the steps of trigueros2018, by network and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ...sweep import OcclusionMap
from ..graph import Done
from ..values import Comparison
from .effects import Effects, Measured
from .settings import Settings, pretty, times

_FARS = (1e-4, 1e-3, 1e-2, 1e-1)
Size = tuple[int, int]


class Results:
    """The results of the steps, by name and seed.

    Args:
        settings: of the run.
        steps: the finished steps by name.
    """

    def __init__(self, settings: Settings, steps: Mapping[str, Done]) -> None:
        self.settings, self.steps = settings, steps
        self._effects: dict[tuple[int, Size], Effects | None] = {}

    def step(self, name: str, seed: int | None = None) -> Done:
        """Return a step of a seed, by default the first."""
        return self.steps[f"seed {self.settings.seeds[0] if seed is None else seed}: {name}"]

    def values(self, name: str, read: Callable[[dict[str, Any]], float]) -> tuple[float, ...]:
        """Read a value of a step's result for each seed."""
        return tuple(float(read(self.step(name, seed).result)) for seed in self.settings.seeds)

    def cell(self, network: str, size: Size, key: str) -> tuple[float, ...]:
        """Return "mean", "std" or "clean" of Table 1 in %, for each seed."""
        return self.values(f"table {network} {times(size)}", lambda result: 100 * result[key])

    def accuracy(self, network: str) -> tuple[float, ...]:
        """Return the accuracy over pairs in %, for each seed."""
        return self.values(f"verify {network}", lambda result: 100 * result["accuracy"])

    def tar(self, network: str, condition: str, far: float) -> tuple[float, ...]:
        """Return the true acceptance rate in % at a false acceptance rate, for each seed."""

        def read(result: dict[str, Any]) -> float:
            entries = result["conditions"][condition]["tar_at_far"]
            return 100 * float(next(e["tar"] for e in entries if abs(e["far"] - far) < 1e-12))

        return self.values(f"roc {network}", read)

    @cached_property
    def far(self) -> float:
        """The lowest false acceptance rate of Figure 6 that at least three pairs of different people can show."""
        n = self.step("roc A").result["conditions"]["clean"]["n_different"]
        return next((far for far in _FARS if far * n >= 3), _FARS[-1])

    def map(self, name: str) -> OcclusionMap:
        """Read the map of a step of the first seed."""
        return OcclusionMap.load(self.step(name).folder / "map.npz")

    def effects(self, size: Size) -> Effects | None:
        """Return paired comparisons under an occluder on the first seed; None where maps kept no single images."""
        key = self.settings.seeds[0], size
        if key not in self._effects:
            found = {
                name: Measured.of_step(self.step(f"table {name} {times(size)}").folder) for name in self.settings.rows
            }
            whole = {name: one for name, one in found.items() if one is not None}
            self._effects[key] = Effects(whole) if len(whole) == len(found) else None
        return self._effects[key]

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
        first, second = self.cell(a, size, key), self.cell(b, size, key)
        if key == "std":
            first, second = second, first
        over_images = None
        if len(self.settings.seeds) == 1 and (effects := self.effects(size)) is not None:
            effect = effects.compare(a, b)
            low, high = effect.std_interval
            over_images = effect.mean_interval if key == "mean" else (-high, -low)
        return Comparison(name, tuple(x - y for x, y in zip(first, second, strict=True)), over_images)
