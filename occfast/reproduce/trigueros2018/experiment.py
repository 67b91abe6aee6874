"""Prepares the trigueros2018 reproduction at a scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...models import build
from ..experiment import Experiment
from .report import report
from .settings import Settings
from .sources import Sources
from .steps import plan, targets


def prepare(
    scale: str,
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
    """Prepare an experiment; the arguments are those of :func:`occfast.reproduce.prepare`."""
    if scale == "trunk":
        from .trunk.experiment import prepare as prepare_trunk

        return prepare_trunk(
            folder,
            steps,
            seeds=seeds,
            tables=tables,
            figures=figures,
            data=data,
            root=root,
            exclude=exclude,
            settings=settings,
            command=command,
        )
    chosen = Settings.of(scale, seeds=tuple(seeds), **settings)
    sources = Sources(scale, data, root, exclude)
    graph = plan(chosen, sources, steps)
    wanted = chosen.tables if tables is None else tuple(tables), chosen.figures if figures is None else tuple(figures)
    graph = graph.only(targets(graph, chosen, *wanted))
    return Experiment(
        graph, folder, sources.here, lambda done: report(chosen, sources, done, command, *wanted), probe(chosen)
    )


def probe(settings: Settings) -> Callable[[], tuple[nn.Module, tuple[int, int, int]]]:
    """Return a function that makes a network as wide as that of the settings, and the shape of its images."""
    arguments = {**dict(settings.network), "batch_norm": True}
    return lambda: (build("paper", None, channels=1, size=(100, 100), **arguments), (1, 100, 100))
