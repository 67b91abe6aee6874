"""``occfast build`` and ``occfast doctor``: the native kernels and their requirements."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer


def build(cuda: Annotated[bool, typer.Option("--cuda", help="Also build the CUDA kernels.")] = False) -> None:
    """Compile the native kernels now instead of at first use, unless a prebuilt module fits."""
    from ..native import loader, prebuilt
    from ..native.build import Backend

    wanted: list[Backend] = ["cpu", "cuda"] if cuda else ["cpu"]
    for backend in wanted:
        started = time.perf_counter()
        ready = loader.is_ready(backend)
        loader.module(backend)
        where = prebuilt.find(backend) or loader.cached_path(backend)
        how = "was ready" if ready else f"built in {time.perf_counter() - started:.1f} s"
        typer.echo(f"{backend}: {how}: {where}")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False) -> None:
    """Check the installation and suggest fixes: prebuilt kernels, compiler, PyTorch, CUDA, nvcc and cache.

    Exits with status 1 if something that the CPU kernels need is missing.
    """
    from ..native import doctor as examination

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
