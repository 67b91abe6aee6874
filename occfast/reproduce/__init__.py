"""Reproduction of two papers: their experiments as graphs of resumable steps, and reports beside the papers' numbers.

:func:`run` runs an experiment and writes its report; :func:`prepare` only prepares it, for predictions.
:mod:`occfast.reproduce.demo` is the same for the demo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..progress import Report as Progress
from .experiment import Experiment, Request
from .report import Report

Paper = Literal["trigueros2018", "pdsn-landmarks", "together"]
PAPERS: tuple[Paper, ...] = get_args(Paper)


def prepare(
    paper: Paper,
    *,
    scale: str = "smoke",
    output: str | Path = "reproduction",
    seeds: Sequence[int] = (0,),
    tables: Iterable[int] | None = None,
    figures: Iterable[int] | None = None,
    data: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    exclude: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
) -> Experiment:
    """Prepare the reproduction of a paper without running anything.

    Args:
        paper: "trigueros2018" or "pdsn-landmarks"; or "together", for both on a deployed recognizer (scale "small").
        scale: "smoke" (ORL, minutes), "small" (hours on a processor), "paper" (the paper's own data); for
            trigueros2018 also "demo" (ORL, Table 1 alone) and "trunk" (Table 2 and Figure 4 on a pretrained trunk).
        output: folder of the finished steps and the reports.
        seeds: each seed is one complete run.
        tables: numbers of the paper's tables; None: all, unless ``figures`` are given.
        figures: numbers of the paper's figures; None: all, unless ``tables`` are given.
        data: data by role, as :func:`occfast.data.open_dataset` takes it: "train", "lfw" and "ar" of trigueros2018;
            "train", "others" and "lfw" of its scale "trunk", and "ar" besides of "together".
        root: folder of the data sets; None: $OCCFAST_DATA.
        exclude: CSV list of people to leave out of training (trigueros2018).
        settings: values that replace those of the scale: attributes of
            :class:`~occfast.reproduce.trigueros2018.settings.Settings`,
            :class:`~occfast.reproduce.trigueros2018.trunk.settings.TrunkSettings`,
            :class:`~occfast.reproduce.pdsn_landmarks.settings.PDSNSettings` or
            :class:`~occfast.reproduce.together.settings.TogetherSettings`.
        command: shown in the report; by default the call's equivalent on the command line.

    Raises:
        ValueError: if an argument is invalid.
        DataError: if data that is named explicitly can't be read.
    """
    if paper not in PAPERS:
        raise ValueError(f"paper: expected one of {', '.join(PAPERS)}, got {paper!r}")
    if tables is not None or figures is not None:
        tables, figures = tuple(tables or ()), tuple(figures or ())
    # A folder of its own for single tables and figures: they must not replace the whole report.
    parts = [scale, *(f"table-{k}" for k in tables or ()), *(f"figure-{k}" for k in figures or ())]
    folder = Path(output) / paper / "-".join(parts)
    if not command:
        command = f"occfast reproduce {paper} --scale {scale} --seeds {','.join(map(str, seeds))}"
    if paper == "pdsn-landmarks":
        from .pdsn_landmarks.experiment import prepare as prepare_paper
    elif paper == "together":
        from .together.experiment import prepare as prepare_paper
    elif scale == "trunk":
        from .trigueros2018.trunk.experiment import prepare as prepare_paper
    else:
        from .trigueros2018.experiment import prepare as prepare_paper
    return prepare_paper(
        Request(
            scale,
            folder,
            Path(output) / paper / "steps",
            seeds=tuple(seeds),
            tables=tables,
            figures=figures,
            data=dict(data or {}),
            root=None if root is None else Path(root),
            exclude=None if exclude is None else Path(exclude),
            settings=dict(settings or {}),
            command=command,
        )
    )


def run(
    paper: Paper,
    *,
    scale: str = "smoke",
    output: str | Path = "reproduction",
    seeds: Sequence[int] = (0,),
    tables: Iterable[int] | None = None,
    figures: Iterable[int] | None = None,
    data: Mapping[str, str] | None = None,
    root: str | Path | None = None,
    exclude: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    spread: bool = False,
    progress: bool | Progress = True,
    resume: bool = True,
) -> Report:
    """Reproduce a paper: run all steps that are not finished, then write the report.

    The report is ``output/paper/scale/report.html``, with ``report.md``, ``report.json`` and the figures beside it.
    With several processes (``torchrun``) every process calls this.

    Args:
        paper: as for :func:`prepare`, like the other arguments up to ``settings``.
        device: "auto", "cpu" or "cuda"; with several processes each takes the GPU of its own number.
        spread: with several processes, train each network in one process, several networks at once.
        progress: True shows progress on the standard error; a function is called with (finished steps, all steps)
            instead; False shows nothing.
        resume: True continues unfinished steps and keeps finished ones; False starts anew.

    Returns:
        The report; its ``page`` is the path of the page.

    Raises:
        ValueError: if an argument is invalid, or another run uses ``output``.
        DataError: if data or a file in ``output`` can't be read.
        ProcessLost: if another process of the run failed or died.

    Example:
        >>> import occfast
        >>> report = occfast.reproduce.run("trigueros2018", scale="smoke", output="reproduction")
        >>> print(report.verdict(), report.page)
    """
    experiment = prepare(
        paper,
        scale=scale,
        output=output,
        seeds=seeds,
        tables=tables,
        figures=figures,
        data=data,
        root=root,
        exclude=exclude,
        settings=settings,
    )
    return experiment.run(device=device, spread=spread, progress=progress, resume=resume)


__all__ = ["PAPERS", "Experiment", "Report", "prepare", "run"]
