"""The page of a finished run: curves, validation, and what was used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import pages
from ..files import write_atomically
from ..packages import require
from ..plots import new_figure, plain, png_data_uri
from ..progress import time_text
from .log import SCORES, STEPS, VALIDATIONS, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..models import Preprocessing
    from .recipe import Recipe
    from .session import Result

#: File of the page in the folder of a run.
PAGE = "report.html"
_SIZE = (4.8, 3.4)  # inches
_NOT_VALUES = ("step", "epoch", "decidability")


@dataclass(frozen=True)
class Used:
    """What a run was trained and validated on.

    Attributes:
        people, images: Numbers of people and images trained on.
        held: Number of images kept out of training.
        left_out: Number of images of people with too few.
        parameters: Number of the network's parameters.
        preprocessing: Preparation of the images.
        device: Name of the device.
        processes: Number of processes.
        compared: What each value of a validation compares, such as "6,000 pairs", by the value's name.
    """

    people: int
    images: int
    held: int
    left_out: int
    parameters: int
    preprocessing: Preprocessing
    device: str
    processes: int
    compared: Mapping[str, str]


def write_page(folder: Path, recipe: Recipe, result: Result, used: Used) -> Path:
    """Write ``report.html`` from the logs in the folder of a run, and return its path.

    Raises:
        MissingPackage: If Jinja or Matplotlib is not installed.
        OSError: If the disk is full; an old page is kept.
    """
    require("a page", "jinja2")  # before pictures are drawn
    steps, validations = read_rows(folder / STEPS), read_rows(folder / VALIDATIONS)
    page = pages.render(
        "occfast.train",
        "page.html",
        title=f"Training {folder.name}",
        headline=_headline(recipe, result),
        pictures=[
            {"uri": png_data_uri(figure), "text": text}
            for figure, text in _pictures(folder, steps, validations, result)
        ],
        validations=_validations(validations, used.compared),
        used=_used(recipe, result, used),
    )
    return write_atomically(folder / PAGE, page.encode())


def _headline(recipe: Recipe, result: Result) -> str:
    epochs = f"{result.epochs} of {recipe.epochs} epochs"
    stopped = ", stopped early" if result.stopped == "early" else ""
    if result.best is None:
        return f"{epochs}{stopped}, without validation"
    return f"Best {result.metric} {100 * result.best:.2f} % after epoch {result.best_epoch} ({epochs}{stopped})"


# -- curves --------------------------------------------------------------------------------------------


def _pictures(
    folder: Path, steps: list[dict[str, float]], validations: list[dict[str, float]], result: Result
) -> list[tuple[Figure, str]]:
    """Return the figures with their captions."""
    found = []
    if steps:
        found.append((_over(steps, ["loss"], "loss"), "Loss on the training batches, over steps."))
        if any(row["accuracy"] for row in steps):
            found.append((_over(steps, ["accuracy"], "accuracy"), "Accuracy on the training batches, over steps."))
    if validations:
        names = [name for name in validations[0] if name not in _NOT_VALUES]
        figure = _over(validations, names, "value", x="epoch", best=result.best_epoch)
        found.append(
            (figure, "Values of the validations, over epochs. The line marks the weights that are kept as best.")
        )
    if steps:
        found.append((_over(steps, ["learning_rate"], "learning rate"), "Learning rate, over steps."))
    scores = _last_scores(folder / SCORES)
    if scores is not None:
        found.append((_distances(scores), "Distances of pairs of one person and of two, in the last validation."))
    return found


def _over(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], label: str, *, x: str = "step", best: int | None = None
) -> Figure:
    """Draw columns of a log."""
    from matplotlib.ticker import MaxNLocator

    figure, ax = new_figure(_SIZE)
    mark = "-" if x == "step" and len(rows) > 1 else ".-"
    for name in names:
        ax.plot([row[x] for row in rows], [row[name] for row in rows], mark, label=plain(name))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best is not None:
        ax.axvline(best, color="#b9b4c6", linewidth=1, zorder=0)
    _label(ax, x, label)
    if len(names) > 1:
        ax.legend(fontsize=8)
    return figure


def _distances(scores: dict[str, Any]) -> Figure:
    figure, ax = new_figure(_SIZE)
    for key, name in (("positive", "one person"), ("negative", "two people")):
        counts = scores[key]
        ax.stairs([count / max(1, sum(counts)) for count in counts], scores["edges"], label=name, fill=True, alpha=0.5)
    _label(ax, "squared distance", "share of the pairs")
    ax.legend(fontsize=8)
    return figure


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.3)


def _last_scores(path: Path) -> dict[str, Any] | None:
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else None


# -- tables --------------------------------------------------------------------------------------------


def _validations(rows: list[dict[str, float]], compared: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return each value, what it compares, its best and its last number."""
    if not rows:
        return []
    found: list[tuple[str, ...]] = []
    for name in rows[0]:
        if name not in _NOT_VALUES:
            best = max(rows, key=lambda row: row[name])
            numbers = f"{100 * best[name]:.2f} %", f"{best['epoch']:.0f}", f"{100 * rows[-1][name]:.2f} %"
            found.append((name, compared.get(name, ""), *numbers))
    return found


def _used(recipe: Recipe, result: Result, used: Used) -> list[tuple[str, str]]:
    data, batch, optimizer, kept = recipe.data, recipe.batch, recipe.optimizer, recipe.validation
    left_out = f", {used.left_out:,} of people with fewer than {data.min_images} left out" if used.left_out else ""
    size, alignment = used.preprocessing.size, used.preprocessing.alignment
    aligned = "not aligned by this run" if alignment is None else f"aligned to {alignment['template']}"
    schedule = f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}"
    rows = {
        "Data": " ".join(filter(None, (data.name, data.root))),
        "Trained on": f"{used.images:,} images of {used.people:,} people{left_out}",
        "Kept out": f"{used.held:,} images, {100 * kept.share:g} % by {kept.by}" if used.held else "",
        "Images": f"{size[0]} × {size[1]}, {used.preprocessing.color}, {aligned}",
        "Occluders": ""
        if not recipe.occluder.share
        else f"on {100 * recipe.occluder.share:g} % of the images, "
        f"{recipe.occluder.size} pixels, located by {recipe.occluder.locations}",
        "Network": f"{recipe.network.name}, {used.parameters:,} parameters",
        "Started from": recipe.start or "random weights",
        "Loss": recipe.loss.name,
        "Optimizer": f"{schedule}, warm-up {100 * optimizer.warmup:g} %",
        "Batches": f"{batch.size} images"
        + (f", {batch.images_each} of each person" if batch.images_each else "")
        + f"; {result.steps:,} steps",
        "Seed": f"{recipe.seed}",
        "Device": f"{used.device}, {used.processes} process{'es' * (used.processes > 1)}",
        "Time": f"{time_text(result.seconds)} in the last part of the run",
        "Weights": result.weights,
    }
    return [(name, value) for name, value in rows.items() if value]
