"""Command line: ``occfast`` or ``python -m occfast``.

A user's mistake gives one line on the standard error and exit status 2, never a traceback. Status 0 means success,
1 that ``occfast gate`` found a recognizer worse.
Each command or family of commands has a module, which imports what it needs when it runs, so that ``occfast --help`` is
quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .._version import __version__
from ..allocator import keep_freed_memory
from ..errors import DataError, MissingPackage, NativeUnavailable, ProcessLost
from ..progress import printable
from . import (
    audit,
    compare,
    covered,
    data,
    demo,
    environment,
    evaluate,
    gate,
    map,
    overlap,
    pair,
    pdsn,
    reproduce,
    train,
)

app = typer.Typer(
    help="Occlusion maps, noisy occluders and losses for face recognizers that keep working when part of the face "
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# The order is that of ``occfast --help``.
app.command()(demo.demo)
app.command("map")(map.map_)
app.command()(pair.pair)
app.command()(train.train)
app.command()(train.export)
app.command()(evaluate.evaluate)
app.command()(audit.audit)
app.command()(compare.compare)
app.command()(gate.gate)
app.command()(covered.covered)
data.app.command()(overlap.overlap)
app.add_typer(data.app, name="data")
app.add_typer(pdsn.app, name="pdsn")
app.command()(reproduce.reproduce)
app.command()(environment.build)
app.command()(environment.doctor)


def main() -> None:
    """Run the command line. Expected errors become one line."""
    keep_freed_memory()
    try:
        app()
    except (ValueError, TypeError, DataError, MissingPackage, NativeUnavailable, OSError) as error:
        print(f"occfast: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except ProcessLost as error:
        print(f"occfast: {printable(str(error))}", file=sys.stderr, flush=True)
        os._exit(1)  # the others' connections may never answer again
    except KeyboardInterrupt:
        print("occfast: interrupted", file=sys.stderr)
        sys.exit(130)
