"""``occfast map``: where covering the image makes a network fail."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .networks import embedding, load_any, prepared

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data import FaceDataset
    from ..models import Preprocessing
    from ..sweep import OcclusionMap

_BATCH = 64  # images that are read together
_TIMEOUT = timedelta(minutes=10)  # without a word from another process


def map_(
    model: Annotated[
        str,
        typer.Argument(
            help="Weights with their description (.safetensors of occfast train); TorchScript (.pt); weights "
            "(.safetensors or .pt) with --network; or module:function.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str,
        typer.Argument(
            help="As in occfast data show: a folder of identities, .rec, .npz, .bin, or lfw, orl, ar, ar10p, celeba "
            "(with :PATH where it is not in $OCCFAST_DATA).",
            show_default=False,
        ),
    ],
    occluder: Annotated[
        list[str] | None,
        typer.Option("--occluder", "-o", help="Height x width in pixels; may be repeated. [default: 20x40]"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder of the maps.")] = Path("maps"),
    method: Annotated[
        str, typer.Option(help="auto, dense, incremental: every position; adaptive, sampled: an estimate.")
    ] = "auto",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="sampled: largest standard error; adaptive: chance of a wrong label at a skipped position, or what "
            "interpolation of a real-valued score may miss."
        ),
    ] = None,
    score: Annotated[str, typer.Option(help="error, score_drop or similarity_drop.")] = "error",
    stride: Annotated[int, typer.Option(help="Pixels between positions.", min=1)] = 1,
    border: Annotated[str, typer.Option(help="clip: a center on every pixel; valid: whole occluders only.")] = "clip",
    fill: Annotated[
        str, typer.Option(help="What covers: black, gray, white (as the network sees them), mean or noise.")
    ] = "black",
    network: Annotated[
        str | None,
        typer.Option(help="That weights without a description are of: paper, resnet18, … or module:function."),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="People that --network tells apart.", min=1)] = None,
    size: Annotated[
        str | None, typer.Option(help="Height x width of the network's input. [default: what the weights say]")
    ] = None,
    color: Annotated[str | None, typer.Option(help="gray, RGB or BGR. [default: what the weights say]")] = None,
    mean: Annotated[float | None, typer.Option(help="The input is (pixel / 255 - mean) / std.")] = None,
    std: Annotated[float | None, typer.Option(help="[default: what the weights say; else mean 0.5, std 0.5]")] = None,
    template: Annotated[str | None, typer.Option(help="Align to this template, by landmarks.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images that are cropped already.")] = False,
    people: Annotated[
        Path | None, typer.Option(help="Names of the classes, one a line. [default: the weights' or the data's]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many images, drawn at random (--seed).", min=1)] = None,
    keep_wrong: Annotated[
        bool, typer.Option("--keep-wrong", help="Count images too that are wrong uncovered.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of the distribution P in the CSV (Eq. 4).", min=1e-6)] = 0.4,
    precision: Annotated[
        str | None, typer.Option(help="tf32 (GPU) or bf16: less than float32, and faster. [default: float32]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Positions in a forward pass.", min=1)] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Such as 2GiB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of --limit, of noise and of the positions of estimates.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a stopped run's checkpoint.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run code from the file: a pickled module, or the module:function it names.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Slide an occluder over faces and see where a network fails: maps (.npz, .csv), pictures and pages.

    On several processes: torchrun --nproc-per-node 2 -m occfast map …
    """
    from ..sweep import occlusion_map

    boxes = [_pair(text, "--occluder") for text in occluder or ["20x40"]]
    with _processes(device) as (rank, place):
        network_, preparation, names, faces = _open(
            model, dataset, network, classes, trust, size, color, mean, std, template, resize
        )
        if score == "similarity_drop":
            network_, names = embedding(network_), None
        elif people is not None:
            names = people.read_text(encoding="utf-8").splitlines()
        batches = _Batches(
            faces, preparation, names, limit, seed, shuffled=method == "sampled", labeled=score != "similarity_drop"
        )
        if batches.unknown and rank == 0:
            typer.echo(f"{batches.unknown} images of people whom the network doesn't know are left out", err=True)
        made = {}
        for box in boxes:
            stem = output / f"map-{box[0]}x{box[1]}"
            checkpoint = stem.with_suffix(".checkpoint")
            if rank == 0 and not resume:
                checkpoint.unlink(missing_ok=True)
            barrier()  # nobody looks for an old checkpoint while it is removed
            made[stem] = occlusion_map(
                network_.to(place),
                batches,
                occluder=box,
                stride=stride,
                border=border,  # type: ignore[arg-type]
                fill=_fill(fill, preparation),
                score=score,  # type: ignore[arg-type]
                method=_method(method, tolerance),
                seed=seed,
                batch_size=batch_size,
                memory_limit=memory_limit,
                progress=not quiet,
                checkpoint=checkpoint,
                skip_misclassified=not keep_wrong,
                precision=precision,  # type: ignore[arg-type]
            )
            if rank == 0:
                _write(made[stem], stem, temperature)
    if rank:
        return
    results = [_summary(m, stem) for stem, m in made.items()]
    if as_json:
        typer.echo(json.dumps({"model": model, "dataset": dataset, "images": len(batches.dataset), "maps": results}))
        return
    for one in results:
        typer.echo(f"{one['files']['page']}: {one['summary']}")
        if one["estimate"] is not None:
            typer.echo(f"  {one['estimate_says']}")


# -- processes -----------------------------------------------------------------------------------------


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, torch.device]]:
    """This process's number and device; under torchrun it joins the others."""
    import torch
    import torch.distributed as dist

    from .. import checks

    place = checks.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, place
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    yield dist.get_rank(), place
    # Only after success: where a process was lost there is nothing left to take leave of.
    dist.barrier()
    dist.destroy_process_group()


def barrier() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


# -- the network and the faces ---------------------------------------------------------------------------


def _open(
    model: str,
    dataset: str,
    network: str | None,
    classes: int | None,
    trust: bool,
    size: str | None,
    color: str | None,
    mean: float | None,
    std: float | None,
    template: str | None,
    resize: bool,
) -> tuple[nn.Module, Preprocessing, list[str] | None, FaceDataset]:
    """The network, how its images are prepared, whom its classes stand for, and the faces as it expects them."""
    from ..data import open_dataset
    from ..models import Preprocessing

    source = open_dataset(dataset)
    shape = source[0].image.shape
    given: dict[str, Any] = {"size": size and _pair(size, "--size"), "color": color, "mean": mean, "std": std}
    given = {name: value for name, value in given.items() if value is not None}
    plain = Preprocessing(**{"size": (shape[1], shape[2]), "color": "gray" if shape[0] == 1 else "RGB", **given})
    loaded = load_any(model, network=network, classes=classes, channels=plain.channels, size=plain.size, trust=trust)
    preparation = plain if loaded.preprocessing is None else dataclasses.replace(loaded.preprocessing, **given)
    return loaded.network, preparation, loaded.people, prepared(source, preparation, template, resize)


class _Batches:
    """Batches of prepared images and their classes, made as they are asked for; the same in every pass."""

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
            raise ValueError("dataset: expected faces of people whom the network knows, got none; see --people")
        order = order[:limit]
        #: Numbers of the images, in the order in which they come.
        self.dataset = (order if shuffled else order.sort().values).tolist()

    def __iter__(self) -> Iterator[Any]:
        import torch

        from ..data.images import recolor

        gray = self._preparation.color == "gray"
        for first in range(0, len(self.dataset), _BATCH):
            numbers = self.dataset[first : first + _BATCH]
            images = self._preparation(torch.stack([recolor(self._faces[k].image, gray) for k in numbers]))
            yield images if self._labels is None else (images, self._labels[numbers])


def _method(name: str, tolerance: float | None) -> Any:
    """Return the method with its options; what does not exist is left to ``occlusion_map`` to refuse."""
    from ..sweep import Adaptive, Sampled

    kinds: dict[str, Any] = {"adaptive": Adaptive, "sampled": Sampled}
    if tolerance is None:
        return name
    if name not in kinds:
        raise ValueError(f"--tolerance: expected --method adaptive or sampled, got {name}")
    return kinds[name](tolerance=tolerance)


def _pair(text: str, name: str) -> tuple[int, int]:
    height, _, width = text.lower().replace("×", "x").partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"{name}: expected height x width as in 20x40, got {text!r}")
    return int(height), int(width)


def _fill(name: str, preparation: Preprocessing) -> Any:
    shades = {"black": 0.0, "gray": 0.5, "white": 1.0}
    if name in shades:
        return (shades[name] - preparation.mean) / preparation.std
    if name not in ("mean", "noise"):
        raise ValueError(f"--fill: expected black, gray, white, mean or noise, got {name!r}")
    return name


# -- results -------------------------------------------------------------------------------------------

_FILES = {"map": ".npz", "picture": ".png", "page": ".html", "table": ".csv"}


def _write(m: OcclusionMap, stem: Path, temperature: float) -> None:
    import numpy as np

    from ..files import write_atomically

    m.save(stem.with_suffix(_FILES["map"]))
    m.save(stem.with_suffix(_FILES["picture"]))
    m.to_html(stem.with_suffix(_FILES["page"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns: dict[str, Any] = {"value": m.values, "standard_error": m.standard_error}
    if m.interval is not None:
        columns |= {"low": m.interval[0], "high": m.interval[1]}
    rows, across = m.centers
    columns["probability"] = m.distribution(temperature).probabilities.numpy()[np.ix_(rows, across)]
    writer.writerow(["row", "column", *columns])
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(across.tolist()):
            writer.writerow([row, column, *(f"{values[i, j]:.6g}" for values in columns.values())])
    write_atomically(stem.with_suffix(_FILES["table"]), text.getvalue().encode())


def _summary(m: OcclusionMap, stem: Path) -> dict[str, Any]:
    from ..sweep.estimate import as_json

    mean = {"accuracy": m.accuracy[0], "accuracy_std": m.accuracy[1]} if m.score == "error" else {}
    return {
        "occluder": list(m.occluder),
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
        "estimate_says": None if m.estimate is None else str(m.estimate),
        "summary": repr(m),
        "files": {name: str(stem.with_suffix(ending)) for name, ending in _FILES.items()},
    }
