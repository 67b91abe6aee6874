"""Paired differences of two audits of the same people, tested together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .. import checks
from ..evaluate.curves import Interval
from .figures import Figure, Resampled

_SAME = 1 - 1e-9  # statistics that differ by rounding alone are equal


@dataclass(frozen=True)
class FigureDifference:
    """Difference of one figure between two recognizers on the same people.

    Attributes:
        figure: The figure.
        first, second: Its values.
        interval: Simultaneous confidence interval of the second minus the first: with the confidence level, the
            intervals of all figures hold. It ends at -1 and 1, the range of differences of rates; for a one-sided test,
            it is unbounded on the side of the better.
        p_value: p-value adjusted for the number of figures.
        significant: Whether it is at most the level.
    """

    figure: Figure
    first: float
    second: float
    interval: Interval
    p_value: float
    significant: bool

    @property
    def value(self) -> float:
        """The second minus the first."""
        return self.second - self.first

    @property
    def second_is_worse(self) -> bool:
        """Whether the second is worse."""
        return self.value < 0 if self.figure.higher_is_better else self.value > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON; an unbounded end is None."""
        return {
            "covering": self.figure.covering,
            "figure": self.figure.name,
            "first": self.first,
            "second": self.second,
            "difference": self.value,
            "interval": [end if np.isfinite(end) else None for end in self.interval],
            "p_value": self.p_value,
            "significant": self.significant,
            "worse": self.significant and self.second_is_worse,
        }


def differences(
    first: Mapping[Figure, Resampled],
    second: Mapping[Figure, Resampled],
    *,
    people: int,
    level: float = 0.05,
    alternative: Literal["two-sided", "worse"] = "two-sided",
) -> list[FigureDifference]:
    """Compare the figures of two recognizers, resampled with the same people.

    The statistic of a figure is the difference over the standard deviation of its resamples. The largest over all
    figures is compared with the largest of each resample about its mean (a single-step maximum test: Westfall and Young
    1993), which controls the probability of any false finding and knows how strongly figures go together; Holm's
    correction does not.

    A standard deviation of resamples is known as well as people allow: it is that of a mean over them, too small by
    their degrees of freedom, and the statistic of the data is one of Student's t. It is therefore brought to the normal
    scale of the resamples' statistics before they are compared.

    Args:
        first, second: Figures by the same keys, with resamples of the same people.
        people: Number of people behind the figures, those with several images, at least 2.
        level: Probability of any significant figure where none differs, in (0, 0.5].
        alternative: "two-sided", or "worse": only a second recognizer that is worse counts.

    Raises:
        ValueError: So few resamples can't show a difference at that level.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    checks.integer(people, "people", 2)
    figures = list(first)
    value = np.array([second[f].value - first[f].value for f in figures])
    drawn = np.stack([second[f].drawn - first[f].drawn for f in figures], 1)
    drawn = drawn[~np.isnan(drawn).any(1)]  # in some, nobody with two images was drawn
    require_resamples(len(drawn), level)
    worse = np.array([-1.0 if f.higher_is_better else 1.0 for f in figures])
    center, error = drawn.mean(0), drawn.std(0, ddof=1)

    def statistic(change: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(change == 0, 0.0, worse * change / error)
        return np.abs(found) if alternative == "two-sided" else found

    error = np.where(error < 1e-12, 0.0, error)
    largest = np.sort(statistic(np.where(error > 0, drawn - center, 0.0)).max(1))
    shrunk = np.sqrt((people - 1) / people)
    mine = -ndtri(stdtr(people - 1, -statistic(value) * shrunk))
    reached = len(largest) - np.searchsorted(largest, mine * _SAME, side="left")
    p_values = (1 + reached) / (1 + len(largest))
    # The smallest statistic whose p-value is at most the level.
    allowed = int(np.floor(level * (1 + len(largest)) + 1e-9)) - 1
    critical = -stdtrit(people - 1, ndtr(-largest[len(largest) - 1 - allowed])) / shrunk
    found = []
    for k, figure in enumerate(figures):
        half = critical * error[k] if error[k] > 0 else 0.0
        low, high = max(value[k] - half, -1.0), min(value[k] + half, 1.0)
        if alternative == "worse":
            low, high = (-np.inf, high) if figure.higher_is_better else (low, np.inf)
        found.append(
            FigureDifference(
                figure=figure,
                first=first[figure].value,
                second=second[figure].value,
                interval=Interval(float(low), float(high)),
                p_value=float(p_values[k]),
                significant=bool(p_values[k] <= level),
            )
        )
    return found


def require_resamples(resamples: int, level: float, name: str = "level") -> None:
    """Raise ValueError, with the argument's name, unless a p-value of so many resamples can reach the level."""
    least = 1 / (1 + resamples)
    if level < least * (1 - 1e-9):
        raise ValueError(
            f"{name}: expected at least {least:.2g}, the smallest p-value of {resamples:,} resamples, got {level:g}; "
            "audit with more (--bootstrap)"
        )
