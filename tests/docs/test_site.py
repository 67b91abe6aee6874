"""The pages: links lead somewhere, nothing public is left out, the site builds without a warning."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import occfast
from occfast import errors

from .pages import ROOT, outside, pages

DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", [*pages(), DOCS / "migration.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside(page.read_text())):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_api_names_everything_public() -> None:
    index = (DOCS / "api" / "index.md").read_text()
    missing = [name for name in occfast.__all__ if f"`{name}`" not in index and f"occfast.{name}`" not in index]
    assert missing == []


def test_every_error_has_its_advice() -> None:
    text = (DOCS / "errors.md").read_text()
    names = [name for name, value in vars(errors).items() if isinstance(value, type)]
    assert len(names) >= 4
    assert [name for name in names if f"`{name}`" not in text] == []


def test_lines_are_not_longer_than_codes() -> None:
    ours = [
        "index",
        "start",
        "errors",
        "reliability",
        "migration",
        "changes",
        "releasing",
        "api/index",
        "guides/notebooks",
    ]
    for name in ours:
        for line in (DOCS / f"{name}.md").read_text().split("\n"):
            assert len(re.sub(r"<!--.*?-->", "", line)) <= 120 or line.startswith("|"), f"{name}: {line}"


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs pip install 'occfast[docs]'")
def test_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "occlusion_map" in (tmp_path / "api" / "sweep.html").read_text()
    fetched = [
        p.name
        for p in tmp_path.rglob("*.html")
        if re.search(r'(src|href)="https?://[^"]*\.(js|css|woff2?)"', p.read_text())
    ]
    assert fetched == []  # it reads offline too


def test_messages_are_those_of_the_code() -> None:
    """Every message in the first column of errors.md is raised somewhere; … stands for what changes."""
    said = {
        node.value
        for path in (ROOT / "occfast").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    tables = (DOCS / "errors.md").read_text().split("## Occlusion maps")[1]
    messages = re.findall(r"^\| `([^`]+)` \|", tables, re.MULTILINE)
    assert len(messages) > 20
    unknown = [
        part
        for message in messages
        for part in map(str.strip, message.split("…"))
        if len(part) > 3 and not any(part in text for text in said)
    ]
    assert unknown == []


def test_new_names_of_the_migration_exist() -> None:
    rows = re.findall(r"^\| .* \| (.*) \|$", (DOCS / "migration.md").read_text(), re.MULTILINE)
    names = re.findall(r"`(occfast(?:\.\w+)+)`", "\n".join(rows))
    assert len(names) > 15
    for name in names:
        parts = name.split(".")
        owner = occfast
        for k, part in enumerate(parts[1:], 2):
            if not hasattr(owner, part):
                importlib.import_module(".".join(parts[:k]))
            owner = getattr(owner, part)
