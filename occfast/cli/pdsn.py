"""``occfast pdsn``: recognize occluded faces by their visible features; one command for each step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from torch import Tensor

    from ..pdsn import Base, Regions
    from ..pdsn.faces import FaceSet
    from ..train import Trained

app = typer.Typer(
    help="PDSN: recognize occluded faces by their visible features.\n\nThe steps are regions, generators, dictionary, "
    "segment (optional) and identify.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="Data set: a folder of people, .rec, .npz, or lfw, orl, ar, ar10p, celeba. Landmarks are required.",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="Path of the data set, if --data is its kind.", show_default="in $OCCFAST_DATA"),
]
LandmarksOption = Annotated[
    Path | None, typer.Option("--landmarks", help="CSV file with landmarks, as occfast data landmarks writes it.")
]
MinImagesOption = Annotated[
    int | None,
    typer.Option("--min-images", help="Leave out people with fewer images.", show_default="10 for lfw, else 7"),
]
SizeOption = Annotated[tuple[int, int], typer.Option("--size", help="Height and width of the faces in pixels.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed for the split, training and occlusions.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Device: cpu, cuda or cuda:N.")]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Run the code of the module:function that the weights name.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Discard an unfinished run and start anew.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BaseArgument = Annotated[
    Path, typer.Argument(help="Weights of the base network, as occfast train writes them.", show_default=False)
]


@app.command("regions")
def regions_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="3x3 or any other RxC, lm1, lm2, lm2-split, or a JSON file of named boxes.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the regions.")] = Path("regions.json"),
    data: DataOption = "lfw",
    root: RootOption = None,
    landmarks: LandmarksOption = None,
    min_images: MinImagesOption = None,
    size: SizeOption = (128, 96),
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the regions over the mean face: .png.")
    ] = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute regions from the landmarks of the training images.

    Prints the boxes, and the share of landmarks inside each.
    """
    from matplotlib.figure import Figure

    from ..files import read_json, write_atomically
    from ..pdsn import regions
    from ..pdsn.faces import open_faces, read_faces, split

    dataset = open_faces(data, root, size=size, landmarks=landmarks, min_images=min_images)
    assert dataset.landmarks is not None
    train, _, _ = split(dataset.labels, seed)
    points = dataset.landmarks[train]
    if kind.endswith(".json"):
        try:
            found = regions.boxes({name: list(box) for name, box in read_json(kind).items()}, size)
        except TypeError as error:
            raise ValueError(f"{kind}: expected {{name: [top, left, bottom, right], …}} ({error})") from error
    else:
        found = regions.named(kind, size, points)
    write_atomically(output, found.to_json().encode())
    if picture is not None:
        faces = read_faces(dataset, seed, progress=not quiet)
        mean = (faces.images[faces.train].float().mean(0) / 255).numpy()
        figure = Figure(figsize=(3.2, 4.0), layout="constrained")
        found.draw(mean, ax=figure.subplots(), landmarks=points)
        figure.savefig(picture, dpi=130)
    shares, whole = found.inside(points)
    boxes = dict(zip(found.names, found.boxes.tolist(), strict=True))
    inside = {name: s for name, s in zip(found.names, shares.tolist(), strict=True) if s == s}
    if as_json:
        result = {"file": str(output), "kind": found.kind, "size": size, "boxes": boxes, "inside": inside, "all": whole}
        typer.echo(json.dumps(result))
        return
    for name, (top, left, bottom, right) in boxes.items():
        share = f"  {100 * inside[name]:.1f} % of its landmarks inside" if name in inside else ""
        typer.echo(f"{name:16} rows {top:3} to {bottom - 1:3}, columns {left:3} to {right - 1:3}{share}")
    if inside:
        typer.echo(f"all landmarks inside: {100 * whole:.1f} % of {len(points)} faces")
    typer.echo(output)


@app.command("generators")
def generators_command(
    base: BaseArgument,
    regions: Annotated[Path, typer.Argument(help="Regions, as occfast pdsn regions writes them.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the generators.")] = Path("generators.pt"),
    data: DataOption = "lfw",
    root: RootOption = None,
    landmarks: LandmarksOption = None,
    min_images: MinImagesOption = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Maximum number of epochs.", min=1)] = 40,
    patience: Annotated[
        int, typer.Option("--patience", help="Stop after this many epochs without improvement.", min=1)
    ] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per batch.", min=1)] = 60,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate of Adam.")] = 1e-3,
    weight: Annotated[
        float, typer.Option("--weight", help="Weight λ of the difference of the masked maps in the loss.")
    ] = 10.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    trust: TrustOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a mask generator for each region, with the base network frozen."""
    from dataclasses import asdict

    from ..pdsn import train_generators

    checkpoint = _checkpoint(output, resume, overwrite)
    trained, network = _base(base, device, trust)
    faces = _faces(trained, data, root, landmarks, min_images, seed, quiet)
    labels = _classes(trained, faces, data)
    found = train_generators(
        network,
        _regions(regions),
        faces.images[faces.train],
        labels[faces.train],
        validation=(faces.images[faces.validation], labels[faces.validation]),
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight=weight,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        progress=not quiet,
    )
    found.save(output)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "history": [asdict(epoch) for epoch in found.history]}))
        return
    last = found.history[-1]
    for name, accuracy, difference in zip(found.regions.names, last.accuracy, last.difference, strict=True):
        typer.echo(f"{name:16} accuracy {100 * accuracy:6.2f} %, difference {difference:.5f}")
    typer.echo(f"{output}: {last.number} epochs")


@app.command("dictionary")
def dictionary_command(
    base: BaseArgument,
    generators: Annotated[
        Path, typer.Argument(help="Generators, as occfast pdsn generators writes them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the dictionary: .npz.")] = Path(
        "dictionary.npz"
    ),
    data: DataOption = "lfw",
    root: RootOption = None,
    landmarks: LandmarksOption = None,
    min_images: MinImagesOption = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            "--percentile",
            help="Discard features up to this percentile of each mask.",
            show_default="the paper's for these regions",
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the masks: .png.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    trust: TrustOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Average the masks of the generators over the training images.

    Prints the share of features that each percentile discards.
    """
    from matplotlib.figure import Figure

    from ..pdsn import Generators, build_dictionary

    trained, network = _base(base, device, trust)
    faces = _faces(trained, data, root, landmarks, min_images, seed, quiet)
    loaded = Generators.load(generators).to(network.device)
    found = build_dictionary(
        network,
        loaded.regions,
        [(faces.images[faces.train], faces.labels[faces.train])],
        percentile,
        generators=loaded,
        seed=seed,
        progress=not quiet,
    )
    found.save(output)
    if picture is not None:
        figure = Figure(figsize=(1.5 * len(found.regions), 2.2), layout="constrained")
        found.plot(figure.subplots(1, len(found.regions), squeeze=False)[0])
        figure.savefig(picture, dpi=130)
    rows = found.report()
    if as_json:
        typer.echo(json.dumps({"file": str(output), "percentile": found.percentile, "report": rows}))
        return
    typer.echo("percentile  discarded if all are occluded  largest overlap of two regions")
    for row in rows:
        typer.echo(f"{row['percentile']:10g}  {100 * row['all_regions']:26.1f} %  {100 * row['overlap']:28.1f} %")
    typer.echo(f"{output}: percentile {found.percentile:g}")


@app.command("segment")
def segment_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the network.")] = Path("segmentation.pt"),
    data: DataOption = "lfw",
    root: RootOption = None,
    landmarks: LandmarksOption = None,
    min_images: MinImagesOption = None,
    size: SizeOption = (128, 96),
    width: Annotated[
        float, typer.Option("--width", help="Factor on the number of channels; 1.0 is the paper's network.")
    ] = 1.0,
    epochs: Annotated[int, typer.Option("--epochs", help="Maximum number of epochs.", min=1)] = 12,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate of Adam.")] = 1e-3,
    start: Annotated[
        Path | None,
        typer.Option(
            "--start",
            help="Initial weights: state dict of segmentation_models_pytorch's Unet('vgg16'), .pt or .safetensors.",
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a U-Net that finds occluded pixels.

    Prints its accuracy and intersection over union on the test images, for each occlusion.
    """
    from dataclasses import asdict

    import torch

    from .. import checks
    from ..pdsn import SegmentationScore, UNet, landmark_bands, segment, train_segmentation
    from ..pdsn.faces import OCCLUSIONS, mixed, occlude, open_faces, read_faces
    from ..train import load_into

    checkpoint = _checkpoint(output, resume, overwrite)
    dataset = open_faces(data, root, size=size, landmarks=landmarks, min_images=min_images)
    faces = read_faces(dataset, seed, progress=not quiet)
    bands = landmark_bands(faces.landmarks[faces.train], size)
    torch.manual_seed(seed)
    network = UNet(faces.images.shape[1], width=width)
    if start is not None:
        load_into(network, start)
    network.to(checks.device(device))
    history = train_segmentation(
        network,
        *mixed(faces, faces.train, bands, seed),
        validation=mixed(faces, faces.validation, bands, seed),
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        progress=not quiet,
    )
    network.save(output)
    test = faces.test
    scores = {}
    for name in ("clean", *OCCLUSIONS):
        images, mask = occlude(name, faces.images[test], faces.landmarks[test], bands, test, seed)
        scores[name] = asdict(SegmentationScore.of(segment(network, images).cpu(), mask))
    if as_json:
        history_rows = [asdict(epoch) for epoch in history]
        typer.echo(json.dumps({"file": str(output), "scores": scores, "history": history_rows}))
        return
    for name, score in scores.items():
        typer.echo(f"{name:14} accuracy {100 * score['accuracy']:6.2f} %, IoU {100 * score['iou']:6.2f} %")
    typer.echo(output)


@app.command("identify")
def identify_command(
    base: BaseArgument,
    dictionary: Annotated[
        Path | None, typer.Argument(help="Mask dictionary.", show_default="none, compare without masks")
    ] = None,
    occlusion: Annotated[
        str,
        typer.Option(
            "--occlusion", help="clean, forehead, eyes, nose, mouth, chin, face mask, sunglasses or nose to chin."
        ),
    ] = "eyes",
    segmentation: Annotated[
        Path | None,
        typer.Option(
            "--segmentation",
            help="U-Net that finds the occlusion, as occfast pdsn segment writes it.",
            show_default="the occlusion is known",
        ),
    ] = None,
    data: DataOption = "lfw",
    root: RootOption = None,
    landmarks: LandmarksOption = None,
    min_images: MinImagesOption = None,
    own: Annotated[bool, typer.Option("--own", help="Place the regions by the landmarks of each probe.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="Use soft masks instead of binary ones.")] = False,
    compare: Annotated[str, typer.Option("--compare", help="Compare maps or features.")] = "maps",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    trust: TrustOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Identify occluded test images among the training images.

    Prints the rank-1 and rank-5 accuracy. They are meaningful only if the base network has not seen the test images.
    """
    from ..pdsn import MaskDictionary, UNet, identify, landmark_bands, segment
    from ..pdsn.faces import occlude

    if dictionary is None:
        for name, given in (("--own", own), ("--soft", soft)):
            if given:
                raise ValueError(f"{name}: only valid with a mask dictionary, got none")
    trained, network = _base(base, device, trust)
    faces = _faces(trained, data, root, landmarks, min_images, seed, quiet)
    masks = None if dictionary is None else MaskDictionary.load(dictionary)
    bands = landmark_bands(faces.landmarks[faces.train], trained.preprocessing.size)
    points = faces.landmarks[faces.test]
    probes, covered = occlude(occlusion, faces.images[faces.test], points, bands, faces.test, seed)
    if segmentation is not None:
        covered = segment(UNet.load(segmentation).to(network.device), probes).cpu()
    found = identify(
        network,
        masks,
        faces.images[faces.train],
        faces.labels[faces.train],
        probes,
        covered,
        boxes=masks.regions.at(points) if own and masks is not None else None,
        soft=soft,
        compare=compare,  # type: ignore[arg-type]
        k=min(5, len(faces.train)),
    )
    truth = faces.labels[faces.test]
    rank1, rank5 = found.accuracy(truth, 1), found.accuracy(truth, min(5, len(faces.train)))
    result = {
        "occlusion": occlusion,
        "known": segmentation is None,
        "probes": len(truth),
        "gallery": len(faces.train),
        "rank1": rank1,
        "rank5": rank5,
        "masks": found.groups,
    }
    typer.echo(
        json.dumps(result)
        if as_json
        else f"rank-1 {100 * rank1:.2f} %, rank-5 {100 * rank5:.2f} %: {len(truth)} probes ({occlusion}), "
        f"{len(faces.train)} gallery images, {found.groups} different masks"
    )


def _checkpoint(output: Path, resume: bool, overwrite: bool) -> Path:
    """Return the path of the checkpoint beside an output; an older one is neither lost nor resumed unasked."""
    options.check_resume(resume, overwrite)
    path = output.with_name(f"{output.name}.checkpoint")
    if path.exists() and not resume and not overwrite:
        raise ValueError(
            f"{path} holds an interrupted training: --resume continues it, --overwrite discards it; or choose another "
            "--output"
        )
    return path


def _base(path: Path, device: str, trust: bool) -> tuple[Trained, Base]:
    from .. import checks
    from ..pdsn.base import base_of
    from ..train import load_network

    trained = load_network(path, trust=trust)
    return trained, base_of(trained).to(checks.device(device))


def _faces(
    trained: Trained,
    data: str,
    root: Path | None,
    landmarks: Path | None,
    min_images: int | None,
    seed: int,
    quiet: bool,
) -> FaceSet:
    """Read faces, prepared as for the training of the base network."""
    from ..data import Alignment
    from ..pdsn.faces import open_faces, read_faces

    expected = trained.preprocessing
    dataset = open_faces(
        data,
        root,
        size=expected.size,
        gray=expected.color == "gray",
        landmarks=landmarks,
        min_images=min_images,
        alignment=Alignment.read(expected.alignment, "weights"),
    )
    faces = read_faces(dataset, seed, progress=not quiet)
    # The scaling is the network's own.
    expected.require(dataclasses.replace(faces.preprocessing, mean=expected.mean, std=expected.std))
    return faces


def _classes(trained: Trained, faces: FaceSet, data: str) -> Tensor:
    """Return the class of each face, as the base network numbers them, int64 [N]."""
    import torch

    unknown = sorted(set(faces.people) - set(trained.people))
    if unknown:
        raise ValueError(
            f"base: expected a classifier of the people of {data}, {len(unknown)} of them are not among its "
            f"{len(trained.people)} classes: {', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
        )
    classes = torch.tensor([trained.people.index(name) for name in faces.people])
    return classes[faces.labels]


def _regions(path: Path) -> Regions:
    from ..files import read_text
    from ..pdsn import Regions

    return Regions.from_json(read_text(path), str(path))
