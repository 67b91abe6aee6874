"""``occfast gate``: whether a recognizer got worse than a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options


def gate(
    audit: Annotated[
        Path, typer.Argument(help="audit.json of the recognizer, as occfast audit writes it.", show_default=False)
    ],
    baseline: Annotated[
        Path, typer.Option(help="audit.json of the recognizer that it must not be worse than.", show_default=False)
    ],
    level: Annotated[float, typer.Option(help="Chance of failing a recognizer that is not worse.")] = 0.05,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.", show_default=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown to this file.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """Fail if a recognizer got worse than a baseline on covered or uncovered faces.

    Both audits are of the same faces with the same options. The exit status is 1 if any figure of the audit is
    significantly worse, 0 if none is, 2 if the files can't be compared.
    """
    from ..audit import gate as run
    from ..files import write_atomically
    from ..progress import printable

    taken = {audit.resolve(): "the audit", baseline.resolve(): "the baseline"}
    for name, path in (("--junit", junit), ("--markdown", markdown)):
        if path is not None and (other := taken.setdefault(path.resolve(), name)) != name:
            raise ValueError(f"{name}: expected a file of its own, got {path}, which is {other}")
    result = run(audit, baseline, level=level)
    if junit is not None:
        write_atomically(junit, result.to_junit().encode())
    if markdown is not None:
        write_atomically(markdown, result.to_markdown().encode())
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
    else:
        for sentence in result.sentences:
            typer.echo(printable(sentence))
    raise typer.Exit(0 if result.passed else 1)
