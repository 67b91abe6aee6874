"""The report of a reproduction: the paper's figures beside ours, as one self-contained page, Markdown and JSON.

Each paper's module fills a :class:`Report`; here it is counted over seeds and written.
"""

from __future__ import annotations

import base64
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._version import __version__
from ..files import write_atomically
from ..plots import png_data_uri
from .graph import Done

CONFIDENCE = 0.95


# -- figures over seeds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """One figure of ours, a value a seed, and the paper's.

    Attributes:
        values: of the seeds, in the unit shown (mostly %).
        spreads: that belong to the values, such as a standard deviation over locations; may be empty.
        paper, paper_spread: None where the paper has none.
        digits: behind the point.
    """

    values: tuple[float, ...]
    spreads: tuple[float, ...] = ()
    paper: float | None = None
    paper_spread: float | None = None
    digits: int = 2

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval for the mean over seeds; None with one seed."""
        return interval(self.values)

    @property
    def text(self) -> str:
        """Mean ± mean spread [interval]."""
        if not self.values:
            return "–"
        text = f"{self.mean:.{self.digits}f}"
        if self.spreads:
            text += f" ± {float(np.mean(self.spreads)):.{self.digits}f}"
        if self.interval is not None:
            text += " [{:.{d}f}, {:.{d}f}]".format(*self.interval, d=self.digits)
        return text

    @property
    def paper_text(self) -> str:
        """As printed in the paper, "" where it has none."""
        if self.paper is None:
            return ""
        return f"{self.paper:g}" + (f" ± {self.paper_spread:g}" if self.paper_spread is not None else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "mean": self.mean if self.values else None, "interval": self.interval}


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's interval for the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


@dataclass(frozen=True)
class Comparison:
    """One "a above b" of the paper: ours is a − b, a value a seed, which ought to be above 0."""

    name: str
    differences: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether the mean over seeds is above 0."""
        return float(np.mean(self.differences)) > 0

    @property
    def clear(self) -> bool:
        """Whether all of the interval over seeds is on one side of 0."""
        found = interval(self.differences)
        return found is not None and (found[0] > 0) == (found[1] > 0)

    @property
    def text(self) -> str:
        """With the difference and the seeds it holds on."""
        found = interval(self.differences)
        several = (
            ""
            if found is None
            else (
                f" [{found[0]:+.2f}, {found[1]:+.2f}], on {sum(d > 0 for d in self.differences)} of "
                f"{len(self.differences)} seeds"
            )
        )
        return f"{self.name}: {float(np.mean(self.differences)):+.2f}{several}"


@dataclass(frozen=True)
class Claim:
    """An ordering of the paper, or one that it leaves open.

    Attributes:
        text: what the paper finds, or what is asked beyond it.
        comparisons: of which it is made.
        beyond: the paper does not state it.
    """

    text: str
    comparisons: tuple[Comparison, ...]
    beyond: bool = False

    @property
    def holds(self) -> bool:
        """All of it, of the means over seeds."""
        return all(one.holds for one in self.comparisons)

    @property
    def count(self) -> str:
        """Of the comparisons: how many hold."""
        return f"{sum(one.holds for one in self.comparisons)} of {len(self.comparisons)}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "claim": self.text,
            "beyond": self.beyond,
            "holds": self.holds,
            "count": self.count,
            "comparisons": [
                {"name": c.name, "differences": list(c.differences), "holds": c.holds, "clear": c.clear}
                for c in self.comparisons
            ],
        }


# -- what a report has ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: "Table 1", an HTML id as "table-1".
        caption: what it shows.
        header: of the columns, the first for the rows' names.
        rows: their names and cells.
        note: below.
        command: that gives this table alone.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Mapping[str, Sequence[Number]]
    note: str = ""
    command: str = ""

    @property
    def id(self) -> str:
        """For links and tests."""
        return self.name.lower().replace(" ", "-").replace("'", "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "caption": self.caption,
            "header": list(self.header),
            "command": self.command,
            "rows": {name: [cell.as_dict() for cell in cells] for name, cells in self.rows.items()},
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure of the paper.

    Attributes:
        name: "Figure 1".
        caption: what it shows.
        alt: for those who don't see it.
        figure: a Matplotlib figure.
        command: that gives this figure alone.
    """

    name: str
    caption: str
    alt: str
    figure: Any
    command: str = ""

    @property
    def file(self) -> str:
        """Name of its PNG file."""
        return self.name.lower().replace(" ", "-") + ".png"


@dataclass
class Report:
    """A whole report.

    Attributes:
        paper: "trigueros2018" or "pdsn-landmarks".
        title, lead: of the page.
        scale: "smoke", "small" or "paper".
        seeds, settings, data: how the figures came about; must go into JSON.
        command: that made it.
        claims, tables, pictures: what the paper shows; ``tables`` and ``pictures`` in the order of the page.
        differences: what differs from the paper, and what that explains: pairs.
        notes: what the reader should know before anything else, such as missing data.
        steps: with their cost.
    """

    paper: str
    title: str
    lead: str
    scale: str
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    command: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    differences: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    steps: Sequence[Done] = ()
    environment: dict[str, Any] = field(default_factory=lambda: environment())

    @property
    def failing(self) -> list[Claim]:
        """Orderings of the paper that do not hold here."""
        return [claim for claim in self.claims if not claim.holds]

    @property
    def holding(self) -> list[Claim]:
        """Orderings of the paper that hold here."""
        return [claim for claim in self.claims if claim.holds]

    @property
    def seconds(self) -> float:
        """Of all steps together, on as many processes as each had."""
        return sum(step.seconds for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON; what depends on the clock is in "cost" alone."""
        return {
            "kind": "occfast.reproduce",
            "version": 1,
            "paper": self.paper,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "command": self.command,
            "settings": self.settings,
            "data": self.data,
            "notes": list(self.notes),
            "claims": [claim.as_dict() for claim in self.claims],
            "tables": [table.as_dict() for table in self.tables],
            "differences": [list(pair) for pair in self.differences],
            "environment": self.environment,
            "cost": {
                "seconds": self.seconds,
                "steps": [
                    {
                        "step": s.name,
                        "seconds": s.seconds,
                        "device": s.device,
                        "processes": s.processes,
                        "finished": s.finished,
                    }
                    for s in self.steps
                ],
            },
        }

    # -- writing ---------------------------------------------------------------------------------------

    def write(self, folder: Path) -> Path:
        """``report.html``, ``report.md`` with its pictures, and ``report.json``; returns the page."""
        uris = {picture.name: png_data_uri(picture.figure) for picture in self.pictures}
        for picture in self.pictures:
            content = base64.b64decode(uris[picture.name].partition(",")[2])
            write_atomically(folder / picture.file, content)
        write_atomically(
            folder / "report.json", (json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n").encode()
        )
        write_atomically(folder / "report.md", self.to_markdown().encode())
        return write_atomically(folder / "report.html", self.to_html(uris).encode())

    def to_html(self, uris: Mapping[str, str] | None = None) -> str:
        """The page; every picture is inside it."""
        from importlib.resources import files

        import jinja2

        if uris is None:
            uris = {picture.name: png_data_uri(picture.figure) for picture in self.pictures}
        template = files("occfast.reproduce").joinpath("report.html").read_text(encoding="utf-8")
        page = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        page.filters["duration"] = duration
        return page.from_string(template).render(report=self, uris=uris, verdict=self.verdict())

    def verdict(self) -> str:
        """The first sentence of the page."""
        if not self.claims:
            return "No ordering of the paper was looked at: its tables were not asked for."
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) != 1 else ''}"
        stated = [claim for claim in self.claims if not claim.beyond]
        beyond = [claim for claim in self.claims if claim.beyond]
        failing = sum(not claim.holds for claim in stated)
        first = (
            f"{failing} of the paper's {len(stated)} orderings do not hold, or not wholly, at this scale ({seeds})"
            if failing
            else f"All {len(stated)} orderings of the paper hold at this scale ({seeds})"
        )
        holding = sum(claim.holds for claim in beyond)
        return first + (f"; of {len(beyond)} that it does not state {holding} hold." if beyond else ".")

    def to_markdown(self) -> str:
        """The same as text; pictures are files beside it."""
        lines = [f"# {self.title}", "", self.lead, "", f"    {self.command}", ""]
        lines += [f"> {note}\n" for note in self.notes]
        lines += ["## Does it hold?", "", self.verdict(), ""]
        for claim in (*self.failing, *self.holding):
            lines.append(f"- {'holds' if claim.holds else '**does not hold**'} ({claim.count}): {claim.text}")
            if not claim.holds:
                lines += [f"  - not: {one.text}" for one in claim.comparisons if not one.holds]
        for table in self.tables:
            lines += ["", f"## {table.name}", "", table.caption, ""]
            lines += ["| " + " | ".join(table.header) + " |", "| --- |" + " ---: |" * (len(table.header) - 1)]
            for name, cells in table.rows.items():
                shown = [f"{c.text} ({c.paper_text})" if c.paper_text else c.text for c in cells]
                lines.append(f"| {name} | " + " | ".join(shown) + " |")
            named = any(cell.paper_text for cells in table.rows.values() for cell in cells)
            if notes := " ".join(filter(None, (table.note, "The paper's in brackets." if named else ""))):
                lines += ["", notes]
            if table.command:
                lines += ["", f"    {table.command}"]
        for picture in self.pictures:
            lines += ["", f"## {picture.name}", "", f"![{picture.alt}]({picture.file})", "", picture.caption]
            if picture.command:
                lines += ["", f"    {picture.command}"]
        if self.differences:
            lines += ["", "## What differs from the paper", "", "| what | what it explains |", "| --- | --- |"]
            lines += [f"| {what} | {why} |" for what, why in self.differences]
        lines += ["", "## Cost", "", "| step | seconds | on |", "| --- | ---: | --- |"]
        for s in self.steps:
            lines.append(
                f"| {s.name} | {s.seconds:.1f} | {s.device}{f', {s.processes} processes' if s.processes > 1 else ''} |"
            )
        lines += [f"| together | {self.seconds:.1f} | |", "", "## Versions", ""]
        lines += [", ".join(f"{name} {value}" for name, value in self.environment.items())]
        return "\n".join(lines) + "\n"


def environment() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "occfast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count:.0f} B"
