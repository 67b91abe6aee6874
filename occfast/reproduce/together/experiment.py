"""Prepares the experiment on both papers together."""

from __future__ import annotations

from pathlib import Path

from ...models import MobileFaceNet
from ..experiment import Experiment, Request
from .report import report
from .settings import TogetherSettings
from .sources import TogetherSources
from .steps import Plan

TABLES = (1, 2)


def prepare(request: Request) -> Experiment:
    """Prepare the experiment that is asked for."""
    if request.scale != "small":
        raise ValueError(f"scale: expected small for both papers together, got {request.scale!r}")
    chosen = TogetherSettings.of(request.seeds, **request.settings)
    tables, figures = request.wanted(TABLES, ())
    for name, given, known in (("table", tables, TABLES), ("figure", figures, ())):
        if unknown := set(given) - set(known):
            raise ValueError(f"{name}: expected {' or '.join(map(str, known)) or 'none'}, got {min(unknown)}")
    sources = TogetherSources(
        given=request.data,
        root=request.root,
        exclude=request.exclude,
        weights=None if chosen.trunk is None else Path(chosen.trunk),
    )
    graph = Plan(chosen, sources).graph(request.steps)
    if 2 not in tables:
        graph = graph.only(name for name in graph.steps if "masks" not in name)
    if 1 not in tables:
        graph = graph.only(name for name in graph.steps if "masks" in name)
    return Experiment(
        graph,
        request.folder,
        sources.here,
        lambda done: report(chosen, sources, done, request.command, tables),
        lambda: (MobileFaceNet(), (3, 112, 96)),
    )
