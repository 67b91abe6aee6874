"""Prepares the networks on a pretrained trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....models import MobileFaceNet
from ...experiment import Experiment
from .report import report
from .settings import TrunkSettings
from .sources import TrunkSources
from .steps import Plan

TABLES, FIGURES = (2,), (4,)


def prepare(
    folder: Path,
    steps: Path,
    *,
    seeds: Sequence[int],
    tables: Iterable[int] | None,
    figures: Iterable[int] | None,
    data: Mapping[str, str],
    root: Path | None,
    exclude: Path | None,
    settings: Mapping[str, Any],
    command: str,
) -> Experiment:
    """Prepare the experiment; the arguments are those of :func:`occfast.reproduce.prepare`."""
    chosen = TrunkSettings.of(seeds, **settings)
    wanted = TABLES if tables is None else tuple(tables), FIGURES if figures is None else tuple(figures)
    for name, given, known in (("table", wanted[0], TABLES), ("figure", wanted[1], FIGURES)):
        if unknown := set(given) - set(known):
            raise ValueError(f"{name}: expected {known[0]} at scale trunk, got {min(unknown)}")
    sources = TrunkSources(
        given=data, root=root, exclude=exclude, weights=None if chosen.trunk is None else Path(chosen.trunk)
    )
    graph = Plan(chosen, sources).graph(steps)
    return Experiment(
        graph,
        folder,
        sources.here,
        lambda done: report(chosen, sources, done, command, *wanted),
        lambda: (MobileFaceNet(), (3, 112, 96)),
    )
