"""Prepares the pdsn-landmarks reproduction at a scale."""

from __future__ import annotations

from torch import nn

from ...models import build
from ..experiment import Experiment, Request
from .report import report
from .settings import FIGURES, TABLES, PDSNSettings
from .steps import Faces, plan, targets


def prepare(request: Request) -> Experiment:
    """Prepare the experiment that is asked for."""
    if request.data or request.exclude is not None:
        raise ValueError("data: pdsn-landmarks has one data set, LFW (ORL for smoke); give its folder alone")
    chosen = PDSNSettings.of(request.scale, seeds=request.seeds, **request.settings)
    root = request.root
    if root is not None:
        root = None if chosen.data == "orl" else root / "lfw" if (root / "lfw").is_dir() else root
    faces = Faces(chosen, root)
    graph = plan(chosen, faces, request.steps)
    wanted = request.wanted(TABLES, FIGURES)
    shape = (1 if chosen.data == "orl" else 3, *chosen.size)

    def probe() -> tuple[nn.Module, tuple[int, int, int]]:
        arguments = {"width": chosen.width, "stem_pool": chosen.stem_pool}
        return build(chosen.network, None, channels=shape[0], size=chosen.size, **arguments), shape

    return Experiment(
        graph.only(targets(graph, *wanted)),
        request.folder,
        faces.here,
        lambda done: report(chosen, faces, request.scale, done, request.command, *wanted),
        probe,
    )
