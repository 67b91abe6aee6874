"""Prepares the pdsn-landmarks reproduction at a scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...models import build
from ..experiment import Experiment
from .report import report
from .settings import FIGURES, TABLES, PDSNSettings
from .steps import Faces, plan, targets


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
    if data or exclude is not None:
        raise ValueError("data: pdsn-landmarks has one data set, LFW (ORL for smoke); give its folder alone")
    chosen = PDSNSettings.of(scale, seeds=tuple(seeds), **settings)
    if root is not None:
        root = None if chosen.data == "orl" else root / "lfw" if (root / "lfw").is_dir() else root
    faces = Faces(chosen, root)
    graph = plan(chosen, faces, steps)
    wanted = TABLES if tables is None else tuple(tables), FIGURES if figures is None else tuple(figures)
    graph = graph.only(targets(graph, *wanted))
    shape = (1 if chosen.data == "orl" else 3, *chosen.size)

    def probe() -> tuple[nn.Module, tuple[int, int, int]]:
        arguments = {"width": chosen.width, "stem_pool": chosen.stem_pool}
        return build(chosen.network, None, channels=shape[0], size=chosen.size, **arguments), shape

    return Experiment(
        graph, folder, faces.here, lambda done: report(chosen, faces, scale, done, command, *wanted), probe
    )
