"""Prepares the networks on a pretrained trunk."""

from __future__ import annotations

from pathlib import Path

from ....models import MobileFaceNet
from ...experiment import Experiment, Request
from .report import report
from .settings import TrunkSettings
from .sources import TrunkSources
from .steps import Plan

TABLES, FIGURES = (2,), (4,)


def prepare(request: Request) -> Experiment:
    """Prepare the experiment that is asked for."""
    chosen = TrunkSettings.of(request.seeds, **request.settings)
    wanted = request.wanted(TABLES, FIGURES)
    for name, given, known in (("table", wanted[0], TABLES), ("figure", wanted[1], FIGURES)):
        if unknown := set(given) - set(known):
            raise ValueError(f"{name}: expected {known[0]} at scale trunk, got {min(unknown)}")
    sources = TrunkSources(
        given=request.data,
        root=request.root,
        exclude=request.exclude,
        weights=None if chosen.trunk is None else Path(chosen.trunk),
    )
    return Experiment(
        Plan(chosen, sources).graph(request.steps),
        request.folder,
        sources.here,
        lambda done: report(chosen, sources, done, request.command, *wanted),
        lambda: (MobileFaceNet(), (3, 112, 96)),
    )
