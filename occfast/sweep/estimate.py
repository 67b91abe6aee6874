"""Errors of estimated maps relative to the full sweep, with their intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

CONFIDENCE = 0.95


def count_interval(seen: int, drawn: int, total: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the interval of the number of marked items among ``total``, from a sample without replacement.

    It holds the numbers that neither tail of the hypergeometric distribution rejects at (1 - confidence) / 2 (Clopper
    and Pearson's construction for a finite population). Its coverage is at least ``confidence``.

    Args:
        seen, drawn: Marked items in the sample, and items in the sample.
        total: Items in the population.
        confidence: In (0, 1).

    Returns:
        The lowest and the highest number.

    Raises:
        ValueError: Not 0 <= seen <= drawn <= total.
    """
    if not 0 <= seen <= drawn <= total:
        raise ValueError(f"seen, drawn, total: expected 0 <= seen <= drawn <= total, got {seen}, {drawn}, {total}")
    from scipy.special import gammaln

    def chosen(n: Any, k: Any) -> Any:
        """Return the logarithm of the binomial coefficient."""
        return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)

    def up_to(found: int, marked: int) -> float:
        """Return the probability of at most ``found`` marked items in the sample."""
        k = np.arange(max(0, drawn - (total - marked)), min(found, marked) + 1)
        logs = chosen(marked, k) + chosen(total - marked, drawn - k) - chosen(total, drawn)
        return float(np.exp(logs).sum())

    tail = (1 - confidence) / 2
    least, most = seen, total - (drawn - seen)  # numbers that the sample allows

    def last(accepted: Any, low: int, high: int) -> int:
        """Return the largest accepted number in [low, high]; low is accepted."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if accepted(middle) else (low, middle - 1)
        return low

    highest = last(lambda marked: up_to(seen, marked) > tail, least, most)
    refused = last(lambda marked: 1 - up_to(seen - 1, marked) <= tail, least - 1, most)
    return (least if seen == 0 else refused + 1), highest


@dataclass(frozen=True)
class Disagreement:
    """Share of positions at which adaptive maps differ from the full sweep, estimated from a sample of those skipped.

    Attributes:
        value: Estimated share among all positions of all images, including the evaluated ones, which are right. A
            position differs if its label does or, for real-valued scores, by more than ``tolerance``.
        low, high: 95 % interval of the share. It is exact for simple random sampling of the skipped positions without
            replacement, whatever their pattern: over repeated seeds it holds the truth in at least 95 % of cases.
        skipped: Number of positions that were not evaluated for refinement.
        checked: Number of skipped positions, each drawn with the same probability, that were evaluated after all.
        different: Number of checked positions that differed; the map has been corrected there.
        tolerance: Mean tolerance over images for a real-valued score; None for a binary one.
        mean_error, worst_error: Mean and largest absolute difference at the checked positions; NaN without any.
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
        """Return the estimate for a number of positions of all images and a sweep's counts."""
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
    """Precision of a sampled mean map as an estimate of the full sweep of the whole set of images.

    Attributes:
        images: Number of images used.
        part: Their share f of the set; 0 if its size is not known, then it counts as a population.
        bandwidth: Standard deviation of the kernel in pixels, (rows, columns).
        spacing: Steps of an image's lattice in pixels, (rows, columns).
        checks: Number of random positions in each image.
        largest_error: Largest standard error over the map.
        tolerance: Largest standard error allowed, or None.
        reached: Whether the tolerance was reached.
        population_error: Largest standard error of the mean over the population that the images come from.
        bias: Root mean square of the smoothing bias over the map; 0 if few images show none.
        bias_below: Upper limit of ``bias`` with 95 % confidence.
        largest_bias: Largest bias over the map.
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
