"""Prepares the trigueros2018 reproduction at a scale."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...models import build
from ..experiment import Experiment, Request
from .report import report
from .settings import Settings
from .sources import Sources
from .steps import plan, targets


def prepare(request: Request) -> Experiment:
    """Prepare the experiment that is asked for."""
    chosen = Settings.of(request.scale, seeds=request.seeds, **request.settings)
    sources = Sources(request.scale, request.data, request.root, request.exclude)
    graph = plan(chosen, sources, request.steps)
    wanted = request.wanted(chosen.tables, chosen.figures)
    return Experiment(
        graph.only(targets(graph, chosen, *wanted)),
        request.folder,
        sources.here,
        lambda done: report(chosen, sources, done, request.command, *wanted),
        probe(chosen),
    )


def probe(settings: Settings) -> Callable[[], tuple[nn.Module, tuple[int, int, int]]]:
    """Return a function that makes a network as wide as that of the settings, and the shape of its images."""
    arguments = {**dict(settings.network), "batch_norm": True}
    return lambda: (build("paper", None, channels=1, size=(100, 100), **arguments), (1, 100, 100))
