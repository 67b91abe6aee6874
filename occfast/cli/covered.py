"""``occfast covered``: how much of each face is covered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from ..covered import Coverage
    from ..data import FaceDataset

_TABLE, _LANDMARKS = "covered.csv", "landmarks.csv"
_SHOWN = 10


def covered(
    photos: Annotated[
        str,
        typer.Argument(
            help="A photograph, or a folder of photographs of any size, at any depth; or a .rec, .npz or .bin file, or "
            "lfw, orl, ar, ar10p or celeba (with :PATH if it is not in $OCCFAST_DATA).",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("covered"),
    limit: Annotated[
        float,
        typer.Option(
            help="Probability of rejection from which a face is not to be matched.", rich_help_panel="Estimates"
        ),
    ] = 0.5,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Model of rejection of your recognizer, a JSON file (see occfast.covered.fit_rejection).",
            show_default="a MobileFaceNet at FMR 1e-3",
            rich_help_panel="Estimates",
        ),
    ] = None,
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Write masks/: the covered pixels of each aligned face.", rich_help_panel="Run"),
    ] = False,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with landmarks, as occfast data landmarks writes it.",
            show_default="those of the data, else found by MTCNN",
            rich_help_panel="Images",
        ),
    ] = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Estimate how much of each face is covered, where, and whether to match it at all.

    Writes covered.csv: for each photograph the share covered of the face and of each region, the probability that a
    genuine comparison is rejected, and a verdict. Sunglasses, masks, scarves, hands and other things before a face
    count; clear glasses, beards and hair don't.
    """
    from .. import checks
    from ..covered import RejectionModel, estimate_coverage
    from ..files import read_json
    from .landmarks import in_words

    checks.number(limit, "--limit", 0.0, 1.0)
    if Path(photos).is_dir() and output.resolve() == Path(photos).resolve():
        raise ValueError(f"--output: expected another folder than that of the photographs, got {output}")
    with options.only_run(output, "covered", "writes estimates into"):
        options.check_output(output, {_TABLE: "an earlier result", _LANDMARKS: "unfinished work"}, resume, overwrite)
        rejection = None
        if calibration is not None:
            values = read_json(calibration)
            try:
                rejection = RejectionModel.from_dict(values)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"--calibration: {calibration} is not a model of rejection ({reason})") from error
        source, failures = _found(_open(photos, landmarks, output), output / _LANDMARKS, resume, quiet)
        _forget_masks(output)
        unreadable: dict[str, str] = {}
        coverage = estimate_coverage(
            source, rejection=rejection, masks=masks, unreadable=unreadable, progress=not quiet
        )
        failures = {**failures, **unreadable}
        if not coverage.names:
            raise ValueError(f"photos: expected a face on one of them, got {in_words(failures)}")
        table = coverage.write_csv(output / _TABLE, limit=limit, failures=failures)
        if masks:
            _write_masks(coverage, output / "masks")
    summary = _summary(coverage, limit, failures)
    if as_json:
        typer.echo(json.dumps({**summary, "table": str(table)}))
    else:
        _show(coverage, limit, summary, failures)
        typer.echo(table)


def _open(photos: str, landmarks: Path | None, output: Path) -> FaceDataset:
    """Open the photographs; what an earlier run wrote into a folder among them is none of them."""
    from ..data import Photographs, Subset, open_dataset
    from ..data.images import SUFFIXES
    from ..data.open import kind_of

    path = Path(photos)
    if (path.is_file() and path.suffix.lower() in SUFFIXES) or (path.is_dir() and kind_of(photos) == "folder"):
        source = Photographs(path, landmarks=landmarks)
        own = output.resolve()
        kept = [k for k in range(len(source)) if own not in source.path(k).resolve().parents]
        if not kept:
            raise ValueError(f"photos: expected photographs in {path}, all {len(source):,} are in --output {output}")
        return source if len(kept) == len(source) else Subset(source, kept)
    return open_dataset(photos, landmarks=landmarks)


def _found(source: FaceDataset, path: Path, resume: bool, quiet: bool) -> tuple[FaceDataset, dict[str, str]]:
    """Return the faces with landmarks, found by MTCNN where none are known, and why others have none."""
    from ..data import Subset
    from .landmarks import NO_LANDMARKS, with_faces

    if source.landmarks is None and source.alignment is not None:
        return source, {}
    if source.landmarks is None:
        return with_faces(source, path, resume, quiet)
    missing = source.landmarks.isnan().flatten(1).any(1)
    kept = (~missing).nonzero()[:, 0].tolist()
    if not kept:
        raise ValueError(f"landmarks: expected those of one of the {len(source):,} images, got none")
    return Subset(source, kept), {source.names[k]: NO_LANDMARKS for k in missing.nonzero()[:, 0].tolist()}


def _forget_masks(output: Path) -> None:
    """Delete the masks of the run whose table is in the folder, and nothing else."""
    import csv
    import io

    from ..files import read_text

    folder = (output / "masks").resolve()
    if not folder.is_dir() or not (output / _TABLE).is_file():
        return
    for row in csv.DictReader(io.StringIO(read_text(output / _TABLE))):
        mask = folder / f"{row.get('image')}.png"
        if mask.resolve().is_relative_to(folder):
            mask.unlink(missing_ok=True)


def _write_masks(coverage: Coverage, folder: Path) -> None:
    from ..data.images import encode_png
    from ..files import write_atomically

    assert coverage.masks is not None
    root = folder.resolve()
    for name in coverage.names:  # those in the file of a data set can be anything
        if not (folder / f"{name}.png").resolve().is_relative_to(root):
            raise ValueError(f"--masks: expected names of images that stay in {folder}, got {name!r}")
    for name, mask in zip(coverage.names, coverage.masks, strict=True):
        write_atomically(folder / f"{name}.png", encode_png(mask[None]))


def _summary(coverage: Coverage, limit: float, failures: dict[str, str]) -> dict[str, Any]:
    from .landmarks import count

    return {
        "faces": len(coverage.names),
        **count(failures),
        "covered by a fifth or more": int((coverage.share >= 0.2).sum()),
        "do not match": int((coverage.rejection >= limit).sum()),
        "rejection of": dict(coverage.model.about),
    }


def _show(coverage: Coverage, limit: float, summary: dict[str, Any], failures: dict[str, str]) -> None:
    """Print the counts, and the faces that are least fit to be matched with their most covered regions."""
    from ..covered import REGIONS
    from ..progress import one_line
    from .landmarks import in_words

    typer.echo(
        f"{summary['faces']:,} faces (left out: {in_words(failures)}): "
        f"{summary['covered by a fifth or more']:,} covered by a fifth or more, {summary['do not match']:,} not to be "
        f"matched (rejected with a probability of {limit:g} or more)"
    )
    order = coverage.rejection.argsort(descending=True, stable=True)
    for k in order[:_SHOWN].tolist():
        if float(coverage.share[k]) < 0.05:
            break
        most = coverage.regions[k].argsort(descending=True)[:3].tolist()
        parts = ", ".join(f"{REGIONS[r]} {float(coverage.regions[k, r]):.0%}" for r in most)
        name = one_line(str(coverage.names[k]))
        typer.echo(f"  {name}: {float(coverage.share[k]):.0%} covered ({parts}); rejected {coverage.rejection[k]:.0%}")
