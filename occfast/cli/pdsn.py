"""``occfast pdsn``: discard the features that an occlusion corrupts, with one command for each step.

Long steps keep a checkpoint beside their output and continue from it. ``occfast reproduce pdsn-landmarks`` runs the
whole experiment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..pdsn import Base, Regions
    from ..pdsn.faces import FaceSet
    from ..train import Trained

app = typer.Typer(
    help="Regions, mask generators, dictionary, segmentation, identification: recognize covered faces by the rest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[str, typer.Option("--data", help="lfw (people with at least 10 images) or orl.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Folder of the data set. [default: in $OCCFAST_DATA]")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the split into training, validation and test, and more.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write the result as JSON.")]
BaseArgument = Annotated[Path, typer.Argument(help="Weights of the base network, as occfast train writes them.")]


@app.command("regions")
def regions_command(
    kind: Annotated[str, typer.Argument(help="3x3 (any RxC), lm1, lm2, lm2-split, or a JSON file of named boxes.")],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("regions.json"),
    data: DataOption = "lfw",
    root: RootOption = None,
    size: Annotated[tuple[int, int], typer.Option("--size", help="Height and width in pixels.")] = (128, 96),
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw them over the mean face: .png.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compute regions from the landmarks of the training images; tell how many landmarks fall inside."""
    from ..files import write_atomically
    from ..pdsn import regions
    from ..pdsn.faces import open_faces, read_faces, split

    dataset = open_faces(data, root, size=size)
    assert dataset.landmarks is not None
    train, _, _ = split(dataset.labels, seed)
    landmarks = dataset.landmarks[train]
    if kind.endswith(".json"):
        try:
            content = json.loads(Path(kind).read_text())
            found = regions.boxes({str(name): list(box) for name, box in content.items()}, size)
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise ValueError(f"{kind}: expected {{name: [top, left, bottom, right], …}} ({error})") from error
    else:
        found = regions.named(kind, size, landmarks)
    write_atomically(output, found.to_json().encode())
    if picture is not None:
        faces = read_faces(dataset, seed)
        mean = (faces.images[faces.train].float().mean(0) / 255).numpy()
        found.draw(mean, landmarks=landmarks).figure.savefig(picture, dpi=130)
    shares, whole = found.inside(landmarks)
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
        typer.echo(f"all of them inside: {100 * whole:.1f} % of {len(landmarks)} faces")
    typer.echo(output)


@app.command("generators")
def generators_command(
    base: BaseArgument,
    regions: Annotated[Path, typer.Argument(help="Regions, as occfast pdsn regions writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("generators.pt"),
    data: DataOption = "lfw",
    root: RootOption = None,
    epochs: Annotated[int, typer.Option("--epochs", help="At most.", min=1)] = 40,
    patience: Annotated[int, typer.Option("--patience", help="Epochs without progress.", min=1)] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 60,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 1e-3,
    weight: Annotated[float, typer.Option("--weight", help="λ of the difference of masked maps.")] = 10.0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train the mask generators of all regions together, with the base frozen."""
    from dataclasses import asdict

    from ..pdsn import train_generators

    trained, network = _base(base, device)
    faces, labels = _faces(trained, data, root, seed)
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
        checkpoint=output.with_name(f"{output.name}.checkpoint"),
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
    generators: Annotated[Path, typer.Argument(help="As occfast pdsn generators writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("dictionary.npz"),
    data: DataOption = "lfw",
    root: RootOption = None,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="[default: the paper's for these regions]", show_default=False)
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the masks: .png.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Average the generators' masks over the training images; tell what each percentile would discard."""
    from ..pdsn import Generators, build_dictionary

    trained, network = _base(base, device)
    faces, labels = _faces(trained, data, root, seed)
    loaded = Generators.load(generators).to(network.device)
    found = build_dictionary(
        network,
        loaded.regions,
        [(faces.images[faces.train], labels[faces.train])],
        percentile,
        generators=loaded,
        seed=seed,
    )
    found.save(output)
    if picture is not None:
        found.plot()[0].figure.savefig(picture, dpi=130)
    rows = found.report()
    if as_json:
        typer.echo(json.dumps({"file": str(output), "percentile": found.percentile, "report": rows}))
        return
    typer.echo("percentile  discarded when all are occluded  largest overlap of two regions")
    for row in rows:
        typer.echo(f"{row['percentile']:10g}  {100 * row['all_regions']:28.1f} %  {100 * row['overlap']:28.1f} %")
    typer.echo(f"{output}: percentile {found.percentile:g}")


@app.command("segment")
def segment_command(
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("segmentation.pt"),
    data: DataOption = "lfw",
    root: RootOption = None,
    size: Annotated[tuple[int, int], typer.Option("--size", help="Height and width in pixels.")] = (128, 96),
    width: Annotated[float, typer.Option("--width", help="Of the U-Net; 1.0 is VGG-16's.")] = 1.0,
    epochs: Annotated[int, typer.Option("--epochs", help="At most.", min=1)] = 12,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 1e-3,
    start: Annotated[
        Path | None,
        typer.Option("--start", help="State dict of segmentation_models_pytorch's Unet('vgg16'): .pt or .safetensors."),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train the U-Net on drawn occlusions; tell its accuracy and IoU on test images."""
    from dataclasses import asdict

    import torch

    from .. import checks
    from ..pdsn import SegmentationScore, UNet, landmark_bands, segment, train_segmentation
    from ..pdsn.faces import OCCLUSIONS, mixed, occlude, open_faces, read_faces
    from ..train import load_into

    faces = read_faces(open_faces(data, root, size=size), seed)
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
        checkpoint=output.with_name(f"{output.name}.checkpoint"),
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
    dictionary: Annotated[Path | None, typer.Argument(help="Mask dictionary; none: compare without masks.")] = None,
    occlusion: Annotated[
        str, typer.Option("--occlusion", help="clean, forehead, eyes, nose, mouth, chin, face mask, sunglasses.")
    ] = "eyes",
    segmentation: Annotated[
        Path | None, typer.Option("--segmentation", help="U-Net that finds the occlusion; without it, it is known.")
    ] = None,
    data: DataOption = "lfw",
    root: RootOption = None,
    own: Annotated[bool, typer.Option("--own", help="Regions of each probe's own landmarks.")] = False,
    soft: Annotated[bool, typer.Option("--soft", help="Soft masks instead of binary ones.")] = False,
    compare: Annotated[str, typer.Option("--compare", help="maps or features.")] = "maps",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Cover the test images and look for them among the training images."""
    from ..pdsn import MaskDictionary, UNet, identify, landmark_bands, segment
    from ..pdsn.faces import occlude

    trained, network = _base(base, device)
    faces, _ = _faces(trained, data, root, seed)
    masks = None if dictionary is None else MaskDictionary.load(dictionary)
    bands = landmark_bands(faces.landmarks[faces.train], trained.preprocessing.size)
    landmarks = faces.landmarks[faces.test]
    probes, covered = occlude(occlusion, faces.images[faces.test], landmarks, bands, faces.test, seed)
    if segmentation is not None:
        covered = segment(UNet.load(segmentation).to(network.device), probes).cpu()
    found = identify(
        network,
        masks,
        faces.images[faces.train],
        faces.labels[faces.train],
        probes,
        covered,
        boxes=masks.regions.at(landmarks) if own and masks is not None else None,
        soft=soft,
        compare=compare,
    )
    truth = faces.labels[faces.test]
    rank1, rank5 = found.accuracy(truth, 1), found.accuracy(truth, 5)
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
        else f"rank-1 {100 * rank1:.2f} %, rank-5 {100 * rank5:.2f} %: {len(truth)} probes ({occlusion}) against "
        f"{len(faces.train)} images, {found.groups} different masks"
    )


def _base(path: Path, device: str) -> tuple[Trained, Base]:
    from .. import checks
    from ..pdsn.base import base_of
    from ..train import load_network

    trained = load_network(path)
    return trained, base_of(trained).to(checks.device(device))


def _faces(trained: Trained, data: str, root: Path | None, seed: int) -> tuple[FaceSet, Any]:
    """Faces prepared as the base was trained, and their labels as numbers of its classes."""
    import torch

    from ..pdsn.faces import open_faces, read_faces

    expected = trained.preprocessing
    faces = read_faces(open_faces(data, root, size=expected.size, gray=expected.color == "gray"), seed)
    expected.require(faces.preprocessing)
    unknown = sorted(set(faces.people) - set(trained.people))
    if unknown:
        raise ValueError(f"base: was not trained on {len(unknown)} people of {data}: {', '.join(unknown[:3])}, …")
    classes = torch.tensor([trained.people.index(name) for name in faces.people])
    return faces, classes[faces.labels]


def _regions(path: Path) -> Regions:
    from ..errors import DataError
    from ..pdsn import Regions

    try:
        return Regions.from_json(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error})") from error
