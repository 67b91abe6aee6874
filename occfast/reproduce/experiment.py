"""An experiment that is ready to run: its graph of steps and how its results become a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..progress import Report as Progress
from .cost import Rates, forward_flops
from .graph import Done, Graph
from .processes import ProcessGroup
from .report import Report


@dataclass(frozen=True)
class Request:
    """What is asked for; see :func:`occfast.reproduce.prepare`.

    Attributes:
        scale: the scale.
        folder: folder of the report.
        steps: folder of the finished steps.
        seeds: each seed is one complete run.
        tables, figures: numbers of those to make; None: all.
        data: data by role.
        root: folder of the data sets; None: $OCCFAST_DATA.
        exclude: CSV list of people to leave out of training.
        settings: values that replace those of the scale.
        command: shown in the report.
    """

    scale: str
    folder: Path
    steps: Path
    seeds: tuple[int, ...]
    tables: Iterable[int] | None
    figures: Iterable[int] | None
    data: Mapping[str, str]
    root: Path | None
    exclude: Path | None
    settings: Mapping[str, Any]
    command: str

    def wanted(self, tables: Sequence[int], figures: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tables and figures to make, of which these are all."""
        return (
            tuple(tables if self.tables is None else self.tables),
            tuple(figures if self.figures is None else self.figures),
        )


@dataclass(frozen=True)
class Experiment:
    """An experiment with its data, settings, tables and figures chosen.

    Attributes:
        graph: the steps that the tables and figures need.
        folder: folder of the report.
        data_available: whether the data can be read; predictions do without.
        make_report: makes the report of the finished steps.
        make_probe: makes a network whose speed stands for that of the experiment, and the [C, H, W] of its images.
    """

    graph: Graph
    folder: Path
    data_available: bool
    make_report: Callable[[Sequence[Done]], Report]
    make_probe: Callable[[], tuple[nn.Module, tuple[int, int, int]]]

    def run(
        self,
        *,
        device: str = "auto",
        spread: bool = False,
        progress: bool | Progress = True,
        resume: bool | None = True,
    ) -> Report:
        """Run the steps that are not finished and write the report.

        Args:
            device: "auto", "cpu" or "cuda"; with several processes each takes the GPU of its own number.
            spread: with several processes, train each network in one process, several networks at once.
            progress: True shows progress on the standard error; a function is called with (finished steps, all
                steps) instead; False shows nothing.
            resume: True continues unfinished steps and keeps finished ones; False starts anew; None keeps finished
                steps and raises ValueError if there are unfinished ones.

        Returns:
            The report; its ``page`` is the path of the page. With several processes the first one writes it.
        """
        graph = self.graph.spread() if spread else self.graph
        report = self.make_report(graph.run(device, progress=progress, resume=resume))
        if int(os.environ.get("RANK", "0")) == 0:
            report.write(self.folder)
        return report

    def measure(self, device: str = "auto") -> Rates:
        """Measure the rates that predictions need, for a second or two."""
        network, shape = self.make_probe()
        return Rates.measured(network, (20, *shape), forward_flops(network, shape), ProcessGroup().device(device))
