"""``occfast evaluate``: published protocols, clean and covered, in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .networks import load_network, prepared

if TYPE_CHECKING:
    from ..data import FaceDataset
    from ..evaluate.protocols import AnyProtocol

#: What each protocol does and the data set that it takes without one being named.
PROTOCOLS = {
    "lfw": ("LFW View 2: 6,000 pairs in ten folds", "lfw"),
    "lfw-view1": ("LFW View 1: threshold from pairsDevTrain, accuracy on pairsDevTest", "lfw"),
    "pairs": ("a list of pairs (--pairs) of the images in DATASET", None),
    "bin": ("the pairs of a verification .bin", None),
    "ar": ("AR: clean against clean, sunglasses, scarf", "ar"),
    "search": ("identification: images of each person against the rest", None),
    "scores": ("a CSV file with columns score, same and perhaps fold; no network", None),
}
_LIST = "; ".join(f"{name}: {text}" for name, (text, _) in PROTOCOLS.items())


def evaluate(
    protocol: Annotated[str, typer.Argument(help=_LIST + ".", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="As in occfast data show: a folder, .rec, .npz, .bin, or lfw, orl, ar, ar10p (with :PATH where it is "
            "not in $OCCFAST_DATA). [default: that of the protocol]",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--model", "-m", help="Weights with their description, .safetensors.")
    ] = None,
    occlude: Annotated[
        list[str] | None,
        typer.Option(
            help="Also under this occlusion; may be repeated. forehead, eyes, nose, mouth, chin (bands); sunglasses, "
            "sunglasses:STYLE; mask, mask:KIND, mask:FOLDER/NAME; block:20x40, block:20x40@ROW,COLUMN, "
            "block:20x40@nose; noisy:20x40, noisy:20x40@ROW,COLUMN, noisy:20x40@P.npz; several joined by +.",
            show_default=False,
        ),
    ] = None,
    cover: Annotated[
        str, typer.Option(help="What is covered: the probe (the reference stays clean) or both.")
    ] = "probe",
    pairs: Annotated[Path | None, typer.Option(help="The list, for the protocol pairs.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Equal runs of a list without folds. [default: 10 for bin]", min=2)
    ] = None,
    gallery: Annotated[int, typer.Option(help="Images of each person in the gallery (search).", min=1)] = 1,
    impostors: Annotated[
        float, typer.Option(help="Share of the people left out of the gallery (search, open set).", min=0, max=0.99)
    ] = 0.0,
    count: Annotated[str, typer.Option(help="What a rank counts (search): people or images.")] = "people",
    template: Annotated[
        str | None, typer.Option(help="Align to this template. [default: what the weights say]", show_default=False)
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images that are cropped already; don't align.")
    ] = False,
    landmarks: Annotated[Path | None, typer.Option(help="CSV file with landmarks of the images.")] = None,
    flip: Annotated[str, typer.Option(help="Fuse with the mirror image: sum, concat or none.")] = "sum",
    bootstrap: Annotated[
        int, typer.Option(help="Resamples of people for the intervals of pairs; 0: pairs as independent.", min=0)
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Processes that read images.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of random occlusions, the gallery and the impostors.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report and of features.")] = Path(
        "evaluation"
    ),
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Use features that are there already.")] = True,
    trust: Annotated[bool, typer.Option("--trust", help="Run the code of a network that is module:function.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write report.json to the standard output too.")] = False,
) -> None:
    """Judge a network by a published protocol, clean and under occlusions: one table of what covering costs.

    Writes report.html, report.md, report.json, roc.csv and pictures.  A run that was stopped goes on with the same
    command.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    what = dataset or PROTOCOLS[protocol][1]
    if what is None:
        raise ValueError(f"dataset: expected one after {protocol}")
    from ..evaluate import compare, evaluate_scores, read_scores
    from ..occlude import named_occlusion

    if protocol == "scores":
        scores, same, ids = read_scores(what)
        report = evaluate_scores(scores, same, ids if ids is not None else folds, name=Path(what).stem)
    else:
        if weights is None:
            raise ValueError("--model: expected weights (.safetensors), got none")
        from ..data import WithLandmarks, open_dataset, read_landmarks

        network, preprocessing = load_network(weights, trust, device)
        source = open_dataset(what)
        chosen = _protocols(protocol, source, pairs, folds, gallery, impostors, count, seed)
        if landmarks is not None:
            source = WithLandmarks(source, read_landmarks(landmarks).of(source.names))
        faces = prepared(source, preprocessing, template, resize)
        report = compare(
            chosen,
            network,
            faces,
            preprocessing,
            {name: named_occlusion(name, seed) for name in occlude or []},
            cover=cover,  # type: ignore[arg-type]
            flip=flip,  # type: ignore[arg-type]
            batch_size=batch_size,
            workers=workers,
            cache=output / "features" if resume else None,
            resamples=bootstrap,
            progress=not quiet,
        )
    page = report.write(output)
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        typer.echo(report.to_markdown())
        typer.echo(page)


def _protocols(
    name: str,
    source: FaceDataset,
    pairs: Path | None,
    folds: int | None,
    gallery: int,
    impostors: float,
    count: str,
    seed: int,
) -> list[AnyProtocol]:
    from .. import data, evaluate

    wanted: dict[str, Any] = {
        "lfw": data.LFW,
        "lfw-view1": data.LFW,
        "bin": data.VerificationBin,
        "ar": (data.AR, data.AR10P),
    }
    if name in wanted and not isinstance(source, wanted[name]):
        raise ValueError(f"dataset: expected one for the protocol {name}, got {type(source).__name__}")
    if (name == "pairs") != (pairs is not None):
        raise ValueError("--pairs: goes with the protocol pairs, and the other way round")
    if isinstance(source, data.LFW) and name in ("lfw", "lfw-view1"):
        return [evaluate.lfw(source, 2 if name == "lfw" else 1)]
    if isinstance(source, data.VerificationBin) and name == "bin":
        return [evaluate.packed_pairs(source, folds or 10)]
    if isinstance(source, data.AR | data.AR10P) and name == "ar":
        return [*evaluate.ar(source)]
    if pairs is not None:
        return [evaluate.listed_pairs(source, pairs, None, **({} if folds is None else {"folds": folds}))]
    fars = (0.01, 0.1) if impostors else ()
    return [
        evaluate.gallery_and_probes(
            source,
            gallery,
            impostors=impostors,
            fars=fars,
            seed=seed,
            count=count,  # type: ignore[arg-type]
        )
    ]
