"""How far an estimated map may be from the full sweep, and the intervals behind that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def count_interval(seen: int, drawn: int, total: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """How many of ``total`` items are marked, if ``seen`` of ``drawn`` items, drawn without replacement, are.

    The numbers that neither tail of the hypergeometric distribution refuses at (1 - confidence) / 2 (Clopper and
    Pearson's construction for a finite population): the interval holds the truth with at least this confidence.

    Returns:
        The lowest and the highest number.
    """
    if not 0 <= seen <= drawn <= total:
        raise ValueError(f"seen, drawn, total: expected 0 <= seen <= drawn <= total, got {seen}, {drawn}, {total}")
    from scipy.special import gammaln

    def chosen(n: Any, k: Any) -> Any:
        """The logarithm of n over k."""
        return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)

    def up_to(found: int, marked: int) -> float:
        """The probability of at most ``found`` marked items in the sample."""
        k = np.arange(max(0, drawn - (total - marked)), min(found, marked) + 1)
        logs = chosen(marked, k) + chosen(total - marked, drawn - k) - chosen(total, drawn)
        return float(np.exp(logs).sum())

    tail = (1 - confidence) / 2
    least, most = seen, total - (drawn - seen)  # those that the sample leaves possible

    def last(accepted: Any, low: int, high: int) -> int:
        """The largest number in [low, high] that is accepted; low is."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if accepted(middle) else (low, middle - 1)
        return low

    highest = last(lambda marked: up_to(seen, marked) > tail, least, most)
    refused = last(lambda marked: 1 - up_to(seen - 1, marked) <= tail, least - 1, most)
    return (least if seen == 0 else refused + 1), highest


@dataclass(frozen=True)
class Disagreement:
    """How many positions of adaptive maps are not what the full sweep would say, from a random sample of those skipped.

    Attributes:
        value: estimated share of all positions of all images (those evaluated, which are right, included) at which
            the map differs; for real-valued scores, by more than ``tolerance``.
        low, high: its 95 % interval: exact for simple random sampling without replacement of the
            positions skipped, whatever their pattern; over repeated seeds it holds the truth in at least 95 %.
        skipped, checked, different: positions that refinement left out; those of them, each drawn with the same
            chance, that were evaluated after all; those of these that differed (and are right now).
        tolerance: of a real-valued score, the mean over images; None for a binary one.
        mean_error, worst_error: of the positions checked, the mean and the largest absolute difference; NaN without.
    """

    value: float
    low: float
    high: float
    skipped: int
    checked: int
    different: int
    tolerance: float | None
    mean_error: float
    worst_error: float

    @classmethod
    def of(cls, positions: int, tally: dict[str, float], tolerance: float | None) -> Disagreement:
        """From the number of positions of all images and what was counted."""
        skipped, checked, different = (int(tally.get(name, 0)) for name in ("skipped", "checked", "different"))
        low, high = count_interval(different, checked, skipped)
        share = different / checked if checked else float("nan")
        return cls(
            value=float(share * skipped - different if checked else 0.0 if not skipped else np.nan) / positions,
            low=(low - different) / positions,
            high=(high - different) / positions,
            skipped=skipped,
            checked=checked,
            different=different,
            tolerance=tolerance,
            mean_error=tally.get("off", 0.0) / checked if checked else float("nan"),
            worst_error=tally.get("worst", 0.0) if checked else float("nan"),
        )

    def __str__(self) -> str:
        by = "" if self.tolerance is None else f" by more than {self.tolerance:.3g}"
        return (
            f"{self.value:.3%} of the positions differ{by} from the full sweep (95 % interval {self.low:.3%} to "
            f"{self.high:.3%}; {self.different} of {self.checked:,} checked of {self.skipped:,} skipped)"
        )


@dataclass(frozen=True)
class Sampling:
    """What a sampled mean map is an estimate of, and what it was made from.

    Attributes:
        images, part: images used, and their share f of the set; the map, its standard error and its interval are
            about the full sweep of the whole set. 0: the set's size is not known, it counts as a population.
        bandwidth: standard deviation of the kernel in pixels, (rows, columns).
        spacing: of an image's lattice, in pixels; checks: positions of each image that lie anywhere.
        largest_error: the largest standard error; tolerance: what was asked for, or None; reached: whether it was.
        population_error: the largest standard error of the mean over the population that the images come from.
        bias: root mean square of the smoothing bias over the map, 0 where few images show none; bias_below: what it is
            below with 95 % confidence; largest_bias: where it is largest.
    """

    images: int
    part: float
    bandwidth: tuple[float, float]
    spacing: tuple[float, float]
    checks: int
    largest_error: float
    tolerance: float | None
    reached: bool
    population_error: float
    bias: float
    bias_below: float
    largest_bias: float

    def __str__(self) -> str:
        of = f" ({self.part:.0%} of the set)" if self.part else ""
        aim = (
            ""
            if self.tolerance is None
            else f" (asked for: {self.tolerance:g}{'' if self.reached else ', not reached'})"
        )
        return (
            f"largest standard error {self.largest_error:.3g}{aim} with {self.images:,} images{of}; "
            f"smoothing bias {self.bias:.3g} (root mean square over the map; below {self.bias_below:.3g} with 95 % "
            "confidence)"
        )


def as_json(estimate: Disagreement | Sampling | None) -> dict[str, Any] | None:
    """Return an estimate for JSON; :func:`from_json` reads it."""
    return None if estimate is None else {"kind": type(estimate).__name__, **asdict(estimate)}


def from_json(about: dict[str, Any] | None) -> Disagreement | Sampling | None:
    """Return the estimate that :func:`as_json` described.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    if about is None:
        return None
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (Disagreement, Sampling)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in about.items() if name != "kind"}
    made: Disagreement | Sampling = kinds[about["kind"]](**values)
    for part in fields(made):
        value = getattr(made, part.name)
        pair = part.name in ("bandwidth", "spacing")
        if part.name == "tolerance" and value is None:
            continue
        if pair and not (isinstance(value, tuple) and len(value) == 2):
            raise ValueError(f"{part.name} of the estimate is {value!r}")
        wanted = {"int": int, "bool": bool}.get(str(part.type), (int, float))
        if any(
            not isinstance(number, wanted) or (isinstance(number, bool) and wanted is not bool)
            for number in (value if pair else (value,))
        ):
            raise ValueError(f"{part.name} of the estimate is {value!r}")
    return made
