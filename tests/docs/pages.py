"""README and docs as the tests read them: pages, blocks of code, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the pages that users read, but for those that tell of the past."""
    past = {ROOT / "docs" / "migration.md"}
    return [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in past)]


def blocks(*languages: str) -> Iterator[Block]:
    """Yield the blocks in one of these languages ("": none is named)."""
    for page in pages():
        text = page.read_text()
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                yield Block(page.relative_to(ROOT).as_posix(), line, match[1], match[2])


def commands() -> Iterator[Block]:
    """Yield each line that calls ``occfast``, in a fenced or an indented block."""
    for page in pages():
        lines = page.read_text().split("\n")
        for number, line in enumerate(lines, 1):
            found = re.match(r"(?: {4})?((?:torchrun .*?-m )?occfast [a-z].*)", line)
            if found and (line.startswith("    ") or _fenced(lines, number)):
                yield Block(page.relative_to(ROOT).as_posix(), number, "", found[1])


def _fenced(lines: list[str], number: int) -> bool:
    return sum(line.startswith("```") for line in lines[:number]) % 2 == 1


def outside(text: str) -> str:
    """Return a page's text without its blocks of code and code spans."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
