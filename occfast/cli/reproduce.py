"""``occfast reproduce``: a paper's tables and figures, beside the paper's own."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..reproduce.cost import Rates
    from ..reproduce.graph import Graph

PAPERS = ("trigueros2018", "pdsn-landmarks")


def reproduce(
    paper: Annotated[str, typer.Argument(help=f"{' or '.join(PAPERS)}.", show_default=False)],
    table: Annotated[
        list[int] | None, typer.Option(help="Only this table; may be repeated.", show_default=False)
    ] = None,
    figure: Annotated[
        list[int] | None, typer.Option(help="Only this figure; may be repeated.", show_default=False)
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: ORL, minutes; small: CelebA subset, LFW, ten people of AR, hours; paper: its own data."
        ),
    ] = "smoke",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A folder that holds the data sets (else $OCCFAST_DATA), or ROLE=WHERE with role train, lfw or ar "
            "and WHERE as in occfast data show (folder, .rec, …), with @TEMPLATE for faces that are aligned already, "
            "e.g. train=faces.rec@arcface-112. May be repeated.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="CSV list of people to leave out of training (occfast data overlap).")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One whole run each, e.g. 0,1,2.")] = "0",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A value over the scale's settings, e.g. stride=2; may be repeated.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of finished steps and reports.")] = Path(
        "reproduction"
    ),
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep finished steps, or do them again.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the steps with predicted time and disk.")
    ] = False,
    rate: Annotated[
        str | None,
        typer.Option(
            help="For --dry-run: TRAIN,FORWARD operations a second to predict with, e.g. 2e14,3e14, instead of "
            "measuring.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="For --dry-run: how many share the work.", min=1)] = 1,
    spread: Annotated[
        bool,
        typer.Option("--spread", help="Under torchrun: a network a process, several at once, not each on all of them."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write report.json (or the prediction) to the standard output.")
    ] = False,
) -> None:
    """Do a paper again: a graph of steps, each kept when finished; then a report beside the paper's own figures.

    A run that was stopped or killed goes on with the same command; on several processes:
    torchrun --nproc-per-node 8 -m occfast reproduce …
    """
    if paper not in PAPERS:
        raise ValueError(f"paper: expected one of {', '.join(PAPERS)}, got {paper!r}")
    if rate is not None and not dry_run:
        raise ValueError("--rate: goes with --dry-run")
    if device.partition(":")[0] not in ("auto", "cpu", "cuda") or ":" in device:
        raise ValueError(f"--device: expected auto, cpu or cuda, got {device!r}; choose a GPU by CUDA_VISIBLE_DEVICES")
    chosen = _seeds(seeds)
    root, given = _data(data or [])
    command = _command()
    steps = output / paper / "steps"
    asked_tables, asked_figures = (None, None) if not table and not figure else (table or [], figure or [])

    if paper == "trigueros2018":
        from ..reproduce.trigueros2018 import report as trigueros2018_report
        from ..reproduce.trigueros2018 import steps as of
        from ..reproduce.trigueros2018.sources import Sources

        changes = _changes(setting or [], of.Settings)
        settings = of.Settings.of(scale, seeds=chosen, **changes)
        sources = Sources(scale, given, root, exclude)
        graph = of.plan(settings, sources, steps)
        tables = of.TABLES if asked_tables is None else tuple(asked_tables)
        figures = of.FIGURES if asked_figures is None else tuple(asked_figures)
        graph = graph.only(of.targets(graph, tables, figures))
        here = sources.here

        def write(found: list[Any]) -> Any:
            return trigueros2018_report.report(settings, sources, found, command, tables, figures)

    else:
        from ..reproduce.pdsn_landmarks import report as pdsn_landmarks
        from ..reproduce.pdsn_landmarks.settings import PDSNSettings

        if given or exclude is not None:
            raise ValueError("--data: pdsn-landmarks has one data set, LFW (ORL for smoke); name its folder alone")
        changes = _changes(setting or [], PDSNSettings)
        options = pdsn_landmarks.settings_of(scale, seeds=chosen, **changes)
        lfw = None if root is None or options.data == "orl" else root / "lfw" if (root / "lfw").is_dir() else root
        faces = pdsn_landmarks.Faces(options, lfw)
        graph = pdsn_landmarks.plan(options, faces, steps)
        tables = pdsn_landmarks.TABLES if asked_tables is None else tuple(asked_tables)
        figures = pdsn_landmarks.FIGURES if asked_figures is None else tuple(asked_figures)
        graph = graph.only(pdsn_landmarks.targets(graph, tables, figures))
        here = faces.here

        def write(found: list[Any]) -> Any:
            return pdsn_landmarks.report(options, faces, scale, found, command, tables, figures)

    if spread:
        graph = graph.spread()
    if dry_run:
        _show(graph, _rates(paper, scale, rate, device, graph), processes, here, as_json)
        return
    if not resume:
        _forget(graph)
    found = graph.run(
        device, show=not quiet, say=None if quiet else lambda text: print(text, file=sys.stderr, flush=True)
    )
    if int(os.environ.get("RANK", "0")) != 0:
        return
    # Of one table or figure a folder of its own, so that it does not take the place of the whole report.
    part = "-".join([scale, *(f"table-{k}" for k in asked_tables or []), *(f"figure-{k}" for k in asked_figures or [])])
    report = write(found)
    page = report.write(output / paper / part)
    typer.echo(page.with_suffix(".json").read_text() if as_json else f"{report.verdict()}\n{page}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--seeds: expected whole numbers as in 0,1,2, got {text!r}") from error


def _data(given: list[str]) -> tuple[Path | None, dict[str, str]]:
    root: Path | None = None
    roles: dict[str, str] = {}
    for entry in given:
        role, equals, where = entry.partition("=")
        if equals and "/" not in role:
            roles[role] = where
        elif root is not None:
            raise ValueError(f"--data: expected one folder, got {root} and {entry}")
        else:
            root = Path(entry)
            if not root.is_dir():
                raise ValueError(f"--data: expected a folder or ROLE=WHERE, got {entry!r}")
    return root, roles


def _changes(given: list[str], settings: type) -> dict[str, Any]:
    """``name=value`` with values as YAML has them; several overrides of a recipe are a list."""
    from dataclasses import fields

    from ..packages import require

    require("an override", "omegaconf", extra="train")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {f.name for f in fields(settings)} - {"scale", "seeds", "data"}
    out: dict[str, Any] = {}
    for entry in given:
        name, equals, text = entry.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set: expected NAME=VALUE with a name among {', '.join(sorted(known))}, got {entry!r}")
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
        except (OmegaConfBaseException, ValueError) as error:
            raise ValueError(f"--set: {name}: not a YAML value: {text!r}") from error
        out[name] = (
            tuple(value.items()) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        )
    return out


def _command() -> str:
    """What the user typed, for the report, less what doesn't change its figures."""
    arguments: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument in ("--output", "-o"):
            next(given, None)
        elif argument not in ("--json", "--quiet", "-q", "--fresh", "--resume", "--spread"):
            arguments.append(argument)
    return shlex.join(["occfast", *(a for a in arguments if not a.startswith("--output="))])


def _forget(graph: Graph) -> None:
    import shutil

    for name in graph.steps:
        shutil.rmtree(graph.folder(name), ignore_errors=True)


def _rates(paper: str, scale: str, given: str | None, device: str, graph: Graph) -> Rates:
    from ..models import build
    from ..reproduce.cost import Rates, forward_flops
    from ..reproduce.graph import ProcessGroup

    if given is not None:
        try:
            train, forward = (float(part) for part in given.split(","))
        except ValueError as error:
            raise ValueError(f"--rate: expected TRAIN,FORWARD as in 2e14,3e14, got {given!r}") from error
        if min(train, forward) <= 0:
            raise ValueError(f"--rate: expected positive rates, got {given!r}")
        return Rates(train, forward, "given")
    if paper == "trigueros2018":
        width = {"smoke": 0.25, "small": 0.5, "paper": 1.0}[scale]
        network, shape = build("paper", None, channels=1, size=(100, 100), width=width, batch_norm=True), (1, 100, 100)
    else:
        narrow = scale == "smoke"
        size = (96, 72) if narrow else (128, 96)
        shape = (1 if narrow else 3, *size)
        network = build(
            "resnet18" if narrow else "resnet34",
            None,
            channels=shape[0],
            size=size,
            width=64 if scale == "paper" else 16,
            stem_pool=False,
        )
    flops = forward_flops(network, shape)
    return Rates.measured(network, (20, *shape), flops, ProcessGroup().device(device))


def _show(graph: Graph, rates: Rates, processes: int, here: bool, as_json: bool) -> None:
    from ..reproduce.cost import predict
    from ..reproduce.report import duration, size

    found = predict(graph, rates, processes, known=here)
    if as_json:
        typer.echo(json.dumps({**found, "data_here": here}))
        return
    width = max(len(row["name"]) for row in found["steps"])
    for row in found["steps"]:
        seconds = "done" if row["done"] else "?" if row["seconds"] is None else duration(row["seconds"])
        work = f"{row['images']:,} {'positions' if row['kind'] == 'sweep' else 'images'}" if row["images"] else ""
        typer.echo(f"{row['name']:{width}}  {seconds:>9}  {size(row['disk']):>9}  {work}")
    rate = found["rates"]
    typer.echo(
        f"{len(found['steps'])} steps, about {duration(found['seconds'])} on {processes} "
        f"process{'es' if processes > 1 else ''} and {size(found['disk'])}; {rate['train'] / 1e9:,.0f} and "
        f"{rate['forward'] / 1e9:,.0f} GFLOP/s in training and forward passes ({rate['how']})."
    )
    if not here:
        typer.echo("The data is not there: its published sizes are taken.")
