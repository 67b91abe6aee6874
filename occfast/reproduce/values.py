"""Numbers and comparisons over seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Number:
    """A number with one value per seed, beside the paper's.

    Attributes:
        values: the values, in the unit shown (mostly %).
        spreads: the standard deviation that belongs to each value, such as that over locations; may be empty.
        paper: the paper's value; None if it has none.
        paper_spread: the paper's standard deviation.
        digits: decimal places.
        over_images: interval over the choice of images, for a single seed; None if there is none.
        signed: show a plus sign.
    """

    values: tuple[float, ...]
    spreads: tuple[float, ...] = ()
    paper: float | None = None
    paper_spread: float | None = None
    digits: int = 2
    over_images: Interval | None = None
    signed: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> Interval | None:
        """Student's 95 % interval for the mean over seeds; with one seed the interval over images, if there is one."""
        return interval(self.values) or self.over_images

    @property
    def text(self) -> str:
        """Mean ± mean spread [interval]."""
        if not self.values:
            return "–"
        sign = "+" if self.signed else ""
        text = f"{self.mean:{sign}.{self.digits}f}"
        if self.spreads:
            text += f" ± {float(np.mean(self.spreads)):.{self.digits}f}"
        if self.interval is not None:
            text += " [{:{s}.{d}f}, {:{s}.{d}f}]".format(*self.interval, d=self.digits, s=sign)
        return text

    @property
    def paper_text(self) -> str:
        """The number as printed in the paper, "" if it has none."""
        if self.paper is None:
            return ""
        return f"{self.paper:g}" + (f" ± {self.paper_spread:g}" if self.paper_spread is not None else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the number for JSON."""
        return {**asdict(self), "mean": self.mean if self.values else None, "interval": self.interval}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Number:
        """Read what :meth:`as_dict` returns; earlier versions wrote fewer entries."""
        known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**{**known, **lists})


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Compute Student's interval for the mean of independent values; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """A comparison "a above b" with the differences a − b.

    Attributes:
        name: what is compared.
        differences: a − b for each seed, expected to be positive.
        over_images: interval of the difference over the choice of images, for a single seed; None if there is none.
        whole: interval over seeds and images together; None if there is none. With it the comparison is judged.
        seeds_needed: number of seeds whose interval would exclude 0, if the difference stayed as it is; None if no
            number would, because the images alone leave it open, or if the comparison is not judged.
        data_needed: how many times as many images or people would decide with very many seeds, where seeds alone do
            not; None otherwise, and in reports of earlier versions.
    """

    name: str
    differences: tuple[float, ...]
    over_images: Interval | None = None
    whole: Interval | None = None
    seeds_needed: int | None = None
    data_needed: float | None = None

    @property
    def mean(self) -> float:
        """Mean difference over seeds."""
        return float(np.mean(self.differences))

    @property
    def holds(self) -> bool:
        """Whether the mean over seeds is positive."""
        return self.mean > 0

    @property
    def interval(self) -> Interval | None:
        """The interval over seeds and images, if there is one; else Student's over seeds; else that over images."""
        return self.whole or interval(self.differences) or self.over_images

    @property
    def verdict(self) -> str:
        """Judge the comparison by :attr:`whole`: "confirmed", "refuted" or "not decided"; "" without it."""
        if self.whole is None:
            return ""
        return "confirmed" if self.whole[0] > 0 else "refuted" if self.whole[1] < 0 else "not decided"

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        found = self.interval
        return found is not None and (found[0] > 0 or found[1] < 0)

    @property
    def text(self) -> str:
        """The name, the difference, its interval and the number of seeds on which it holds."""
        found = self.interval
        several = "" if found is None else f" [{found[0]:+.2f}, {found[1]:+.2f}]"
        if len(self.differences) > 1:
            several += f", on {sum(d > 0 for d in self.differences)} of {len(self.differences)} seeds"
        if self.verdict == "not decided":
            several += f"; {self._would_decide}"
        return f"{self.name}: {self.mean:+.2f}{several}"

    @property
    def _would_decide(self) -> str:
        if self.seeds_needed is not None:
            return f"about {self.seeds_needed} seeds would decide"
        if self.data_needed is None:
            return "no number of seeds would decide on these pairs"
        times = f"{self.data_needed:.2g}" if self.data_needed < 100 else "over 100"
        return f"no number of seeds would decide, with {times} times as much test data many would"

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return {
            "name": self.name,
            "differences": list(self.differences),
            "over_images": None if self.over_images is None else list(self.over_images),
            "interval": self.interval,
            "holds": self.holds,
            "clear": self.clear,
            **(
                {}
                if self.whole is None
                else {
                    "whole": list(self.whole),
                    "verdict": self.verdict,
                    "seeds_needed": self.seeds_needed,
                    "data_needed": self.data_needed,
                }
            ),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Comparison:
        """Read what :meth:`as_dict` returns; earlier versions wrote fewer entries."""
        over_images, whole = (tuple(content.get(name) or ()) or None for name in ("over_images", "whole"))
        needed = content.get("seeds_needed"), content.get("data_needed")
        return cls(content["name"], tuple(content["differences"]), over_images, whole, *needed)


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper states, or that goes beyond it.

    Attributes:
        text: the ordering in words.
        comparisons: the comparisons that it consists of.
        beyond: whether the paper does not state it.
    """

    text: str
    comparisons: tuple[Comparison, ...]
    beyond: bool = False

    @property
    def holds(self) -> bool:
        """Whether all comparisons hold."""
        return all(one.holds for one in self.comparisons)

    @property
    def verdict(self) -> str:
        """Judge the ordering: "confirmed" if all comparisons are, "refuted" if one is; "" if they are not judged."""
        found = {one.verdict for one in self.comparisons}
        if "" in found:
            return ""
        return "refuted" if "refuted" in found else "confirmed" if found == {"confirmed"} else "not decided"

    @property
    def count(self) -> str:
        """The number of comparisons that hold, such as "3 of 4"."""
        return f"{sum(one.holds for one in self.comparisons)} of {len(self.comparisons)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the claim for JSON."""
        return {
            "claim": self.text,
            "beyond": self.beyond,
            "holds": self.holds,
            "count": self.count,
            **({"verdict": self.verdict} if self.verdict else {}),
            "comparisons": [one.as_dict() for one in self.comparisons],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Claim:
        """Read what :meth:`as_dict` returns."""
        comparisons = tuple(map(Comparison.from_dict, content["comparisons"]))
        return cls(content["claim"], comparisons, bool(content.get("beyond", False)))


@dataclass(frozen=True)
class Finding:
    """A difference in words.

    Attributes:
        text: a sentence that states an effect only if the interval of the difference excludes 0.
        comparison: the difference.
    """

    text: str
    comparison: Comparison

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.comparison.clear

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return {"text": self.text, **self.comparison.as_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Finding:
        """Read what :meth:`as_dict` returns."""
        return cls(content["text"], Comparison.from_dict(content))
