"""The report of a reproduction as one self-contained page, Markdown and JSON.

The module of each paper fills a :class:`Report` with the paper's numbers beside those of the run.
"""

from __future__ import annotations

import base64
import html
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import pages
from .._version import __version__
from ..errors import DataError
from ..files import read_bytes, read_json, write_atomically
from ..native import processor
from ..plots import png_data_uri
from .graph import Done
from .values import Claim, Finding, Number

_KIND, _VERSION = "occfast.reproduce", 2


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: such as "Table 1".
        caption: description of its content.
        header: titles of the columns, that of the rows' names first.
        rows: the cells of each row, by the row's name.
        note: text below the table.
        command: the command that makes this table alone.
        best: whether to mark the highest mean of each column.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Mapping[str, Sequence[Number]]
    note: str = ""
    command: str = ""
    best: bool = False

    @property
    def id(self) -> str:
        """HTML id, such as "table-1"."""
        return self.name.lower().replace(" ", "-").replace("'", "")

    def is_best(self, cell: Number, column: int) -> bool:
        """Return whether to mark a cell of a column, counted from 0 without the names."""
        return self.best and bool(cell.values) and cell.mean == max(row[column].mean for row in self.rows.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the table for JSON."""
        return {
            "name": self.name,
            "caption": self.caption,
            "header": list(self.header),
            "command": self.command,
            "rows": {name: [cell.as_dict() for cell in cells] for name, cells in self.rows.items()},
            "note": self.note,
            "best": self.best,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Table:
        """Read what :meth:`as_dict` returns."""
        rows = {name: [Number.from_dict(cell) for cell in cells] for name, cells in content["rows"].items()}
        return cls(**{**content, "rows": rows})


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure.

    Attributes:
        name: such as "Figure 1".
        caption: description of its content.
        alt: text for readers who don't see it.
        figure: a Matplotlib figure, or the bytes of a PNG file.
        command: the command that makes this figure alone.
    """

    name: str
    caption: str
    alt: str
    figure: Any
    command: str = ""

    @property
    def file(self) -> str:
        """Name of the PNG file."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()) + ".png"

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        if isinstance(self.figure, bytes):
            return "data:image/png;base64," + base64.b64encode(self.figure).decode()
        return png_data_uri(self.figure)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the pixels, for JSON."""
        return {name: getattr(self, name) for name in ("name", "caption", "alt", "command", "file")}


@dataclass
class Report:
    """A report.

    Attributes:
        paper: "trigueros2018" or "pdsn-landmarks".
        title: title of the page.
        lead: first paragraph of the page.
        scale: "demo", "smoke", "small" or "paper".
        seeds: the seeds of the run.
        settings: the settings of the run; JSON must be able to hold them.
        data: description of the data; JSON must be able to hold it.
        command: the command that made the report.
        claims: orderings of the paper.
        findings: differences between networks, each with an interval.
        findings_note: the meaning of these intervals.
        cards: pairs of a number and its meaning, for the top of the page.
        tables: tables in the order of the page.
        pictures: figures in the order of the page.
        differences: pairs of a difference from the paper and what it explains.
        notes: what the reader should know first, such as missing data.
        steps: the steps, with their cost.
        environment: versions and machine.
        page: path of the page; None before it is written.
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
    findings: Sequence[Finding] = ()
    findings_note: str = ""
    cards: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    differences: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    steps: Sequence[Done] = ()
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    page: Path | None = None

    @property
    def judged(self) -> list[Claim]:
        """Orderings that are confirmed, refuted or not decided by intervals over seeds and images."""
        return [claim for claim in self.claims if claim.verdict]

    @property
    def failing(self) -> list[Claim]:
        """Orderings that do not hold here, of those that are not judged."""
        return [claim for claim in self.claims if not claim.holds and not claim.verdict]

    @property
    def holding(self) -> list[Claim]:
        """Orderings that hold here, of those that are not judged."""
        return [claim for claim in self.claims if claim.holds and not claim.verdict]

    @property
    def clear(self) -> list[Finding]:
        """Differences whose interval excludes 0."""
        return [finding for finding in self.findings if finding.clear]

    @property
    def unclear(self) -> list[Finding]:
        """Differences within noise."""
        return [finding for finding in self.findings if not finding.clear]

    @property
    def seconds(self) -> float:
        """Time of all steps together, each on its number of processes."""
        return sum(step.seconds for step in self.steps)

    @property
    def evaluations(self) -> int:
        """Occluded images evaluated in all steps."""
        return sum(evaluations_of(step) for step in self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the pixels of the figures, for JSON; "cost" alone depends on the clock."""
        return {
            "kind": _KIND,
            "version": _VERSION,
            "paper": self.paper,
            "title": self.title,
            "lead": self.lead,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "command": self.command,
            "settings": self.settings,
            "data": self.data,
            "notes": list(self.notes),
            "claims": [claim.as_dict() for claim in self.claims],
            "findings": [finding.as_dict() for finding in self.findings],
            "findings_note": self.findings_note,
            "tables": [table.as_dict() for table in self.tables],
            "pictures": [picture.as_dict() for picture in self.pictures],
            "differences": [list(pair) for pair in self.differences],
            "environment": self.environment,
            "cost": {
                "seconds": self.seconds,
                "cards": [list(pair) for pair in self.cards],
                "steps": [
                    {
                        "step": s.name,
                        "seconds": s.seconds,
                        "evaluations": evaluations_of(s),
                        "device": s.device,
                        "processes": s.processes,
                        "finished": s.finished,
                    }
                    for s in self.steps
                ],
            },
        }

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read ``report.json`` and the figures beside it; :meth:`write` then makes the page and Markdown again.

        Raises:
            DataError: if a file is missing or damaged.
        """
        folder = Path(folder)
        path = folder / "report.json"
        content = read_json(path)
        if content.get("kind") != _KIND or content.get("version") not in (1, _VERSION):
            raise DataError(f"{path}: expected a report of occfast reproduce, version 1 or {_VERSION}")
        try:
            # Version 1 did not describe its figures.
            pictures = content.get("pictures") or [
                {"name": f"Figure {k}", "caption": "", "alt": f"Figure {k}", "file": f"figure-{k}.png"}
                for k in range(1, 10)
                if (folder / f"figure-{k}.png").is_file()
            ]
            made = cls(
                paper=content["paper"],
                title=content.get("title") or f"{content['paper']}: the paper beside occfast ({content['scale']})",
                lead=content.get("lead", ""),
                scale=content["scale"],
                seeds=tuple(content["seeds"]),
                settings=content["settings"],
                data=content["data"],
                command=content["command"],
                claims=[Claim.from_dict(one) for one in content["claims"]],
                findings=[Finding.from_dict(one) for one in content.get("findings", ())],
                findings_note=content.get("findings_note", ""),
                cards=[(number, text) for number, text in content["cost"].get("cards", ())],
                tables=[Table.from_dict(one) for one in content["tables"]],
                pictures=[
                    Picture(
                        one["name"],
                        one["caption"],
                        one["alt"],
                        read_bytes(folder / Path(one["file"]).name),
                        one.get("command", ""),
                    )
                    for one in pictures
                ],
                differences=[(what, why) for what, why in content["differences"]],
                notes=content["notes"],
                steps=[
                    Done(
                        one["step"],
                        folder,
                        {"evaluations": one.get("evaluations", 0)},
                        float(one["seconds"]),
                        one["device"],
                        int(one["processes"]),
                        one["finished"],
                    )
                    for one in content["cost"]["steps"]
                ],
                environment=content["environment"],
            )
            made.to_markdown()  # fails where a value is of another kind
            return made
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{path}: incomplete report ({type(error).__name__}: {error})") from error

    # -- writing ---------------------------------------------------------------------------------------

    def write(self, folder: Path) -> Path:
        """Write ``report.html``, ``report.md`` with its figures, and ``report.json``; return the path of the page."""
        uris = {picture.name: picture.uri for picture in self.pictures}
        for picture in self.pictures:
            content = base64.b64decode(uris[picture.name].partition(",")[2])
            write_atomically(folder / picture.file, content)
        write_atomically(
            folder / "report.json", (json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n").encode()
        )
        write_atomically(folder / "report.md", self.to_markdown().encode())
        self.page = write_atomically(folder / "report.html", self.to_html(uris).encode())
        return self.page

    def to_html(self, uris: Mapping[str, str] | None = None) -> str:
        """Return the page, which contains its figures."""
        if uris is None:
            uris = {picture.name: picture.uri for picture in self.pictures}
        return pages.render(
            "occfast.reproduce",
            "report.html",
            title=self.title,
            footer=", ".join(f"{name} {value}" for name, value in self.environment.items()),
            filters={"duration": duration, "evaluations": evaluations_of},
            report=self,
            uris=uris,
            verdict=self.verdict(),
        )

    def verdict(self) -> str:
        """Return the first sentence of the page."""
        sentences = []
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) != 1 else ''}"
        if self.findings:
            count = f"{len(self.clear)} of {len(self.findings)}"
            sentences.append(f"{count} differences exceed the noise ({seeds}): their 95 % intervals exclude 0.")
        if self.judged:
            parts = []
            for further, whose in ((False, "that the paper's orderings consist of"), (True, "beyond its set-up")):
                words = [one.verdict for claim in self.judged if claim.beyond == further for one in claim.comparisons]
                if words:
                    counts = [f"{words.count(word)} {word}" for word in ("confirmed", "refuted", "not decided")]
                    parts.append(f"of {len(words)} comparisons {whose}: {', '.join(counts)}")
            text = "; ".join(parts)
            sentences.append(f"{text[0].upper()}{text[1:]} ({seeds}; 95 % intervals over seeds and images).")
        if open_claims := self.failing + self.holding:
            stated = [claim for claim in open_claims if not claim.beyond]
            beyond = [claim for claim in open_claims if claim.beyond]
            holding = sum(claim.holds for claim in stated)
            text = f"{holding} of the paper's {len(stated)} orderings hold in full at this scale ({seeds})"
            if holding == len(stated):
                text = f"All {len(stated)} orderings of the paper hold at this scale ({seeds})"
            if beyond:
                text += f"; {sum(claim.holds for claim in beyond)} of {len(beyond)} additional orderings hold"
            sentences.append(f"{text}.")
        return " ".join(sentences) or "No orderings were checked: they belong to tables that were not requested."

    def to_markdown(self) -> str:
        """Return the report as Markdown; figures are files beside it."""
        lines = [f"# {self.title}", "", self.lead, "", f"    {self.command}", ""]
        lines += [f"> {html.escape(note, quote=False)}\n" for note in self.notes]  # names of people, perhaps
        lines += ["## Results", "", self.verdict(), ""]
        lines += [f"- **clear**: {one.text}" for one in self.clear]
        lines += [f"- within noise: {one.text}" for one in self.unclear]
        if self.findings_note:
            lines += ["", self.findings_note]
        for claim in self.judged:
            lines.append(f"- **{claim.verdict}**: {claim.text}")
            lines += [f"  - {one.verdict}: {one.text}" for one in claim.comparisons]
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
            if notes := " ".join(filter(None, (table.note, "The paper's numbers are in brackets." if named else ""))):
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
        lines += [f"| total | {self.seconds:.1f} | |", "", "## Versions", ""]
        lines += [", ".join(f"{name} {value}" for name, value in self.environment.items())]
        return "\n".join(lines) + "\n"


def evaluations_of(step: Done) -> int:
    """Return the number of occluded images that a step evaluated; 0 for other steps."""
    return int(step.result.get("evaluations", 0))


def environment() -> dict[str, Any]:
    """Return the versions and the machine."""
    return {
        "occfast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor.model_name() or platform.processor(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def duration(seconds: float) -> str:
    """Return seconds as text in a fitting unit."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Return bytes as text in a fitting unit."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count:.0f} B"
