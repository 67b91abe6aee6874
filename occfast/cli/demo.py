"""``occfast demo``: the whole road on the faces that install with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report and of finished steps.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Of the split, weights, batches and occluders.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="All seven networks of the paper's Table 1, a center on every pixel: hours.")
    ] = False,
    stride: Annotated[int | None, typer.Option("--stride", help="Pixels between positions.", min=1)] = None,
    width: Annotated[float | None, typer.Option("--width", help="Channels of the network, 1.0 is the paper's.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget finished steps of these settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write report.json to the standard output too.")] = False,
) -> None:
    """Train on 400 real faces, map what covering does, train with placed occluders, map again; write a report.

    Finished steps are kept: the same command goes on where it was stopped.
    """
    from ..reproduce.demo import DemoSettings, run

    given: dict[str, Any] = {"seed": seed, "stride": stride, "width": width}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = DemoSettings.full(**changes) if full else DemoSettings(**changes)
    report = run(settings, output, fresh=fresh)
    typer.echo(report.with_suffix(".json").read_text() if as_json else report)
