"""Sphinx configuration: `make docs` builds the site offline; a warning is an error."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the API pages describe this checkout

import occfast

project = "occfast"
author = "The occfast authors"
release = version = occfast.__version__
REPOSITORY = "https://github.com/occfast/occfast"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["notebooks"]
language = "en"

html_theme = "furo"
html_title = f"occfast {release}"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_repository": f"{REPOSITORY}/", "source_branch": "main", "source_directory": "docs/"}

myst_heading_anchors = 3

autodoc_default_options = {"members": True, "imported-members": True, "undoc-members": True}
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

_LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)\s#]+)")


def _link_to_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Point links that leave docs/ into the repository, so that a page reads the same on GitHub and here."""

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(name), match[1]))
        if path.startswith("docs/"):
            return match[1]
        return f"{REPOSITORY}/{'blob' if posixpath.splitext(path)[1] else 'tree'}/main/{path}"

    source[0] = _LINK.sub(target, source[0])


def setup(app: Sphinx) -> None:
    """Register the rewriting of links with Sphinx."""
    app.connect("source-read", _link_to_repository)
