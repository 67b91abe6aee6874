"""``occfast data``: inspect, convert, and download data sets, and detect landmarks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import printable

if TYPE_CHECKING:
    from ..data import FaceDataset

app = typer.Typer(
    help="Inspect, convert and download data sets, detect landmarks, and find people in two data sets.",
    no_args_is_help=True,
)

_SOURCE_HELP = (
    "A folder with a folder for each person; a .rec, .npz, .bin or .mat file; a list of images (.txt, .csv, .lst); or "
    "orl, lfw, celeba, ar, ar10p, followed by :PATH if it is not in $OCCFAST_DATA."
)


def _echo(text: str) -> None:
    """Print a line; names of files cannot control the terminal."""
    typer.echo(printable(text))


Source = Annotated[str, typer.Argument(metavar="DATASET", help=_SOURCE_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AlignTo = Annotated[
    str | None,
    typer.Option("--template", help="Align the faces to paper-100, arcface-112, sphereface-112x96 or pdsn-128x96."),
]
Landmarks = Annotated[
    Path | None, typer.Option("--landmarks", help="CSV file with the landmarks, as occfast data landmarks writes it.")
]
Gray = Annotated[bool, typer.Option("--gray", help="Convert the faces to gray. Requires --template.")]
Border = Annotated[
    str, typer.Option("--border", help="Pixels beyond the image: repeat (its edge) or black. Requires --template.")
]


@app.command()
def show(
    source: Source,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet of faces to this PNG file.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Rows of the contact sheet.", min=1)] = 5,
    columns: Annotated[int, typer.Option("--columns", help="Columns of the contact sheet.", min=1)] = 8,
    sample: Annotated[
        int | None,
        typer.Option("--sample", help="Open at most this many images, spread evenly over the data set.", min=1),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the contents of a data set: people, images, sizes, formats, landmarks, corrupt and repeated files.

    The exit status is 1 if an image cannot be read.
    """
    from ..data import open_dataset
    from ..data.contents import contact_sheet, examine
    from ..data.images import encode_png
    from ..files import write_atomically

    dataset = open_dataset(source)
    images = None
    if sample is not None and sample < len(dataset):
        images = [k * len(dataset) // sample for k in range(sample)]
    found = examine(dataset, images, progress=not quiet)
    if sheet is not None:
        write_atomically(sheet, encode_png(contact_sheet(dataset, rows, columns)))
    if as_json:
        typer.echo(json.dumps({**found.as_dict(), "sheet": None if sheet is None else str(sheet)}, indent=1))
    else:
        fewest, median, most = found.per_person
        _echo(f"{found.kind}: {found.images:,} images of {found.people:,} people")
        _echo(f"images of a person: {fewest} to {most}, median {median:g}")
        _echo(f"opened: {found.examined:,} images, {found.bytes / 1e6:,.1f} MB")
        _echo(f"sizes: {_counts({f'{h}×{w}': n for (h, w), n in found.sizes.items()})}")
        _echo(f"formats: {_counts(found.formats)}")
        _echo(f"landmarks: {'none' if found.landmarks is None else f'on {found.landmarks:,} images'}")
        if found.alignment:
            _echo("aligned: {template}, {size[0]}×{size[1]}, {color}, {transform}".format(**found.alignment))
        for names in found.repeated[:5]:
            _echo(f"the same file: {', '.join(names)}")
        if len(found.repeated) > 5:
            _echo(f"... and {len(found.repeated) - 5} more groups of equal files (--json has all)")
        if found.others:
            _echo(f"not taken for images: {len(found.others)} files, {', '.join(found.others[:5])}")
        _echo(f"corrupt: {len(found.corrupt) or 'none'}")
        for reason in found.corrupt.values():
            _echo(f"  {reason}")
        if sheet is not None:
            _echo(f"contact sheet: {sheet}")
    if found.corrupt:
        raise typer.Exit(1)


def _counts(table: dict[str, int]) -> str:
    shown = ", ".join(f"{count:,} {name}" for name, count in list(table.items())[:6])
    return shown + (f" and {len(table) - 6} more kinds" if len(table) > 6 else "") or "none"


@app.command()
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Output: a folder, a .rec file or an .npz file.")],
    template: AlignTo = None,
    landmarks: Landmarks = None,
    gray: Gray = False,
    border: Border = "repeat",
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Store pixels in the .npz instead of image files, which loads faster.")
    ] = False,
    min_images: Annotated[int, typer.Option("--min-images", help="Leave out people with fewer images.", min=1)] = 1,
    exclude: Annotated[
        Path | None,
        typer.Option("--exclude", help="Leave out the people in this list, as occfast data overlap writes it."),
    ] = None,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip",
            help="Leave out, and list, images that cannot be read and, with --template, images without landmarks.",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a data set to a folder of people, to RecordIO (.rec) or to .npz.

    Image files are copied unchanged unless they are aligned. After an interruption, the same command continues.
    """
    from ..data import Aligned, Subset, WithLandmarks, open_dataset, read_landmarks
    from ..data.convert import convert as write
    from ..data.overlap import read_exclude

    if gray and template is None:
        raise ValueError("--gray: expected together with --template")
    dataset: FaceDataset = open_dataset(source)
    if landmarks is not None:
        dataset = WithLandmarks(dataset, read_landmarks(landmarks).of(dataset.names))
    left_out = _bad(dataset, template is not None, quiet) if skip else {}
    if left_out:
        dataset = Subset(dataset, [k for k, name in enumerate(dataset.names) if name not in left_out])
    if min_images > 1 or exclude is not None:
        unwanted = [] if exclude is None else read_exclude(exclude)
        dataset = dataset.select(min_images=min_images, exclude=unwanted)
    if template is not None:
        dataset = Aligned(dataset, template, gray=gray, border=border)
    write(dataset, target, pixels=pixels, progress=not quiet)
    result = {"target": str(target), "images": len(dataset), "people": len(dataset.people), "left_out": left_out}
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _echo(f"{target}: {len(dataset):,} images of {len(dataset.people):,} people")
        for name, reason in left_out.items():
            _echo(f"left out: {name}: {reason}")


@app.command("bin")
def bin_(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS", help="List of pairs, such as LFW's pairs.txt or lines of path,path,1.", show_default=False
        ),
    ],
    source: Annotated[str, typer.Argument(metavar="IMAGES", help=_SOURCE_HELP, show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Output: a .bin file.", show_default=False)],
    template: AlignTo = None,
    landmarks: Landmarks = None,
    gray: Gray = False,
    border: Border = "repeat",
    skip: Annotated[
        bool,
        typer.Option(
            "--skip",
            help="Leave out, and list, pairs with images that are missing, cannot be read or, with --template, have no "
            "landmarks.",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a list of pairs as a verification .bin, the format of insightface.

    Pairs are stored fold after fold. The alignment is recorded in a .json beside. After an interruption, the same
    command starts again.
    """
    from dataclasses import replace

    import torch

    from ..data import Aligned, Subset, open_dataset, read_pairs
    from ..data.convert import convert_pairs

    if template is None and (gray or border != "repeat"):
        raise ValueError(f"{'--gray' if gray else '--border'}: expected together with --template")
    listed = read_pairs(pairs)
    dataset: FaceDataset = open_dataset(source, landmarks=landmarks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is listed below
        found = listed.resolve(dataset, "warn" if skip else "error")
    left_out = {f"line {pair.line}": f"no image {pair.first} or {pair.second}" for pair in found.missing}
    used, index = found.index.unique(return_inverse=True)
    dataset, index = Subset(dataset, used), index.reshape(-1, 2)
    if skip:
        bad = _bad(dataset, template is not None, quiet)
        left_out |= bad
        kept = torch.tensor([name not in bad for name in dataset.names])[index].all(1)
        if not kept.any():
            raise ValueError(f"{pairs}: expected pairs of images that can be used, got none")
        found = replace(found, same=found.same[kept], folds=None if found.folds is None else found.folds[kept])
        used, index = index[kept].unique(return_inverse=True)
        dataset, index = Subset(dataset, used), index.reshape(-1, 2)
    if template is not None:
        dataset = Aligned(dataset, template, gray=gray, border=border)
    convert_pairs(dataset, replace(found, index=index), target, progress=not quiet)
    same = int(found.same.sum())
    result = {"target": str(target), "pairs": len(found), "same": same, "left_out": left_out}
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _echo(f"{target}: {len(found):,} pairs, {same:,} of one person and {len(found) - same:,} of two")
        for name, reason in left_out.items():
            _echo(f"left out: {name}: {reason}")


def _bad(dataset: FaceDataset, aligned: bool, quiet: bool) -> dict[str, str]:
    """Return the reason for each image that cannot be used, by name."""
    from ..data.contents import examine

    bad = dict(examine(dataset, progress=not quiet).corrupt)
    if aligned:
        bad |= {
            name: "no landmarks"
            for k, name in enumerate(dataset.names)
            if name not in bad and dataset.landmarks_of(k) is None
        }
    return bad


@app.command()
def landmarks(
    source: Source,
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Output: CSV file. An interrupted run continues it.")
    ],
    workers: Annotated[int, typer.Option("--workers", help="Number of threads.", min=1)] = 1,
    min_face: Annotated[
        int, typer.Option("--min-face", help="Size of the smallest face to detect, in pixels.", min=1)
    ] = 20,
    margin: Annotated[
        int,
        typer.Option(
            "--margin", help="Extend images by this many pixels on each side, for faces that fill them.", min=0
        ),
    ] = 0,
    scale: Annotated[float, typer.Option("--scale", help="Enlarge images by this factor before detection.")] = 1.0,
    choose: Annotated[
        str, typer.Option("--choose", help="The face to use if there are several: central or largest.")
    ] = "central",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Detect the five landmarks of every face with MTCNN, which the extra "detect" installs.

    Images without a face are listed, and the exit status is 1 if there are any.
    """
    from ..data import DetectorSettings, detect_landmarks, open_dataset

    settings = DetectorSettings(min_face, margin, scale, choose)
    found = detect_landmarks(open_dataset(source), output, settings, workers=workers, progress=not quiet)
    result: dict[str, Any] = {
        "file": str(output),
        "images": len(found.names),
        "failures": found.failures,
        "settings": found.settings,
    }
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    else:
        _echo(f"{output}: {len(found.names) - len(found.failures):,} of {len(found.names):,} faces found")
        for name, reason in found.failures.items():
            _echo(f"  {name}: {reason}")
    if found.failures:
        raise typer.Exit(1)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set: lfw or olivetti.")],
    home: Annotated[
        Path | None, typer.Option("--home", help="Folder to download to.", show_default="scikit-learn's cache")
    ] = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Address of a folder with the same files.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a public data set by scikit-learn's addresses and checksums.

    An interrupted download continues. Without a connection, the message says which file to put where.
    """
    from ..data import open_dataset
    from ..data.fetch import fetch as download

    place = download(name, home, mirror=mirror, progress=not quiet)
    dataset = open_dataset(f"lfw:{place}" if name == "lfw" else place)
    result = {"name": name, "path": str(place), "images": len(dataset), "people": len(dataset.people)}
    typer.echo(
        json.dumps(result, indent=1)
        if as_json
        else f"{name}: {len(dataset):,} images of {len(dataset.people):,} people in {place}"
    )
