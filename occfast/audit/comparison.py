"""The audits of two recognizers side by side, paired over people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import checks
from ..files import write_atomically
from ..progress import printable
from ..sweep.comparison import MapComparison
from .figures import RANK_1, UNCOVERED, fnmr_at, points, rate_text
from .paired import FigureDifference, differences
from .record import AuditRecord
from .report import Audit, markdown_row


@dataclass(frozen=True, eq=False)
class AuditComparison:
    """Differences between two recognizers on the same people.

    Attributes:
        first, second: Their audits.
        names: Their names.
        differences: All figures of the audits.
        level: Probability of any significant figure where none differs.
        maps: Comparison of the occlusion maps, the second's drop minus the first's; None: see ``no_maps``.
        no_maps: Why the maps are not compared.
        differing: Settings that differ, by name, with both values.
    """

    first: Audit
    second: Audit
    names: tuple[str, str]
    differences: list[FigureDifference]
    level: float
    maps: MapComparison | None
    no_maps: str = ""
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Title of the page."""
        data = self.first.settings.get("data")
        return f"{self.names[0]} and {self.names[1]} on covered faces" + (f": {data}" if data else "")

    @property
    def basis(self) -> str:
        """The data behind the figures, in one line."""
        s = self.first.settings
        return f"{s['date']}, {s['images']:,} images of {s['people']:,} people"

    @property
    def sentences(self) -> list[str]:
        """The findings in plain sentences: the FNMR at the main FMR, rank-1, then the rest."""
        a, b = self.names
        main = fnmr_at(self.first.fmr)
        found = []
        rows = [d for d in self.differences if d.significant and d.figure.name in (main, RANK_1)]
        coverings = [c.name for c in self.first.conditions]
        rows = [d for d in rows if d.figure.covering in coverings]
        rows.sort(key=lambda d: (d.figure.name != main, -abs(d.value)))
        for d in rows:
            where = "uncovered" if d.figure.covering == UNCOVERED else f"with {d.figure.covering}"
            low, high = (abs(100 * end) for end in d.interval)
            size = f"{abs(100 * d.value):.1f} points ({min(low, high):.1f} to {max(low, high):.1f})"
            what = (
                f"identifies {size} {'more' if d.value > 0 else 'fewer'} probes than {a} at rank 1"
                if d.figure.name == RANK_1
                else f"rejects {size} {'more' if d.value > 0 else 'fewer'} genuine pairs than {a} at FMR "
                f"{self.first.fmr:g}"
            )
            found.append(f"{where[0].upper() + where[1:]}, {b} {what}: {rate_text(d.second)} and {rate_text(d.first)}.")
        others = sum(d.significant for d in self.differences) - len(rows)
        if not found:
            found.append(f"{a} and {b} do not differ clearly, neither in FNMR at FMR {self.first.fmr:g} nor at rank 1.")
        if others:
            found.append(f"{others} further figure{'s differ' if others > 1 else ' differs'} clearly; see the table.")
        if self.differing:
            found.append(f"The recognizers' preprocessing differs ({', '.join(self.differing)}); each keeps its own.")
        if self.maps is not None:
            higher, lower = self.maps.counts()
            total = self.maps.p_values.size
            found.append(
                f"A block lowers the similarity of {b} more than that of {a} at {higher:,} and less at {lower:,} of "
                f"{total:,} places, beyond chance."
                if higher or lower
                else "The occlusion maps do not differ clearly at any place."
            )
        return found

    @property
    def note(self) -> str:
        """What the differences are and what they rest on."""
        s = self.first.settings
        return (
            f"{s['images']:,} images of {s['people']:,} people, audited with both recognizers; a covering covers "
            f"{s['covered']}. Differences: {self.names[1]} minus {self.names[0]} in percentage points, both resampled "
            f"with the same {s['resamples']:,} draws of people and with their thresholds chosen anew in each. In "
            f"parentheses: simultaneous {100 * (1 - self.level):g} % intervals, which hold together for all "
            f"{len(self.differences)} figures (the largest statistic of each resample; unlike Holm's correction it "
            f"knows that the figures go together). Bold: the interval excludes 0."
        )

    def table(self) -> tuple[list[str], list[tuple[list[str], bool]]]:
        """Return the header, and the rows each with whether it is significant."""
        header = ["covering", "figure", *self.names, "difference in points", "adjusted p"]
        rows = []
        for d in self.differences:
            low, high = d.interval
            change = f"{points(d.value)} ({points(low)} to {points(high)})"
            cells = [d.figure.covering, d.figure.name, rate_text(d.first), rate_text(d.second), change]
            rows.append(([*cells, f"{d.p_value:.2g}"], d.significant))
        return header, rows

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON, but for the audits themselves."""
        return {
            "kind": "occfast.comparison",
            "names": list(self.names),
            "sentences": self.sentences,
            "level": self.level,
            "differences": [d.as_dict() for d in self.differences],
            "maps": None if self.maps is None else self.maps.about(),
            "maps_note": self.no_maps,
            "preprocessing": {name: list(values) for name, values in self.differing.items()},
            "settings": {k: v for k, v in self.first.settings.items() if k in _SHARED},
        }

    def to_markdown(self) -> str:
        """Return the sentences and the table as Markdown."""
        header, rows = self.table()
        lines = ["# " + self.title, "", *(f"- {sentence}" for sentence in self.sentences), ""]
        lines += [markdown_row(header), markdown_row(["---"] * len(header))]
        for cells, significant in rows:
            lines.append(markdown_row([f"**{c}**" if k == 4 and significant else c for k, c in enumerate(cells)]))
        return printable("\n".join([*lines, "", self.note, *(["", self.no_maps] if self.no_maps else [])]) + "\n")

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``compare.json``, ``compare.md`` and the page ``compare.html``.

        Returns:
            Path of the page.
        """
        from .page import comparison_page

        folder = Path(folder)
        write_atomically(folder / "compare.json", (json.dumps(self.as_dict(), indent=1) + "\n").encode())
        write_atomically(folder / "compare.md", self.to_markdown().encode())
        return write_atomically(folder / "compare.html", comparison_page(self).encode())


#: Settings that the two audits share.
_SHARED = ("data", "date", "images", "people", "covered", "confidence", "resamples", "seed", "faces")


def compare(first: Audit, second: Audit, *, level: float = 0.05) -> AuditComparison:
    """Compare the audits of two recognizers on the same people.

    Args:
        first, second: Audits of the same faces by the same protocol. Each recognizer has its own preprocessing.
        level: Probability of any significant figure where none differs, in (0, 0.5].

    Raises:
        ValueError: The audits are of other faces or another protocol, or have too few resamples for the level.
    """
    checks.number(level, "level", above=0.0, high=0.5)
    names = _names(first, second)
    one, other = (AuditRecord.of(x.as_dict(), x.figures, name) for x, name in zip((first, second), names, strict=True))
    one.require(other, "second")
    differing = one.differing(other)
    maps, no_maps = _maps(first, second, level, one.same_geometry(other), same_scale=not differing)
    return AuditComparison(
        first=first,
        second=second,
        names=names,
        differences=differences(first.figures, second.figures, people=one.people, level=level),
        level=level,
        maps=maps,
        no_maps=no_maps,
        differing=differing,
    )


def _names(first: Audit, second: Audit) -> tuple[str, str]:
    """Return two different names."""
    a, b = (audit.settings["model_name"] or f"recognizer {k}" for k, audit in (("A", first), ("B", second)))
    return (a, b) if a != b else (f"A ({a})", f"B ({b})")


def _maps(
    first: Audit, second: Audit, level: float, same_geometry: bool, *, same_scale: bool
) -> tuple[MapComparison | None, str]:
    """Compare the second's map with the first's, or say why not."""
    m, n = first.map, second.map
    if m is None or n is None:
        return None, ""
    if not same_geometry or m.grid != n.grid:
        return None, (
            "The occlusion maps are not subtracted: the recognizers' faces differ in size, color or alignment, so that "
            "their positions are not the same places of a face."
        )
    fewest = math.ceil(1 - math.log2(level) - 1e-9)  # signs of n images flip in 2**n ways, and each has a mirror image
    if m.n_images < fewest:
        return None, (
            f"The occlusion maps are not subtracted: of {m.n_images} image{'s' * (m.n_images > 1)}, no difference can "
            f"be significant; {fewest} images or more can show one (--map-images)."
        )
    if not same_scale:  # the same faces on another scale
        m, n = replace(m, fingerprint=None), replace(n, fingerprint=None, mean_image=m.mean_image)
    return n.compare(m, level=level), ""
