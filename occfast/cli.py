"""The command line: ``occfast`` or ``python -m occfast``.

A user's mistake is one line on the standard error and exit status 2, never a traceback; the status
is 0 only when what was asked was done.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import DataError, NativeUnavailable

app = typer.Typer(
    help="Occlusion maps, noisy occluders and losses for face recognisers that keep working when part of the face "
    "is covered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def build(
    cuda: Annotated[bool, typer.Option("--cuda", help="Build the CUDA kernels too.")] = False,
) -> None:
    """Compile the kernels now rather than at first use."""
    from .native import loader
    from .native.build import Backend

    wanted: list[Backend] = ["cpu", "cuda"] if cuda else ["cpu"]
    for backend in wanted:
        started = time.perf_counter()
        ready = loader.is_ready(backend)
        loader.module(backend)
        where = loader.prebuilt_path(backend) or loader.cached_path(backend)
        how = "was ready" if ready else f"built in {time.perf_counter() - started:.1f} s"
        typer.echo(f"{backend}: {how}: {where}")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Tell what was found (compiler, ninja, PyTorch, CUDA, nvcc, cache) and what to do about what is missing.

    Exit status 1 if something that the CPU kernels need is missing.
    """
    from .native import doctor as examination

    findings = examination.examine()
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=1))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            cure = f"  ->  {finding.cure}" if finding.cure else ""
            typer.echo(f"{finding.status:8} {finding.name:{width}}  {finding.found}{cure}")
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report and of finished steps.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Of the split, weights, batches and occluders.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="All seven networks of the paper's Table 1, a centre on every pixel: hours.")
    ] = False,
    stride: Annotated[int | None, typer.Option("--stride", help="Pixels between positions.", min=1)] = None,
    width: Annotated[float | None, typer.Option("--width", help="Channels of the network, 1.0 is the paper's.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget finished steps of these settings.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write report.json to the standard output too.")] = False,
) -> None:
    """Train on 400 real faces, map what covering does, train with placed occluders, map again; write a report.

    Finished steps are kept: the same command goes on where it was stopped.
    """
    from .reproduce.demo import DemoSettings, run

    given: dict[str, Any] = {"seed": seed, "stride": stride, "width": width}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = DemoSettings.full(**changes) if full else DemoSettings(**changes)
    report = run(settings, output, fresh=fresh)
    typer.echo(report.with_suffix(".json").read_text() if as_json else report)


def main() -> None:
    """Run the command line; every expected error becomes one line."""
    try:
        app()
    except (ValueError, TypeError, DataError, NativeUnavailable, OSError) as error:
        print(f"occfast: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("occfast: interrupted", file=sys.stderr)
        sys.exit(130)
