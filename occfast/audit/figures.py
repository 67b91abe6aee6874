"""Figures of an audit with their resamples: what a paired comparison needs."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Version of audit.json.
FORMAT = 3
#: Name of faces without a covering.
UNCOVERED = "uncovered"
#: Names of figures; that of an FNMR also states its FMR.
FMR_AT_THRESHOLD, FNMR_AT_OWN, RANK_1 = "FMR at the uncovered threshold", "FNMR at its own threshold", "rank-1"

_INCREASE = "FNMR above uncovered"


class Figure(NamedTuple):
    """One figure of an audit.

    Attributes:
        covering: The covering, or "uncovered".
        name: What is measured, such as "FNMR at FMR 0.001" or "rank-1".
    """

    covering: str
    name: str

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is the better one."""
        return self.name == RANK_1

    @property
    def is_increase(self) -> bool:
        """Whether it is a difference from uncovered faces."""
        return self.name.startswith(_INCREASE)

    def __str__(self) -> str:
        return f"{self.name}, {self.covering}"


class Resampled(NamedTuple):
    """A figure's value, and that of each resample of people, [resamples]; NaN where a resample has none."""

    value: float
    drawn: Floats


def fnmr_at(fmr: float) -> str:
    """Return the name of the FNMR at the threshold of an FMR."""
    return f"FNMR at FMR {fmr:g}"


def increase_at(fmr: float) -> str:
    """Return the name of the FNMR minus that of uncovered faces, at the threshold of an FMR."""
    return f"{_INCREASE}, FMR {fmr:g}"


def rate_text(value: float) -> str:
    """Format a rate in percent: one digit after the point, more where it is small."""
    return f"{100 * value:.1f} %" if value >= 0.005 or value == 0 else f"{100 * value:.2g} %"


def points(value: float) -> str:
    """Format a difference of rates in percentage points."""
    return f"{100 * value:+.1f}" if abs(value) >= 0.005 or value == 0 else f"{100 * value:+.2g}"


def to_json(figures: Mapping[Figure, Resampled]) -> list[dict[str, Any]]:
    """Return figures for JSON; resamples are float32, little-endian, compressed by zlib, in base64."""
    return [
        {
            "covering": figure.covering,
            "figure": figure.name,
            "value": float(found.value),
            "drawn": base64.b64encode(zlib.compress(found.drawn.astype("<f4").tobytes(), 9)).decode(),
        }
        for figure, found in figures.items()
    ]


def from_json(rows: Any, resamples: int) -> dict[Figure, Resampled]:
    """Return the figures that :func:`to_json` wrote.

    Raises:
        ValueError: They are damaged.
    """
    if not isinstance(rows, list) or not rows:
        raise ValueError("expected figures")
    found: dict[Figure, Resampled] = {}
    for row in rows:
        try:
            figure, value, packed = Figure(row["covering"], row["figure"]), row["value"], row["drawn"]
            unpack = zlib.decompressobj()
            content = unpack.decompress(base64.b64decode(packed, validate=True), 4 * resamples + 1)
        except (KeyError, TypeError, binascii.Error, zlib.error) as error:
            raise ValueError(f"figure {len(found)}: {error}") from error
        if not isinstance(figure.covering, str) or not isinstance(figure.name, str) or figure in found:
            raise ValueError(f"figure {len(found)}: expected names, each once")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{figure}: expected a rate, got {value!r:.80}")
        drawn = np.frombuffer(content, "<f4").astype(np.float64) if len(content) == 4 * resamples else np.empty(0)
        if len(drawn) != resamples or not -1 <= value <= 1 or not np.all(np.isnan(drawn) | (abs(drawn) <= 1)):
            raise ValueError(f"{figure}: expected rates and {resamples} resamples of each")
        found[figure] = Resampled(float(value), drawn)
    return found
