"""``occfast reproduce``: the tables and figures of a paper, beside the paper's own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..reproduce.cost import Rates
    from ..reproduce.experiment import Experiment


def reproduce(
    paper: Annotated[
        str,
        typer.Argument(
            help="trigueros2018 or pdsn-landmarks; or together, for both on a deployed recognizer.", show_default=False
        ),
    ],
    table: Annotated[
        list[int] | None, typer.Option(help="Make only this table; may be repeated.", show_default=False)
    ] = None,
    figure: Annotated[
        list[int] | None, typer.Option(help="Make only this figure; may be repeated.", show_default=False)
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: ORL, minutes; small: CelebA subset, LFW and 100 people of AR, hours; paper: its own data; "
            "trunk (trigueros2018): Table 2 on a pretrained trunk. together has small alone."
        ),
    ] = "smoke",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of the data sets, or ROLE=SOURCE with a role of train, lfw or ar (at trunk: train, others or "
            "lfw) and a source as in occfast data show, followed by @TEMPLATE for faces that are aligned already, e.g. "
            "train=faces.rec@arcface-112. May be repeated.",
            show_default="$OCCFAST_DATA",
        ),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="CSV list of people to leave out of training (occfast data overlap).")
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Random seed, or several (0,1,2), each for one complete run.")
    ] = "0",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Replace a setting of the scale, e.g. stride=2; may be repeated.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of finished steps and reports.")] = Path(
        "reproduction"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard earlier steps and start anew.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the steps with predicted time and disk space.")
    ] = False,
    rate: Annotated[
        str | None,
        typer.Option(
            help="With --dry-run: predict with TRAIN,FORWARD operations per second, e.g. 2e14,3e14, instead of "
            "measuring.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="With --dry-run: number of processes.", min=1)] = 1,
    spread: Annotated[
        bool,
        typer.Option("--spread", help="With several processes: train each network in one process, several at once."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Reproduce a paper and write a report with the paper's numbers beside those of the run.

    The experiment is a graph of steps. Finished steps are kept and never repeated with the same settings. On several
    processes: torchrun --nproc-per-node 8 -m occfast reproduce ...
    """
    from ..reproduce import prepare

    if rate is not None and not dry_run:
        raise ValueError("--rate: only valid with --dry-run")
    check_device(device)
    how = resume_of(resume, overwrite)
    chosen = seeds_of(seeds)
    root, given = _data(data or [])
    experiment = prepare(
        paper,  # type: ignore[arg-type]  # prepare checks it
        scale=scale,
        output=output,
        seeds=chosen,
        tables=table,
        figures=figure,
        data=given,
        root=root,
        exclude=exclude,
        settings=_changes(setting or [], paper, scale),
        command=command_line(),
    )
    if dry_run:
        _show(experiment, _rates(experiment, rate, device), processes, spread, as_json)
        return
    report = experiment.run(device=device, spread=spread, progress=not quiet, resume=how)
    if report.page is not None:
        typer.echo(report.page.with_suffix(".json").read_text() if as_json else f"{report.verdict()}\n{report.page}")


def check_device(device: str) -> None:
    """Raise ValueError for anything but auto, cpu and cuda."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu or cuda, got {device!r}; choose a GPU by CUDA_VISIBLE_DEVICES")


def resume_of(resume: bool, overwrite: bool) -> bool | None:
    """Turn the options --resume and --overwrite into the argument ``resume`` of Python."""
    if resume and overwrite:
        raise ValueError("--resume: not valid with --overwrite")
    return True if resume else False if overwrite else None


def seeds_of(text: str) -> tuple[int, ...]:
    """Read seeds such as 0,1,2."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--seeds: expected whole numbers as in 0,1,2, got {text!r}") from error


def command_line() -> str:
    """Return the user's command for the report, without options that don't change its numbers."""
    arguments: list[str] = []
    given = iter(sys.argv[1:])
    for argument in given:
        if argument in ("--output", "-o"):
            next(given, None)
        elif argument not in ("--json", "--quiet", "-q", "--overwrite", "--resume", "--spread"):
            arguments.append(argument)
    return shlex.join(["occfast", *(a for a in arguments if not a.startswith("--output="))])


def _data(given: list[str]) -> tuple[Path | None, dict[str, str]]:
    root: Path | None = None
    roles: dict[str, str] = {}
    for entry in given:
        role, equals, source = entry.partition("=")
        if equals and "/" not in role:
            roles[role] = source
        elif root is not None:
            raise ValueError(f"--data: expected one folder, got {root} and {entry}")
        else:
            root = Path(entry)
            if not root.is_dir():
                raise ValueError(f"--data: expected a folder or ROLE=SOURCE, got {entry!r}")
    return root, roles


def _changes(given: list[str], paper: str, scale: str) -> dict[str, Any]:
    """Read ``name=value`` with YAML values; several overrides of a recipe are a list."""
    from dataclasses import fields

    from ..packages import require
    from ..reproduce.pdsn_landmarks.settings import PDSNSettings
    from ..reproduce.together.settings import TogetherSettings
    from ..reproduce.trigueros2018.settings import Settings
    from ..reproduce.trigueros2018.trunk.settings import TrunkSettings

    if not given:
        return {}
    require("an override", "omegaconf", extra="train")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # The scale of PDSNSettings is that of a loss.
    fixed = {"seeds", "scale"} if paper == "trigueros2018" else {"seeds"}
    of_paper = {"pdsn-landmarks": PDSNSettings, "together": TogetherSettings}
    settings: Any = of_paper.get(paper, TrunkSettings if scale == "trunk" else Settings)
    known = {f.name for f in fields(settings)} - fixed
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


def _rates(experiment: Experiment, given: str | None, device: str) -> Rates:
    from ..reproduce.cost import Rates

    if given is None:
        return experiment.measure(device)
    try:
        train, forward = (float(part) for part in given.split(","))
    except ValueError as error:
        raise ValueError(f"--rate: expected TRAIN,FORWARD as in 2e14,3e14, got {given!r}") from error
    if min(train, forward) <= 0:
        raise ValueError(f"--rate: expected positive rates, got {given!r}")
    return Rates(train, forward, "given")


def _show(experiment: Experiment, rates: Rates, processes: int, spread: bool, as_json: bool) -> None:
    from ..reproduce.cost import predict
    from ..reproduce.report import duration, size

    graph, available = experiment.graph.spread() if spread else experiment.graph, experiment.data_available
    found = predict(graph, rates, processes, known=available)
    if as_json:
        typer.echo(json.dumps({**found, "data_here": available}))
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
    if not available:
        typer.echo("The data is not available; the prediction uses published sizes.")
