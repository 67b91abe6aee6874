"""``occfast map``: occlusion maps of a network on a data set of faces."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .forecast import outputs_of, seconds_each
from .networks import load_recognizer, pair, prepared

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..data import FaceDataset
    from ..models import Preprocessing, Recognizer
    from ..sweep import MapComparison, OcclusionMap, SweepGrid
    from ..sweep.options import Method

_BATCH = 64  # images that are read together
_TIMEOUT = timedelta(minutes=10)  # for a message from another process
_MANY = 500_000  # evaluations
_LONG = 600.0  # seconds of a sweep from which faster settings are suggested


def map_(
    model: Annotated[str, typer.Argument(help=f"Network: {options.MODEL_HELP}", show_default=False)],
    dataset: Annotated[
        str,
        typer.Argument(
            help="Faces: a folder with one subfolder per person, a .rec, .npz or .bin file, or lfw, orl, ar, ar10p or "
            "celeba (with :PATH if it is not in $OCCFAST_DATA).",
            show_default=False,
        ),
    ],
    occluder: Annotated[
        list[str] | None,
        typer.Option(
            help="Height x width in pixels, disk:30 or disk:30x20 for a disk or an ellipse, or a black and white "
            "picture (.png) whose white pixels are covered. Repeat it for more maps.",
            show_default="20x40",
        ),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="One map, the average over all --occluder (border clip).")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the maps.")] = Path("maps"),
    score: Annotated[
        str,
        typer.Option(
            help="error, score_drop or probability_drop for a classifier; similarity_drop for an embedding network "
            "(drop of the cosine similarity to the image without the occluder), or mismatch (whether it is below "
            "--threshold)."
        ),
    ] = "error",
    method: Annotated[
        str,
        typer.Option(
            help="auto, dense or incremental evaluate every position; adaptive (maps of single images) and sampled "
            "(the mean map) estimate from a fraction of them."
        ),
    ] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="sampled: stop at this standard error. adaptive: allowed probability of a wrong label at a skipped "
            "position or, with other scores than error, allowed error of interpolation.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Cosine similarity below which the recognizer rejects a face (see occfast audit), for mismatch; with "
            "similarity_drop it adds the share of rejected images at each position.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[int, typer.Option(help="Pixels between positions.", min=1)] = 1,
    border: Annotated[
        str,
        typer.Option(help="clip: a center on every pixel, the occluder cut at the edge; valid: whole occluders only."),
    ] = "clip",
    region: Annotated[
        str | None,
        typer.Option(
            help="TOP,LEFT,BOTTOM,RIGHT in pixels: positions inside this part of the image only.", show_default=False
        ),
    ] = None,
    fill: Annotated[
        str, typer.Option(help="Content of the occluder: black, gray, white, mean (of each image), noise or blur.")
    ] = "black",
    network: Annotated[
        str | None,
        typer.Option(
            help="Architecture, for weights that do not record it: paper, resnet18, … or module:function.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes of --network.", min=1, show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Height x width of the network's input.", show_default="as the weights record, else the images'"
        ),
    ] = None,
    color: Annotated[
        str | None, typer.Option(help="gray, RGB or BGR.", show_default="as the weights record, else the images'")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help=options.SCALE_HELP, show_default="as the weights record, else 0.5")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean.", show_default=False)] = None,
    preset: Annotated[str | None, typer.Option(help=options.PRESET_HELP, show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option(help="Align faces to this template.", show_default="as the weights record")
    ] = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(help="CSV file with landmarks, as occfast data landmarks writes it.", show_default=False),
    ] = None,
    validation_of: Annotated[
        Path | None,
        typer.Option(
            "--validation-of",
            help="Folder of a run of occfast train on this data set: take only the images that it kept out of "
            "training, so that occluders are not placed by images that the network is trained on.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize cropped images instead of aligning them.")] = False,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The images are aligned as the weights expect; only resize them.")
    ] = False,
    people: Annotated[
        Path | None,
        typer.Option(
            help="Text file with the name of each class, one per line.",
            show_default="as the weights record, else the data set's people",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use at most this many images, chosen at random.", min=1, show_default=False)
    ] = None,
    keep_misclassified: Annotated[
        bool | None,
        typer.Option(
            "--keep-misclassified/--skip-misclassified",
            help="Keep images that are misclassified even without an occluder.",
            show_default="skip for error, else keep",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the probabilities in the table (Eq. 4).", min=1e-6)
    ] = 0.4,
    precision: Annotated[
        str | None, typer.Option(help="tf32 (GPU) or bf16: faster and less exact.", show_default="float32")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Positions per forward pass.", min=1, show_default="chosen automatically")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Memory limit for forward passes, e.g. 2GiB.", show_default="a quarter of what is free"),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Random seed for --limit, noise and the positions of estimates.")] = 0,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="--output of an earlier run of another network on the same images: adds a paired test of the "
            "difference to the page and the results.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run in --output; finished maps are kept.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --output.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code that the file contains or names: a pickle or module:function.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute occlusion maps: where an occluder on the face makes a network fail.

    For each --occluder, writes the map (.npz), a picture (.png), a page (.html) and a table (.csv).

    On several processes: torchrun --nproc-per-node 2 -m occfast map …
    """
    from ..files import read_text
    from ..sweep import occlusion_map
    from ..sweep.processes import Processes

    stems = _occluders(occluder or ["20x40"], average, output)
    within = None if region is None else _region(region)
    chosen = _method(method, tolerance)
    kind = _score(score, threshold, method)
    rejected_below = threshold if score == "similarity_drop" else None
    others = {stem: _earlier(compare / stem.with_suffix(_FILES["map"]).name) for stem in stems if compare}
    with _processes(device) as place, ExitStack() as stack:
        group = Processes()
        with group.guard():  # one process looks, before any of them writes
            if group.rank == 0:
                stack.enter_context(options.only_run(output, "map", "writes maps into"))
                _check_output(list(stems), resume, overwrite)
        found, preparation, faces = _open(
            model,
            dataset,
            landmarks,
            {
                "network": network,
                "classes": classes,
                "trust": trust,
                "size": size and pair(size, "--size"),
                "color": color,
                "mean": mean,
                "std": std,
                "preset": preset,
                "device": str(place),
                "quiet": quiet,
            },
            {"template": template, "resize": resize, "aligned": aligned},
            validation_of,
        )
        network_, names, content = found.network, found.people, _fill(fill, preparation)
        labeled = score not in ("similarity_drop", "mismatch")
        if not labeled:
            network_, names = found.embedding(), None
        elif people is not None:
            names = read_text(people).splitlines()
        batches = _Batches(faces, preparation, names, limit, seed, shuffled=method == "sampled", labeled=labeled)
        first = next(iter(batches))
        outputs = outputs_of(network_, (first[0] if labeled else first)[:1].to(place))
        if labeled:
            _check_classes(outputs, names, faces.people)
        speak = group.rank == 0
        if found.note and speak:
            typer.echo(f"{model}: {found.note}; every position takes a whole forward pass", err=True)
        if batches.unknown and speak:
            typer.echo(f"{batches.unknown} images of people who are not classes of the network are left out", err=True)
        made, comparisons = {}, {}
        for stem, box in stems.items():
            if speak and not quiet:
                _announce(box, stride, border, within, preparation.size, batches, method, network_, place)
            made[stem] = occlusion_map(
                network_,
                batches,
                occluder=box,
                stride=stride,
                border=border,  # type: ignore[arg-type]
                region=within,
                fill=content,
                score=kind,
                method=chosen,
                seed=seed,
                batch_size=batch_size,
                memory_limit=memory_limit,
                progress=not quiet,
                checkpoint=_checkpoint(stem),
                resume=not overwrite,
                skip_misclassified=None if keep_misclassified is None or not labeled else not keep_misclassified,
                precision=precision,  # type: ignore[arg-type]
            )
            if speak:
                comparisons[stem] = _compared(made[stem], others.get(stem), faces.labels[batches.dataset])
                _write(made[stem], stem, temperature, comparisons[stem], rejected_below)
                _warn_of_skipped(made[stem])
    if not speak:
        return
    results = [_summary(m, stem, comparisons[stem], rejected_below) for stem, m in made.items()]
    if as_json:
        typer.echo(json.dumps({"model": model, "dataset": dataset, "images": len(batches.dataset), "maps": results}))
        return
    for one in results:
        typer.echo(f"{one['files']['page']}: {one['summary']}")
        if rejected_below is not None:
            typer.echo(
                f"  rejected below {rejected_below:g}: {one['rejected']:.1%} of the images on average over positions, "
                f"{one['most_rejected']:.1%} at the worst"
            )
        if one["estimate"] is not None:
            typer.echo(f"  {one['estimate_text']}")
        if one["comparison"] is not None:
            typer.echo(f"  compared with {compare}: {one['comparison_text']}")


def _score(score: str, threshold: float | None, method: str) -> Any:
    """Return the score; a threshold that no map could use, or that is missing, is refused before any work."""
    from .. import checks
    from ..sweep import Mismatch

    if score == "mismatch":
        if threshold is None:
            raise ValueError("--threshold: required by --score mismatch, such as the one that occfast audit states")
        checks.number(threshold, "--threshold", above=-1.0)
        return Mismatch(threshold)
    if threshold is not None:
        checks.number(threshold, "--threshold", high=1.0, above=-1.0)
        if score != "similarity_drop" or method == "sampled":
            raise ValueError(
                "--threshold: only valid with --score mismatch, or with --score similarity_drop and a --method that "
                f"keeps maps of single images, got --score {score} and --method {method}"
            )
    return score


# -- earlier runs --------------------------------------------------------------------------------------


def _checkpoint(stem: Path) -> Path:
    """Return the file that a sweep continues from: its checkpoint, or the finished map."""
    unfinished, finished = stem.with_suffix(".checkpoint"), stem.with_suffix(_FILES["map"])
    return finished if finished.exists() and not unfinished.exists() else unfinished


def _check_output(stems: Sequence[Path], resume: bool, overwrite: bool) -> None:
    """Refuse to lose an earlier run. Nothing is deleted."""
    options.check_resume(resume, overwrite)
    if resume or overwrite:
        return
    for path in (stem.with_suffix(ending) for stem in stems for ending in (".checkpoint", _FILES["map"])):
        if path.exists():
            what = "an unfinished sweep" if path.suffix == ".checkpoint" else "a map"
            raise ValueError(
                f"{path} holds {what}: --resume continues the run and keeps finished maps, --overwrite replaces them; "
                "or choose another --output"
            )


def _earlier(path: Path) -> OcclusionMap:
    """Read the map to compare with, before any work is done."""
    from ..sweep import OcclusionMap

    if not path.is_file():
        raise ValueError(f"--compare: expected a folder with a map for each --occluder, there is no {path}")
    return OcclusionMap.load(path)


def _compared(m: OcclusionMap, other: OcclusionMap | None, people: Tensor) -> MapComparison | None:
    """Compare maps; images of one person are not independent.

    A difference of the data or the settings costs the comparison, not the map.
    """
    if other is None:
        return None
    try:
        return m.compare(other, groups=people.numpy())
    except ValueError as error:
        typer.echo(f"--compare: no comparison ({error})", err=True)
        return None


# -- what to expect ------------------------------------------------------------------------------------


def _announce(
    box: Any,
    stride: int,
    border: str,
    region: tuple[int, int, int, int] | None,
    size: tuple[int, int],
    batches: _Batches,
    method: str,
    network: nn.Module,
    place: torch.device,
) -> None:
    """Say how much work a map is before it begins, and how long it will take."""
    from ..progress import time_text
    from ..sweep import SweepGrid

    grids = [
        SweepGrid.over(size, each, stride=stride, border=border, region=region)  # type: ignore[arg-type]
        for each in (box if isinstance(box, list) else [box])
    ]
    images, positions = len(batches.dataset), sum(grid.positions for grid in grids)
    total = images * positions
    boxes = ", ".join(grid.occluder_text for grid in grids)
    text = f"occluder {boxes}: {images:,} images, {positions:,} positions each, {total:,} evaluations"
    batch = next(iter(batches))
    seconds = seconds_each(network, (batch[0] if isinstance(batch, tuple) else batch).to(place)) * total
    faster = 1.0
    if seconds > _LONG and method in ("auto", "incremental"):
        faster = max(1.0, _speedup(network, size, grids[0], region, images))
    text += f", about {time_text(seconds / faster)}"
    if method in ("adaptive", "sampled"):
        text += f" in full; {method} takes a fraction of them"
    elif seconds / faster > _LONG or total > _MANY:
        text += "; a larger --stride, --limit, or --method adaptive or sampled take less"
    typer.echo(text, err=True)


def _speedup(
    network: nn.Module, size: tuple[int, int], grid: SweepGrid, region: tuple[int, int, int, int] | None, images: int
) -> float:
    """Predict how many times as fast as forward passes the exact sweep is."""
    from ..sweep import explain

    try:
        found = explain(
            network, size, grid.occluder, stride=grid.stride, border=grid.border, region=region, images=images
        )
        return found.speedup
    except (ValueError, TypeError, RuntimeError):  # the sweep says what is wrong with the network
        return 1.0


def _check_classes(outputs: Any, names: list[str] | None, people: Sequence[str]) -> None:
    """Refuse outputs that are not classes of these people, such as the dimensions of an embedding."""
    import torch

    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
        return  # the sweep refuses it
    found, wanted = outputs.shape[1], len(people if names is None else names)
    if found != wanted:
        whose = "in the data set" if names is None else "named as its classes"
        raise ValueError(
            f"model: {found} outputs, but {wanted} people are {whose}; for an embedding network give --score "
            "similarity_drop, for a classifier of other people name its classes with --people"
        )


def _warn_of_skipped(m: OcclusionMap) -> None:
    if m.n_skipped > m.n_images:
        typer.echo(
            f"{m.n_skipped} of {m.n_images + m.n_skipped} images are misclassified even without an occluder and are "
            "left out; are --people, --color, --mean and --std right?",
            err=True,
        )


# -- processes -----------------------------------------------------------------------------------------


@contextmanager
def _processes(device: str) -> Iterator[torch.device]:
    """Join the other processes under torchrun; yields this process's device."""
    import torch
    import torch.distributed as dist

    from .. import checks

    place = checks.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield place
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    yield place
    # Only after success: where a process was lost nobody answers.
    dist.barrier()
    dist.destroy_process_group()


# -- the network and the faces ---------------------------------------------------------------------------


def _open(
    model: str,
    dataset: str,
    landmarks: Path | None,
    loading: dict[str, Any],
    alignment: dict[str, Any],
    validation_of: Path | None = None,
) -> tuple[Recognizer, Preprocessing, FaceDataset]:
    """Open the network and the faces.

    Args:
        model, dataset, landmarks: As on the command line.
        loading: Options of :func:`load_recognizer`.
        alignment: Options of :func:`prepared`.
        validation_of: Run whose validation images alone are taken; None: all images.

    Returns:
        The network, its preprocessing, and the faces as it expects them.
    """
    from ..data import open_dataset

    source = open_dataset(dataset, landmarks=landmarks)
    if validation_of is not None:
        from ..train import validation_of as kept_out

        source = kept_out(source, validation_of)
    found, preparation = load_recognizer(model, source, **loading, **alignment)
    template, resize, aligned = (alignment[name] for name in ("template", "resize", "aligned"))
    faces = prepared(source, preparation, template, resize, aligned=aligned, preset=found.template)
    size = tuple(faces[0].image.shape[1:])
    if size != tuple(preparation.size):
        raise ValueError(
            "dataset: expected images of {}x{}, the size of the network's input, got {}x{}; align them with "
            "--template, or resize cropped ones with --resize".format(*preparation.size, *size)
        )
    return found, preparation, faces


class _Batches:
    """Batches of prepared images and their classes, read as they are needed; the same in every pass.

    Attributes:
        dataset: Numbers of the images, in their order.
        unknown: Number of images left out because their people are not classes of the network.
    """

    def __init__(
        self,
        faces: FaceDataset,
        preparation: Preprocessing,
        people: list[str] | None,
        limit: int | None,
        seed: int,
        *,
        shuffled: bool,
        labeled: bool,
    ) -> None:
        import torch

        self._faces, self._preparation = faces, preparation
        classes = list(range(len(faces.people)))
        if people is not None:
            number = {name: k for k, name in enumerate(people)}
            classes = [number.get(name, -1) for name in faces.people]
        self._labels = torch.tensor(classes)[faces.labels] if labeled else None
        order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(seed))
        if self._labels is not None:
            order = order[self._labels[order] >= 0]
        self.unknown = len(faces) - len(order)
        if not len(order):
            raise ValueError("dataset: expected faces of people who are classes of the network, got none; see --people")
        order = order[:limit]
        self.dataset = (order if shuffled else order.sort().values).tolist()

    def __iter__(self) -> Iterator[Any]:
        import torch

        from ..data.images import recolor

        gray = self._preparation.color == "gray"
        for first in range(0, len(self.dataset), _BATCH):
            numbers = self.dataset[first : first + _BATCH]
            images = self._preparation(torch.stack([recolor(self._faces[k].image, gray) for k in numbers]))
            yield images if self._labels is None else (images, self._labels[numbers])


def _method(name: str, tolerance: float | None) -> Method:
    """Return the method with its options."""
    from .. import checks
    from ..sweep import Adaptive, Sampled
    from ..sweep.options import METHODS

    kinds: dict[str, Any] = {"adaptive": Adaptive, "sampled": Sampled}
    found: Any = checks.choice(name, "--method", METHODS)
    if tolerance is not None and name not in kinds:
        raise ValueError(f"--tolerance: only valid with --method adaptive or sampled, got it with {name}")
    if tolerance is not None:
        found = kinds[name](tolerance=tolerance)
    return found  # type: ignore[no-any-return]


def _occluders(texts: Sequence[str], average: bool, output: Path) -> dict[Path, Any]:
    """Return the occluder of each map, or the list of them that it averages, by the map's path without its ending."""
    found: dict[str, Any] = {}
    for text in texts:
        name, occluder = _occluder(text)
        if name in found:  # the maps would have one name
            raise ValueError(f"--occluder: expected each name once, got {name!r} twice")
        found[name] = occluder
    if average:
        return {output / "map-average": list(found.values())}
    return {output / f"map-{name}": occluder for name, occluder in found.items()}


def _occluder(text: str) -> tuple[str, Any]:
    """Return the name of an occluder in file names, and its size or mask."""
    from ..sweep import disk

    if text.lower().endswith(".png"):
        from ..data.images import decode
        from ..files import read_bytes

        covered = (decode(read_bytes(text), text, gray=True)[0] > 127).numpy()
        if not covered.any():
            raise ValueError(f"--occluder: {text} has no white pixel")
        return Path(text).stem, covered
    kind, _, size = text.rpartition(":")
    if kind not in ("", "disk"):
        raise ValueError(f"--occluder: expected height x width as in 20x40, disk:30 or a .png, got {text!r}")
    height, width = pair(size if "x" in size.lower() or not kind else f"{size}x{size}", "--occluder")
    return (f"disk-{height}x{width}", disk((height, width))) if kind else (f"{height}x{width}", (height, width))


def _region(text: str) -> tuple[int, int, int, int]:
    """Return the numbers that a text such as 10,20,60,80 states."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and len(part) <= 9 for part in parts):
        raise ValueError(f"--region: expected top,left,bottom,right as in 10,20,60,80, got {text!r}")
    top, left, bottom, right = map(int, parts)
    return top, left, bottom, right


def _fill(name: str, preparation: Preprocessing) -> Any:
    shades = {"black": 0.0, "gray": 0.5, "white": 1.0}
    if name in shades:
        return preparation.scaled(shades[name])
    if name not in ("mean", "noise", "blur"):
        raise ValueError(f"--fill: expected black, gray, white, mean, noise or blur, got {name!r}")
    return name


# -- results -------------------------------------------------------------------------------------------

_FILES = {"map": ".npz", "picture": ".png", "page": ".html", "table": ".csv"}


def _write(
    m: OcclusionMap, stem: Path, temperature: float, comparison: MapComparison | None, threshold: float | None
) -> None:
    """Write a map, its picture, its page and its table."""
    import numpy as np

    from ..files import write_atomically

    m.save(stem.with_suffix(_FILES["picture"]))
    m.to_html(stem.with_suffix(_FILES["page"]), comparison=comparison, threshold=threshold)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns: dict[str, Any] = {"value": m.values, "standard_error": m.standard_error}
    if m.interval is not None:
        columns |= {"low": m.interval[0], "high": m.interval[1]}
    if threshold is not None:
        columns["rejected"] = m.rejection_rate(threshold)
    rows, across = m.centers
    columns["probability"] = m.distribution(temperature).probabilities.numpy()[np.ix_(rows, across)]
    writer.writerow(["row", "column", *columns])
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(across.tolist()):
            writer.writerow([row, column, *(f"{values[i, j]:.6g}" for values in columns.values())])
    write_atomically(stem.with_suffix(_FILES["table"]), text.getvalue().encode())
    m.save(stem.with_suffix(_FILES["map"]))  # the last file, since the checkpoint is removed after it


def _summary(m: OcclusionMap, stem: Path, comparison: MapComparison | None, threshold: float | None) -> dict[str, Any]:
    """Return the results for JSON."""
    from ..sweep.estimate import as_json

    mean: dict[str, Any] = {}
    if m.binary:
        mean = {"accuracy": m.accuracy[0], "accuracy_std": m.accuracy[1]}
    if threshold is not None:
        rejected = m.rejection_rate(threshold)
        mean = {"threshold": threshold, "rejected": float(rejected.mean()), "most_rejected": float(rejected.max())}
    return {
        "occluder": list(m.occluder),
        "occluders": m.occluder_text,
        "method": m.method,
        "precision": m.precision,
        "score": m.score,
        "images": m.n_images,
        "left_out": m.n_skipped,
        "evaluations": m.n_evaluations,
        "seconds": m.seconds,
        "mean": float(m.values.mean()),
        "lowest": float(m.values.min()),
        "highest": float(m.values.max()),
        **mean,
        "estimate": as_json(m.estimate),
        "estimate_text": None if m.estimate is None else str(m.estimate),
        "comparison": None if comparison is None else comparison.about(),
        "comparison_text": None if comparison is None else str(comparison),
        "summary": repr(m),
        "files": {name: str(stem.with_suffix(ending)) for name, ending in _FILES.items()},
    }
