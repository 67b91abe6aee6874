"""Whether a recognizer got worse than a baseline, for continuous integration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from .. import checks
from ..progress import one_line, printable
from .figures import Figure, Resampled, points, rate_text
from .paired import FigureDifference, differences
from .record import AuditRecord
from .report import markdown_row


@dataclass(frozen=True, eq=False)
class GateResult:
    """Figures of a recognizer beside those of its baseline.

    Attributes:
        differences: All figures; "first" is the baseline.
        level: Probability of failing a recognizer that did not get worse.
        name, baseline_name: Names of the recognizer and of the baseline.
        settings: Settings of the audit.
        differing: Parts of preprocessing that differ, by name, with the baseline's value and the recognizer's.
    """

    differences: list[FigureDifference]
    level: float
    name: str
    baseline_name: str
    settings: Mapping[str, Any]
    differing: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def worse(self) -> list[FigureDifference]:
        """Figures that got significantly worse, the clearest first."""
        found = [d for d in self.differences if d.significant]
        return sorted(found, key=lambda d: (d.p_value, -abs(d.value)))

    @property
    def passed(self) -> bool:
        """Whether no figure got significantly worse."""
        return not self.worse

    @property
    def sentences(self) -> list[str]:
        """The findings in plain sentences."""
        figures = f"{len(self.differences)} figures"
        names = ", ".join(self.differing)
        also = [f"Their preprocessing differs ({names}); each keeps its own."] if names else []
        if self.passed:
            passes = f"{self.name} passes: none of {figures} is significantly worse than that of {self.baseline_name}."
            return [passes, *also]
        verb = "is" if len(self.worse) == 1 else "are"
        return [
            f"{self.name} fails: {len(self.worse)} of {figures} {verb} significantly worse than {self.baseline_name}.",
            *(f"{d.figure}: {_change(d)}" for d in self.worse),
            *also,
        ]

    @property
    def note(self) -> str:
        """How it was tested."""
        s = self.settings
        return (
            f"{s['images']:,} images of {s['people']:,} people; the same {s['resamples']:,} resamples of people for "
            f"both. All figures are tested together, one-sided, by the largest of their statistics: a recognizer that "
            f"did not get worse fails with a probability of {100 * self.level:g} %."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "kind": "occfast.gate",
            "passed": self.passed,
            "level": self.level,
            "name": self.name,
            "baseline": self.baseline_name,
            "sentences": self.sentences,
            "preprocessing": {name: list(values) for name, values in self.differing.items()},
            "figures": [d.as_dict() for d in self.differences],
        }

    def to_markdown(self) -> str:
        """Return the sentences and a table, those that got worse first."""
        title = f"# {self.name} against {self.baseline_name}: {'passed' if self.passed else 'FAILED'}"
        lines = [title, "", *(f"- {sentence}" for sentence in self.sentences), ""]
        header = ["figure", "covering", "baseline", "now", "difference", "adjusted p", ""]
        lines += [markdown_row(header), markdown_row(["---"] * len(header))]
        for d in self.worse + [d for d in self.differences if not d.significant]:
            cells = [d.figure.name, d.figure.covering, rate_text(d.first), rate_text(d.second), points(d.value)]
            lines.append(markdown_row([*cells, f"{d.p_value:.2g}", "**worse**" if d.significant else ""]))
        return printable("\n".join([*lines, "", self.note]) + "\n")

    def to_junit(self) -> str:
        """Return JUnit XML: a test case for each figure, failed if it got worse."""
        about = {"name": "occfast gate", "tests": str(len(self.differences)), "failures": str(len(self.worse))}
        suite = ElementTree.Element("testsuite", {**about, "errors": "0", "skipped": "0", "time": "0"})
        for d in self.differences:
            names = {"classname": one_line(d.figure.covering), "name": one_line(d.figure.name), "time": "0"}
            case = ElementTree.SubElement(suite, "testcase", names)
            if d.significant:
                ElementTree.SubElement(case, "failure", {"message": _change(d), "type": "worse"}).text = self.note
        root = ElementTree.Element("testsuites", {k: v for k, v in about.items() if k != "name"})
        root.append(suite)
        ElementTree.indent(root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def gate(
    audit: str | os.PathLike[str] | AuditRecord, baseline: str | os.PathLike[str] | AuditRecord, *, level: float = 0.05
) -> GateResult:
    """Test whether a recognizer got worse than a baseline on any figure of its audit.

    Both audits are of the same faces and protocol. Their resamples are of the same people, so differences are paired.

    Args:
        audit: ``audit.json`` of the recognizer.
        baseline: ``audit.json`` of the baseline.
        level: Probability of failing a recognizer that did not get worse, in (0, 0.5].

    Raises:
        DataError: A file is not an audit, is damaged or of another version.
        ValueError: The audits are of other faces or another protocol, or have too few resamples for the level.
    """
    checks.number(level, "level", above=0.0, high=0.5)
    now, before = (r if isinstance(r, AuditRecord) else AuditRecord.read(r) for r in (audit, baseline))
    now.require(before, "--baseline")
    found = differences(gated(before.figures), gated(now.figures), people=now.people, level=level, alternative="worse")
    return GateResult(found, level, now.name, before.name, now.settings, before.differing(now))


def gated(figures: Mapping[Figure, Resampled]) -> dict[Figure, Resampled]:
    """Return the figures that a gate tests: all but differences from uncovered faces.

    Those rise, too, for a recognizer that gets better on uncovered faces alone.
    """
    return {figure: found for figure, found in figures.items() if not figure.is_increase}


def _change(d: FigureDifference) -> str:
    low, high = d.interval
    least = high if d.figure.higher_is_better else low
    return (
        f"{rate_text(d.first)} before, {rate_text(d.second)} now: {points(d.value)} points, at least "
        f"{points(least)} (adjusted p {d.p_value:.2g})"
    )
