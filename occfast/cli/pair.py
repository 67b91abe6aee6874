"""``occfast pair``: why a recognizer accepts or rejects two photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import printable
from . import options
from .audit import Candidate, Device, Landmarks

if TYPE_CHECKING:
    from ..data import FaceDataset
    from ..data.landmarks import LandmarkTable
    from ..sweep import PairMap

_PICTURE, _NUMBERS, _FOUND = "pair.png", "pair.json", "landmarks.csv"


def pair(
    model: Annotated[str, typer.Argument(help=f"Recognizer: {options.MODEL_HELP}", show_default=False)],
    first: Annotated[Path, typer.Argument(help="A photograph with one face.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")] = Path("pair"),
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine similarity from which on the recognizer accepts a pair, as occfast audit states it.",
            show_default="none: no decision",
            rich_help_panel="Map",
        ),
    ] = None,
    occluder: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH in pixels of the aligned face.",
            show_default="a fifth by a quarter",
            rich_help_panel="Map",
        ),
    ] = None,
    stride: Annotated[
        int, typer.Option(help="Pixels between neighboring positions.", min=1, rich_help_panel="Map")
    ] = 4,
    network: options.Network = None,
    preset: options.Preset = None,
    size: options.Size = None,
    color: options.Color = None,
    mean: options.Mean = None,
    std: options.Std = None,
    template: options.Template = None,
    landmarks: Landmarks = None,
    resize: options.Resize = False,
    aligned: options.Aligned = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Random seed of the noise.", rich_help_panel="Run")] = 0,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Explain why a recognizer accepts or rejects two photographs.

    Writes pair.png and pair.json: which regions speak for one person and which against, and, with --threshold, the
    smallest occluder that changes the decision.
    """
    import torch

    from ..audit.run import MAP_OCCLUDER, part_of
    from ..files import write_atomically
    from ..sweep import pair_map
    from ..sweep.options import device_of
    from .forecast import outputs_of
    from .networks import pair as numbers

    if preset == "auto":
        raise ValueError(
            "--preset: auto needs the faces of several people; name the preset, or try it with occfast audit"
        )
    with options.only_run(output, "pair", "writes a comparison into"):
        options.check_output(output, {_NUMBERS: "an earlier comparison"}, False, overwrite)
        source = _photographs(first, second, landmarks)
        candidate = Candidate(
            model,
            f"{first} and {second}",
            output / _FOUND,
            network=network,
            preset=preset,
            size=size,
            color=color,
            mean=mean,
            std=std,
            template=template,
            landmarks=None,
            resize=resize,
            aligned=aligned,
            trust=trust,
            device=device,
            resume=False,
            quiet=quiet,
            photographs=source,
        )
        faces, how = candidate.faces, candidate.preprocessing
        if len(faces) < 2:
            raise ValueError(f"photographs: expected a face on both, got one on {faces.names[0]} alone")
        photos = torch.stack([faces[k].image for k in (0, 1)])
        prepared = how(photos)
        embedding = candidate.recognizer.embedding()
        outputs_of(embedding, prepared.to(device_of(embedding, None) or prepared.device))
        found = pair_map(
            embedding,
            prepared[0],
            prepared[1],
            part_of(how.size, *MAP_OCCLUDER) if occluder is None else numbers(occluder, "--occluder"),
            threshold=threshold,
            fills=(how.scaled(0.5), "mean", "blur", "noise"),
            stride=stride,
            seed=seed,
            progress=not quiet,
        )
        names = [str(first), str(second)]
        about = _about(found, names, candidate.model)
        _draw(found, photos, names, output / _PICTURE)
        write_atomically(output / _NUMBERS, (json.dumps(about) + "\n").encode())
    if as_json:
        typer.echo(json.dumps(about))
        return
    for line in (*str(found).split("; "), str(output / _PICTURE)):
        typer.echo(printable(line))


def _photographs(first: Path, second: Path, landmarks: Path | None) -> FaceDataset:
    """Return two image files as a data set; names are relative to their common folder."""
    import os

    from ..data import read_landmarks
    from ..data.folder import ImageFiles
    from ..data.landmarks import LandmarkTable

    paths = [path.absolute() for path in (first, second)]
    for path, given in zip(paths, (first, second), strict=True):
        if not path.is_file():
            raise ValueError(f"{given}: no such file")
    if paths[0] == paths[1]:
        raise ValueError(f"second: expected another file than the first, got {second} twice")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names, found = [path.relative_to(root).as_posix() for path in paths], None
    if landmarks is not None:
        table = read_landmarks(landmarks)
        rows = table.of([_named(table, path, landmarks) for path in paths])
        found = LandmarkTable(names, rows, {})
    return ImageFiles(root, names, ["one", "one"], landmarks=found)


def _named(table: LandmarkTable, path: Path, source: Path) -> str:
    """Return the name of a photograph in a table, whose names may be relative to any folder above it."""
    for k in range(1, len(path.parts)):
        if table.has(name := "/".join(path.parts[k:])):
            return name
    raise ValueError(f"--landmarks: expected a line for {path}, {source} has none")


def _about(found: PairMap, names: list[str], model: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": Path(model).name,
        "photographs": names,
        "similarity": found.similarity,
        "threshold": found.threshold,
        "accepted": found.accepted,
        "smallest": None if found.smallest is None else asdict(found.smallest),
        "occluder": list(found.grid.occluder),
        "centers": [axis.tolist() for axis in found.grid.centers],
        "values": found.values.tolist(),
        "interval": found.interval.tolist(),
        "evaluations": found.evaluations,
    }


def _draw(found: PairMap, photos: Any, names: list[str], path: Path) -> None:
    """Draw both photographs and their maps."""
    from ..files import write_atomically
    from ..packages import require
    from ..plots import plain, png

    require("a picture", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for k in (0, 1):
        pixels = photos[k].permute(1, 2, 0).numpy()
        axes[k, 0].imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray")
        axes[k, 0].set_title(plain(Path(names[k]).name))
        axes[k, 0].set_axis_off()
        found.plot(k, image=photos[k], ax=axes[k, 1])
    figure.suptitle(str(found).split("; ")[0])
    write_atomically(path, png(figure))
