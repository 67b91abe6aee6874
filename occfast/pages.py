"""Self-contained HTML pages in one frame, ``frame.html``."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

from ._version import __version__
from .packages import require


def render(
    package: str,
    name: str,
    *,
    title: str,
    footer: str = "",
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Return a page.

    Args:
        package: Package that holds the template and those that it includes, such as "occfast.sweep".
        name: File of the template, which extends ``frame.html``.
        title: Title of the page.
        footer: Last line; "": the versions that made the page.
        filters: Filters of the template.
        values: Values of the template; one that lacks is an error. Text is escaped.

    Raises:
        MissingPackage: If Jinja is not installed.
    """
    require("a page", "jinja2")
    from importlib.resources import files

    import jinja2

    def read(part: str) -> str:
        return files("occfast" if part == "frame.html" else package).joinpath(part).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(read),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name).render(title=title, footer=footer or versions(), **values)


def versions() -> str:
    """Return the versions of occfast, PyTorch and Python."""
    import torch

    return f"occfast {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
