"""Command line: ``occfast`` or ``python -m occfast``.

A user's mistake gives one line on the standard error and exit status 2, never a traceback. Status 0 means success,
1 that ``occfast gate`` found a recognizer worse.
Each command or family of commands has a module, which imports what it needs when it runs, so that ``occfast --help`` is
quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
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

_INTERRUPTED = 130  # exit status
_plain_warning = warnings.formatwarning

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
    warnings.formatwarning = _warning
    try:
        app()
    except SystemExit as error:
        if error.code == _INTERRUPTED:  # Typer says nothing
            print("occfast: interrupted", file=sys.stderr)
        raise
    except (ValueError, TypeError, DataError, MissingPackage, NativeUnavailable, OSError) as error:
        print(f"occfast: {printable(_reason(error))}", file=sys.stderr)
        sys.exit(2)
    except ProcessLost as error:
        print(f"occfast: {printable(str(error))}", file=sys.stderr, flush=True)
        os._exit(1)  # the others' connections may never answer again
    except KeyboardInterrupt:
        print("occfast: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    finally:
        warnings.formatwarning = _plain_warning


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as a line for users; those of other packages keep the place that they are about."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"occfast: warning: {printable(str(message))}\n"
    return _plain_warning(message, category, filename, lineno, line)


def _reason(error: Exception) -> str:
    """Return an error's text; that of the system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)
