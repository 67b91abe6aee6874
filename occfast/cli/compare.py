"""``occfast compare``: the audits of two recognizers, paired over people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..progress import printable
from . import options
from .audit import REPORT as AUDIT
from .audit import (
    Bootstrap,
    Both,
    Candidate,
    Cover,
    Curve,
    Device,
    Faces,
    Fmr,
    Landmarks,
    Limit,
    MapImages,
    Seed,
    coverings_of,
)

_REPORT, _WORK, _FOLDERS = "compare.json", "work", ("a", "b")
_TWICE = " Once for both recognizers, or twice: for A, then for B."
_Twice = list[str] | None


def _twice(help_text: str, panel: str = "Network") -> Any:
    return typer.Option(help=help_text + _TWICE, show_default=False, rich_help_panel=panel)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=f"Recognizer: {options.MODEL_HELP}", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="The recognizer to compare with A.", show_default=False)],
    faces: Faces,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("compare"),
    cover: Cover = None,
    both: Both = False,
    curve: Curve = True,
    map_images: MapImages = 32,
    fmr: Fmr = 1e-3,
    level: Annotated[
        float, typer.Option(help="Chance of any difference called clear where there is none.", rich_help_panel="Rates")
    ] = 0.05,
    bootstrap: Bootstrap = 1000,
    limit: Limit = 2000,
    network: Annotated[_Twice, _twice("Architecture, for weights that do not record it.")] = None,
    preset: Annotated[_Twice, _twice(options.PRESET_HELP)] = None,
    size: Annotated[_Twice, _twice("Height x width of the network's input.")] = None,
    color: Annotated[_Twice, _twice("gray, RGB or BGR.")] = None,
    mean: Annotated[_Twice, _twice(options.SCALE_HELP)] = None,
    std: Annotated[_Twice, _twice("See --mean.")] = None,
    template: Annotated[_Twice, _twice("Align faces to this template.", "Images")] = None,
    landmarks: Landmarks = None,
    resize: options.Resize = False,
    aligned: options.Aligned = False,
    device: Device = "auto",
    seed: Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare what covered faces cost two recognizers, paired over the same people, and write one page.

    Writes compare.html, compare.md and compare.json, and the audits of A and B into the folders a and b.

    All differences are tested together. Each recognizer keeps its own preprocessing.
    """
    from .. import checks
    from ..audit import compare as compared
    from ..audit.paired import require_resamples

    checks.number(level, "--level", above=0.0, high=0.5)
    require_resamples(bootstrap, level, "--level")
    each = {
        name: _for_both(values, f"--{name}")
        for name, values in (
            ("network", network),
            ("preset", preset),
            ("size", size),
            ("color", color),
            ("mean", mean),
            ("std", std),
            ("template", template),
        )
    }
    with options.only_run(output, "compare", "writes a comparison into"):
        options.check_output(output, {_REPORT: "a comparison", _WORK: "unfinished work"}, resume, overwrite)
        for folder in _FOLDERS:
            options.check_output(output / folder, {AUDIT: "an audit", _WORK: "unfinished work"}, resume, overwrite)
        candidates = []
        for k, model in enumerate((first, second)):
            candidate = Candidate(
                model,
                faces,
                output / _WORK / "landmarks.csv",
                **{name: values[k] for name, values in each.items()},  # type: ignore[arg-type]
                landmarks=landmarks,
                resize=resize,
                aligned=aligned,
                trust=trust,
                device=device,
                resume=resume or k == 1,  # the second takes the landmarks that were found for the first
                quiet=quiet,
            )
            with _named(candidate, "AB"[k]):
                _try(candidate)
            candidates.append(candidate)
        audits = []
        for candidate, folder, name in zip(candidates, _FOLDERS, "AB", strict=True):
            with _named(candidate, name):
                found = candidate.audit(
                    output / _WORK / folder,
                    coverings=coverings_of(cover, seed),
                    fmr=fmr,
                    both=both,
                    limit=limit or None,
                    curve=curve,
                    map_images=map_images,
                    resamples=bootstrap,
                    seed=seed,
                    resume=not overwrite,
                )
            found.write(output / folder)
            audits.append(found)
        result = compared(*audits, level=level)
        page = result.write(output)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    for line in (*result.sentences, str(page)):
        typer.echo(printable(line))


def _for_both(values: list[str] | None, name: str) -> tuple[str | None, str | None]:
    """Return the value of an option for A and for B."""
    if not values:
        return None, None
    if len(values) > 2:
        raise ValueError(f"{name}: expected one value for both recognizers or one for each, got {len(values)}")
    return values[0], values[-1]


@contextmanager
def _named(candidate: Candidate, name: str) -> Iterator[None]:
    """Say in an error about a model which of the two it is."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("model: "):
            raise
        raise ValueError(f"{name} ({candidate.model}): {str(error).removeprefix('model: ')}") from error


def _try(candidate: Candidate) -> None:
    """Embed two faces, so that a recognizer that can't is refused before the work on the other one."""
    from ..evaluate import embed

    embed(
        candidate.recognizer.embedding(),
        candidate.faces,
        candidate.preprocessing,
        indices=range(min(2, len(candidate.faces))),
        flip="none",
        progress=False,
    )
