"""``occfast evaluate``: evaluate recognizers on clean and occluded faces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError
from ..files import read_json
from . import options
from .networks import load_recognizer, pair, prepared

if TYPE_CHECKING:
    from ..data import FaceDataset
    from ..evaluate import Comparison
    from ..evaluate.protocols import AnyProtocol

#: Description of each protocol, and its default data set.
PROTOCOLS = {
    "lfw": ("LFW View 2, 6,000 pairs in ten folds", "lfw"),
    "lfw-view1": ("LFW View 1, for development", "lfw"),
    "folder": ("verification on pairs drawn from a folder of people", None),
    "pairs": ("verification on a list of pairs (--pairs)", None),
    "bin": ("verification on a .bin of pairs", None),
    "ar": ("AR, clean references against other light, sunglasses and scarves", "ar"),
    "search": ("identification, some images of each person against the others", None),
    "scores": ("a CSV file with the columns score, same and optionally fold; needs no network", None),
}
_LIST = "; ".join(f"{name}: {text}" for name, (text, _) in PROTOCOLS.items())


def evaluate(
    protocol: Annotated[str, typer.Argument(help=_LIST + ".", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="A folder of people, .rec, .npz, .bin, or lfw, orl, ar, ar10p, celeba (followed by :PATH if it is not "
            "in $OCCFAST_DATA).",
            show_default="lfw or ar for their protocols",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Network: .safetensors written by occfast train, TorchScript (.pt), ONNX (.onnx), weights with "
            "--network, or module:function. Repeat to compare networks.",
            show_default=False,
            rich_help_panel="Network",
        ),
    ] = None,
    occlude: Annotated[
        list[str] | None,
        typer.Option(
            help="Also evaluate under this occlusion; may be repeated. Bands: forehead, eyes, nose, mouth, chin. "
            "sunglasses, sunglasses:STYLE. mask, mask:KIND, mask:FOLDER/NAME. scarf, scarf:PATTERN. hand, hand:PLACE. "
            "Blocks: "
            "block:20x40, block:20x40@ROW,COLUMN, block:20x40@nose. Noise: noisy:20x40, noisy:20x40@ROW,COLUMN, "
            "noisy:20x40@P.npz. "
            "Join several with +.",
            show_default=False,
            rich_help_panel="Protocol",
        ),
    ] = None,
    cover: Annotated[
        str,
        typer.Option(help="Images to occlude: probe (the reference stays clean) or both.", rich_help_panel="Protocol"),
    ] = "probe",
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="List of pairs; required by, and only valid with, the pairs protocol.",
            show_default=False,
            rich_help_panel="Protocol",
        ),
    ] = None,
    pair_count: Annotated[
        int | None,
        typer.Option(
            help="Pairs of each kind (folder).", min=2, show_default="all, at most 3000", rich_help_panel="Protocol"
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Number of folds (folder, pairs, bin, scores).",
            min=2,
            show_default="10 for folder and bin",
            rich_help_panel="Protocol",
        ),
    ] = None,
    gallery: Annotated[
        int | None,
        typer.Option(help="Gallery images per person (search).", min=1, show_default="1", rich_help_panel="Protocol"),
    ] = None,
    impostors: Annotated[
        float | None,
        typer.Option(
            help="Share of people left out of the gallery (search, open set).",
            min=0,
            max=0.99,
            show_default="0",
            rich_help_panel="Protocol",
        ),
    ] = None,
    count: Annotated[
        str | None,
        typer.Option(
            help="Unit of a rank (search): people or images.", show_default="people", rich_help_panel="Protocol"
        ),
    ] = None,
    network: options.Network = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes of --network.", min=1, rich_help_panel="Network")
    ] = None,
    size: options.Size = None,
    color: options.Color = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preset: options.Preset = None,
    template: options.Template = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="CSV file with landmarks, as occfast data landmarks writes it.", rich_help_panel="Images"),
    ] = None,
    validation_of: options.ValidationOf = None,
    resize: options.Resize = False,
    aligned: options.Aligned = False,
    flip: Annotated[
        str, typer.Option(help="Fusion with the mirror image: sum, concat or none.", rich_help_panel="Images")
    ] = "sum",
    bootstrap: Annotated[
        int | None,
        typer.Option(
            help="Resamples of people for the intervals; 0 treats pairs and probes as independent.",
            min=0,
            show_default="1000 where the people are known",
            rich_help_panel="Protocol",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.", min=1, rich_help_panel="Run")] = 64,
    workers: Annotated[
        int, typer.Option(help="Number of processes that read images.", min=0, rich_help_panel="Run")
    ] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.", rich_help_panel="Run")] = "auto",
    seed: Annotated[
        int,
        typer.Option(
            help="Random seed for occlusions, drawn pairs, gallery and impostors.", rich_help_panel="Protocol"
        ),
    ] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the report.", rich_help_panel="Run")
    ] = Path("evaluation"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an earlier run in --output: its features are used again.", rich_help_panel="Run"
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate recognizers on clean and occluded faces.

    Writes report.html, report.md, report.json, roc.csv and pictures of the curves.

    With several networks, the report has paired tests between the first and each other one.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    what = dataset or PROTOCOLS[protocol][1]
    if what is None:
        raise ValueError(f"dataset: expected one after {protocol}, got none")
    _check_options(
        protocol,
        {
            "--pairs": (pairs, ("pairs",)),
            "--pair-count": (pair_count, ("folder",)),
            "--folds": (folds, ("folder", "pairs", "bin", "scores")),
            "--gallery": (gallery, ("search",)),
            "--impostors": (impostors, ("search",)),
            "--count": (count, ("search",)),
            "--validation-of": (validation_of, ("folder", "pairs", "search")),
        },
    )
    if protocol == "pairs" and pairs is None:
        raise ValueError("--pairs: expected a list of pairs, which the pairs protocol requires, got none")
    with options.only_run(output, "evaluate", "writes a report into"):
        _check_output(output, resume, overwrite)
        if protocol == "scores":
            report = _of_scores(Path(what), folds, models, occlude, output if resume else None)
        else:
            from ..data import open_dataset
            from ..evaluate import Comparison, compare
            from ..evaluate.fingerprints import fingerprint
            from ..occlude import named_occlusion

            if not models:
                raise ValueError("--model: expected a network, got none")
            source = open_dataset(what, landmarks=landmarks)
            if validation_of is not None:
                from ..train import validation_of as kept_out

                source = kept_out(source, validation_of)
            chosen = _protocols(
                protocol, source, pairs, pair_count, folds, gallery or 1, impostors or 0.0, count or "people", seed
            )
            for k, name in enumerate(occlude or []):
                if name in (occlude or [])[:k]:
                    raise ValueError(f"--occlude: expected each occlusion once, got {name!r} twice")
            covers = {name: named_occlusion(name, seed) for name in occlude or []}
            loaded = {
                name: load_recognizer(
                    path,
                    source,
                    network=network,
                    classes=classes,
                    size=None if size is None else pair(size, "--size"),
                    color=color,
                    mean=mean,
                    std=std,
                    preset=preset,
                    trust=trust,
                    device=device,
                    template=template,
                    resize=resize,
                    aligned=aligned,
                    quiet=quiet,
                )
                for name, path in _model_names(models).items()
            }
            if resume:
                prints = {fingerprint(one.embed) for one, _ in loaded.values()}
                _check_report(output, {"network": prints, "data": {what}, "protocol": {p.name for p in chosen}})
            if overwrite:
                for path in (output / "features").glob("features-*.npz"):
                    path.unlink()
            reports = {
                name: compare(
                    chosen,
                    one.embed,
                    prepared(source, how, template, resize, aligned=aligned, preset=one.template),
                    how,
                    covers,
                    cover=cover,  # type: ignore[arg-type]
                    flip=flip,  # type: ignore[arg-type]
                    batch_size=batch_size,
                    workers=workers,
                    checkpoint=output / "features",
                    resume=resume,
                    resamples=bootstrap,
                    model_name=name,
                    dataset_name=what,
                    progress=not quiet,
                )
                for name, (one, how) in loaded.items()
            }
            report = next(iter(reports.values()))
            if len(reports) > 1:
                report = Comparison.join(reports, **({} if bootstrap is None else {"resamples": bootstrap}))
        page = report.write(output)
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        typer.echo(report.to_markdown())
        typer.echo(page)


def _check_options(protocol: str, given: Mapping[str, tuple[object, tuple[str, ...]]]) -> None:
    for name, (value, protocols) in given.items():
        if value is not None and protocol not in protocols:
            raise ValueError(f"{name}: only valid with {', '.join(protocols)}, got it with {protocol}")


def _check_output(output: Path, resume: bool, overwrite: bool) -> None:
    options.check_resume(resume, overwrite)
    report, features = (output / "report.json").exists(), any((output / "features").glob("features-*.npz"))
    if (report or features) and not resume and not overwrite:
        what = "a report" if report else "features of an unfinished run"
        raise ValueError(
            f"{output} holds {what}: --resume uses its features again, --overwrite replaces it; or choose another "
            "--output"
        )


def _check_report(output: Path, wanted: Mapping[str, set[str | None]]) -> None:
    """Refuse to replace the report of another network, data set or protocol on --resume."""
    if not (output / "report.json").exists():
        return
    found = read_json(output / "report.json")
    try:
        settings, rows = found.get("settings") or {}, found.get("rows") or []
        networks = [one.get("model") for one in (settings.get("models") or {"": settings}).values()]
        known = {
            "network": set(networks) - {None},
            "data": {settings.get("data")} - {None},  # not recorded by version 0.1.0
            "protocol": {row.get("protocol") for row in rows},
        }
    except (AttributeError, TypeError) as error:
        raise DataError(f"{output / 'report.json'}: not a report of occfast evaluate ({error})") from error
    for name, before in known.items():
        if before and not before <= wanted[name]:
            raise ValueError(f"--resume: {output} holds a report of another {name}; choose another --output")


def _model_names(models: Sequence[str]) -> dict[str, str]:
    """Return the networks by name: the stem of the file, with as many folders as are needed to tell them apart."""
    if len(set(models)) < len(models):
        raise ValueError(f"--model: expected different networks, got {', '.join(models)}")
    parts = [Path(model).with_suffix("").parts for model in models]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, models, strict=True))
    return {model: model for model in models}


def _of_scores(
    path: Path, folds: int | None, models: list[str] | None, occlude: list[str] | None, resumed: Path | None
) -> Comparison:
    from ..evaluate import evaluate_scores, read_scores

    for name, value in (("--model", models), ("--occlude", occlude)):
        if value:
            raise ValueError(f"{name}: not valid with scores, which need no network")
    scores, same, ids = read_scores(path)
    if ids is not None and folds is not None:
        raise ValueError(f"--folds: {path} has a column fold, got --folds {folds} as well")
    if resumed is not None:
        _check_report(resumed, {"network": set(), "data": set(), "protocol": {path.stem}})
    return evaluate_scores(scores, same, ids if ids is not None else folds, name=path.stem)


def _protocols(
    name: str,
    source: FaceDataset,
    pairs: Path | None,
    pair_count: int | None,
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
        "ar": (data.AR, data.AR10P, data.AR100),
    }
    if name in wanted and not isinstance(source, wanted[name]):
        raise ValueError(f"dataset: expected one for the protocol {name}, got {type(source).__name__}")
    if isinstance(source, data.LFW) and name in ("lfw", "lfw-view1"):
        return [evaluate.lfw(source, 2 if name == "lfw" else 1)]
    if isinstance(source, data.VerificationBin) and name == "bin":
        return [evaluate.packed_pairs(source, folds=folds or 10)]
    if isinstance(source, data.AR | data.AR10P | data.AR100) and name == "ar":
        return [*evaluate.ar(source)]
    if pairs is not None:
        return [evaluate.listed_pairs(source, pairs, folds=folds)]
    if name == "folder":
        return [evaluate.drawn_pairs(source, pair_count, folds=folds or 10, seed=seed)]
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
