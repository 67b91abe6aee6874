"""The result of an audit: sentences, tables, JSON, Markdown and a page."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_atomically
from ..progress import one_line, printable
from ..sweep import OcclusionMap
from .figures import FORMAT, Figure, Resampled, to_json
from .rates import Rate


@dataclass(frozen=True)
class Condition:
    """Rates of faces under one covering.

    Attributes:
        name: The covering, or "uncovered".
        covered: Mean share of the pixels that are covered.
        fnmr: FNMR at the threshold of uncovered faces, by the FMR that sets it.
        increase: FNMR minus that of uncovered faces, by FMR; the interval is of the paired difference.
        fmr: Share of impostor pairs that match at the main threshold of uncovered faces.
        threshold: Threshold at which impostor pairs under this covering match at the main FMR.
        fnmr_at_threshold: FNMR at that threshold.
        rank1: Share of probes whose person is found first in a gallery of one image per person.
        about: Settings of the covering.
    """

    name: str
    covered: float
    fnmr: dict[float, Rate]
    increase: dict[float, Rate]
    fmr: Rate
    threshold: float
    fnmr_at_threshold: Rate
    rank1: Rate
    about: dict[str, Any]


@dataclass(frozen=True)
class CurvePoint:
    """FNMR with a part of the face covered, "from below" or "from above"."""

    place: str
    covered: float
    fnmr: Rate


@dataclass(frozen=True)
class Region:
    """Mean drop of the cosine similarity with a block over one part of the face, and its standard error."""

    name: str
    drop: float
    standard_error: float


@dataclass(frozen=True)
class Group:
    """FNMR of the probes of one group under one covering.

    Attributes:
        kind: "group" (of the user's table) or "pose".
        name: Name of the group.
        covering: Covering, or "uncovered".
        fnmr: FNMR at the main threshold of uncovered faces.
        images, people: Numbers of images in the group and of people with genuine pairs.
    """

    kind: str
    name: str
    covering: str
    fnmr: Rate
    images: int
    people: int


@dataclass(frozen=True, eq=False)
class Audit:
    """What covering faces costs a recognizer.

    Attributes:
        conditions: Rates without a covering, then under each.
        fmr: FMR that sets the main threshold.
        thresholds: Threshold of uncovered faces by FMR, for those that the pairs resolve.
        curve: FNMR against the share covered.
        map: Mean map of the drop of similarity; None: not computed.
        regions: Parts of the face by that drop, the largest first.
        groups, poses: Rates by group and by pose.
        figures: Every figure of the table and the curve with its resamples, for paired comparisons.
        worst: Images whose covered probes are rejected most often, with the share over all coverings.
        examples: The mean face under each covering.
        settings: Data, network and settings.
        seconds: Time that the audit took.
    """

    conditions: list[Condition]
    fmr: float
    thresholds: dict[float, float]
    curve: list[CurvePoint]
    map: OcclusionMap | None
    regions: list[Region]
    groups: list[Group]
    poses: list[Group]
    worst: list[tuple[str, float]]
    figures: dict[Figure, Resampled] = field(repr=False)
    examples: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    seconds: float = 0.0

    @property
    def uncovered(self) -> Condition:
        """Rates without a covering."""
        return self.conditions[0]

    @property
    def sentences(self) -> list[str]:
        """The findings in plain sentences, the most important first."""
        clean, covered = self.uncovered, sorted(self.conditions[1:], key=lambda c: -c.fnmr[self.fmr].value)
        odds = f"1 in {round(1 / self.fmr):,}"
        found = [
            f"At the threshold {self.thresholds[self.fmr]:.3f}, where {odds} pairs of two people match, "
            f"{clean.fnmr[self.fmr]} of genuine pairs are rejected uncovered."
        ]
        for condition in covered:
            low, high = condition.increase[self.fmr].interval
            unclear = ", which is not clearly more than uncovered" if low <= 0 <= high else ""
            found.append(f"With {condition.name}, {condition.fnmr[self.fmr]} of genuine pairs are rejected{unclear}.")
        for condition in covered:
            if condition.fmr.interval[0] > self.fmr:
                found.append(
                    f"With {condition.name}, pairs of two people match more often than was set: "
                    f"{share_text(condition.fmr)}; a threshold of {condition.threshold:.3f} restores {odds} and "
                    f"rejects {condition.fnmr_at_threshold} of genuine pairs."
                )
        if len(covered) > 1:
            lowest = min(covered, key=lambda c: c.threshold)
            highest = max(covered, key=lambda c: c.threshold)
            found.append(
                f"Thresholds that keep {odds} when covered: from {lowest.threshold:.3f} with {lowest.name} to "
                f"{highest.threshold:.3f} with {highest.name}."
            )
        if self.regions:
            first, *others = self.regions
            less = ", ".join(f"{region.name} {region.drop:.2f}" for region in others)
            found.append(
                f"The {first.name} matters most: a block over it lowers the cosine similarity by {first.drop:.2f}"
                + (f"; then {less}." if less else ".")
            )
        for kind, groups in (("group", self.groups), ("pose", self.poses)):
            bare = [f"{group.name} {group.fnmr}" for group in groups if group.covering == clean.name]
            if bare:
                found.append(f"By {kind}, rejected uncovered: {', '.join(bare)}.")
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of the main table."""
        header = ["", *(f"rejected at FMR {f:g}" for f in self.thresholds), "points more than uncovered"]
        header += ["FMR at threshold", "threshold for this FMR", "rejected there", "rank-1", "covered"]
        rows = []
        for c in self.conditions:
            low, high = c.increase[self.fmr].interval
            more = f"{100 * c.increase[self.fmr].value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            rows.append(
                [
                    c.name,
                    *(str(c.fnmr[f]) for f in self.thresholds),
                    "" if c is self.uncovered else more,
                    share_text(c.fmr),
                    f"{c.threshold:.3f}",
                    str(c.fnmr_at_threshold),
                    str(c.rank1),
                    f"{100 * c.covered:.0f} %",
                ]
            )
        return header, rows

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON, but for the map's values and the examples."""

        def condition(c: Condition) -> dict[str, Any]:
            return {
                "name": c.name,
                "covered": c.covered,
                "fnmr": {f"{f:g}": rate.as_dict() for f, rate in c.fnmr.items()},
                "increase": {f"{f:g}": rate.as_dict() for f, rate in c.increase.items()},
                "fmr": c.fmr.as_dict(),
                "threshold": c.threshold,
                "fnmr_at_threshold": c.fnmr_at_threshold.as_dict(),
                "rank1": c.rank1.as_dict(),
                "about": c.about,
            }

        def group(g: Group) -> dict[str, Any]:
            return {**asdict(g), "fnmr": g.fnmr.as_dict()}

        return {
            "kind": "occfast.audit",
            "format": FORMAT,
            "sentences": self.sentences,
            "fmr": self.fmr,
            "thresholds": {f"{f:g}": threshold for f, threshold in self.thresholds.items()},
            "conditions": [condition(c) for c in self.conditions],
            "curve": [{"place": p.place, "covered": p.covered, "fnmr": p.fnmr.as_dict()} for p in self.curve],
            "regions": [asdict(region) for region in self.regions],
            "groups": [group(g) for g in self.groups],
            "poses": [group(g) for g in self.poses],
            "worst": [{"image": name, "rejected": share} for name, share in self.worst],
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "resamples": to_json(self.figures),
        }

    @property
    def tables(self) -> list[tuple[str, list[Group], str]]:
        """Titles, rows and explanations of the tables by group."""
        poses = (
            "By how far the nose lies from the middle of the eyes, in units of the distance between the eyes: less "
            "than 0.1 is frontal, 0.3 and more profile. Poses of fewer than 20 images are left out."
        )
        return [("By group", self.groups, ""), ("By pose", self.poses, poses)]

    def to_markdown(self) -> str:
        """Return the sentences and the tables as Markdown."""
        header, rows = self.table()
        lines = ["# " + self.title, "", self.basis + ".", "", *(f"- {sentence}" for sentence in self.sentences), ""]
        lines += [
            markdown_row(header),
            markdown_row(["---"] * len(header)),
            *(markdown_row(row) for row in rows),
            "",
            self.note,
        ]
        for title, groups, about in self.tables:
            if groups:
                lines += ["", f"## {title}", "", *([about, ""] if about else [])]
                lines += [markdown_row(["covering", "group", "rejected", "images", "people"])]
                lines += [markdown_row(["---"] * 5)]
                lines += [markdown_row([g.covering, g.name, str(g.fnmr), str(g.images), str(g.people)]) for g in groups]
        return printable("\n".join(lines) + "\n")

    @property
    def title(self) -> str:
        """Title of the page."""
        name, data = self.settings.get("model_name"), self.settings.get("data")
        return f"What covering costs: {name or 'a recognizer'}" + (f" on {data}" if data else "")

    @property
    def note(self) -> str:
        """What the rates are and what they rest on."""
        s = self.settings
        text = (
            f"{s['images']:,} images of {s['people']:,} people, {s['genuine pairs']:,} genuine and "
            f"{s['impostor pairs']:,} impostor pairs without a covering; a covering covers {s['covered']}. Rejected: "
            f"FNMR at the threshold of uncovered faces. In parentheses: {100 * s['confidence']:g} % intervals, "
            f"{s['resamples']:,} resamples of people, the threshold chosen anew in each."
        )
        if s["unresolved FMR"]:
            text += f" The pairs can't resolve an FMR of {', '.join(f'{f:g}' for f in s['unresolved FMR'])}."
        return " ".join([text, *s["notes"]])

    @property
    def basis(self) -> str:
        """The data behind the rates, in one line."""
        s = self.settings
        aligned = f"aligned to {s['alignment']}" if s["alignment"] else "as they are"
        return f"{s['date']}, {s['images']:,} images of {s['people']:,} people, {aligned}"

    def curve_csv(self) -> str:
        """Return the curve as CSV: place, covered, fnmr, low, high."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["place", "covered", "fnmr", "low", "high"])
        for p in self.curve:
            writer.writerow([p.place, f"{p.covered:.4f}", *(f"{v:.6g}" for v in (p.fnmr.value, *p.fnmr.interval))])
        return text.getvalue()

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``audit.json``, ``audit.md``, ``curve.csv``, ``map.npz`` and the page ``audit.html``.

        Returns:
            Path of the page.
        """
        from .page import page

        folder = Path(folder)
        write_atomically(folder / "audit.json", (json.dumps(self.as_dict(), indent=1) + "\n").encode())
        write_atomically(folder / "audit.md", self.to_markdown().encode())
        if self.curve:
            write_atomically(folder / "curve.csv", self.curve_csv().encode())
        if self.map is not None:
            self.map.save(folder / "map.npz")
        return write_atomically(folder / "audit.html", page(self).encode())


def share_text(rate: Rate) -> str:
    """Format a small rate with its interval."""
    low, high = rate.interval
    return f"{100 * rate.value:.2g} % ({100 * low:.2g}-{100 * high:.2g} %)"


def markdown_row(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |"
