"""A whole training run: from a recipe to weights in a folder, with logs, validation and checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..data import FaceDataset
from ..files import write_atomically
from ..losses.cosface import LargeMarginCosine
from ..losses.inputs import Mining
from ..losses.triplet import BatchTripletLoss, TripletLoss
from ..models import Preprocessing, build, feature_size
from ..models.registry import takes_classes
from ..progress import Report, progress
from .augment import Augment, occluder_of
from .batches import FromDisk, InMemory, PKBatches, Plan, Shuffled, source_of
from .checkpoint import load_checkpoint, save_checkpoint
from .engine import Engine, NotFinite, OptimizerConfig, Step, accelerator
from .faces import open_data, split
from .jitter import Jitter
from .log import Log, Meter
from .objective import Classify, Embed, Objective
from .recipe import Recipe, load, to_yaml
from .validate import Validation
from .weights import Trained, load_head, load_into

CHECKPOINT, BEST, LAST, RECIPE = "checkpoint.safetensors", "best.safetensors", "last.safetensors", "recipe.yaml"
#: What a resumed run may change: where and how it runs, not what comes out.
_FREE = {
    "device": None,
    "data": ("root", "in_memory", "memory", "workers"),
    "batch": ("accumulate",),
    "log": ("every", "tensorboard", "checkpoint"),
}


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        output: its folder.
        weights: the best by validation, or the last where there is none.
        steps, epochs: done.
        best, best_epoch: the metric, and the number of epochs after which it was reached (0: before training); None
            without validation.
        metric: its name.
        stopped: "" (all epochs), "early" (no better for ``validation.patience``) or "interrupted".
        images: that were trained on, over all epochs.
        left_out: images of people with too few (``data.min_images``).
        main: whether this is the process that writes files.
        seconds: of training in this call, without reading the data.
    """

    output: str
    weights: str
    steps: int
    epochs: int
    best: float | None
    best_epoch: int | None
    metric: str | None
    stopped: str
    images: int
    left_out: int
    main: bool
    seconds: float


# -- from a recipe to what it names ----------------------------------------------------------------------


def _network(recipe: Recipe, people: int, preprocessing: Preprocessing) -> tuple[nn.Module, dict[str, Any]]:
    part = recipe.network
    classes = people if recipe.loss.name == "cross_entropy" and takes_classes(part.name) else None
    network = build(part.name, classes, channels=preprocessing.channels, size=preprocessing.size, **part.arguments)
    spec = {"name": part.name, "classes": classes, "arguments": dict(part.arguments)}
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, spec


def _objective(recipe: Recipe, network: nn.Module, own: bool, people: int, p: Preprocessing, world: int) -> Objective:
    loss = recipe.loss
    mining = cast("Mining", loss.mining)
    if recipe.stage == "embed":
        if loss.name == "triplet":
            return Embed(network, TripletLoss(loss.margin, mining=mining, distributed=world > 1, seed=recipe.seed))
        return Embed(
            network, BatchTripletLoss(loss.margin, loss.beta, mining=mining, distributed=world > 1, seed=recipe.seed)
        )
    if own:
        return Classify(network, label_smoothing=loss.label_smoothing)
    size = feature_size(network, p.channels, p.size)
    head: nn.Module = nn.Linear(size, people)
    if loss.name == "large_margin_cosine":
        head = LargeMarginCosine(size, people, scale=loss.scale, margin=loss.cosine_margin)
    return Classify(network, head, loss.label_smoothing)


# -- the run ---------------------------------------------------------------------------------------------


def train(
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    show: bool | Report = True,
    faces: FaceDataset | None = None,
) -> Result:
    """Train a network by a recipe.

    In ``output``: ``recipe.yaml`` with every value, ``best.safetensors`` and ``last.safetensors``
    (:func:`occfast.train.weights.load` reads them), ``steps.csv``, ``validations.csv``, ``scores.jsonl``,
    ``tensorboard/`` and ``checkpoint.safetensors``.  Under ``torchrun`` every process calls this.

    Args:
        recipe: or its name or path.
        output: a folder, made if need be.
        resume: go on from its checkpoint (from the beginning where there is none yet).
        show: progress; a function is called with (images done, images in all).
        faces: the data set, in place of the one that the recipe names.

    Raises:
        ValueError: a wrong recipe; ``output`` holds another run; the loss is no longer finite.
        DataError: unreadable data or checkpoint.
        OSError: the disk is full; the checkpoint and weights written before are kept.
    """
    if not isinstance(recipe, Recipe):
        recipe = load(recipe)
    recipe.check()
    # A generator of its own: weights, dropout and what else PyTorch draws depend on the recipe's seed alone.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        return _Session(recipe, Path(output), resume, show, faces).run()


class _Session:
    def __init__(
        self, recipe: Recipe, output: Path, resume: bool, show: bool | Report, faces: FaceDataset | None
    ) -> None:
        self.recipe, self.output = recipe, output
        device = recipe.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.accelerator = accelerator(checks.device(device), recipe.precision)
        self.main = self.accelerator.is_main_process
        self.show: bool | Report = show if self.main else False
        found = _claim(recipe, output, resume)

        torch.manual_seed(recipe.seed)
        faces = open_data(recipe.data) if faces is None else faces
        rest, held = split(faces, recipe.validation, recipe.data.min_images, recipe.seed)
        kept, labels = faces.labels[rest].unique(return_inverse=True)
        self.people = [faces.people[int(person)] for person in kept]
        self.left_out = len(faces) - len(rest) - len(held)
        image = faces[int(rest[0])].image
        alignment = None if faces.alignment is None else faces.alignment.as_dict()
        size, color = (image.shape[1], image.shape[2]), recipe.data.color
        self.preprocessing = Preprocessing(size, color, recipe.data.mean, recipe.data.std, alignment)
        network, self.spec = _network(recipe, len(self.people), self.preprocessing)
        objective = _objective(
            recipe,
            network,
            self.spec["classes"] is not None,
            len(self.people),
            self.preprocessing,
            self.accelerator.num_processes,
        )
        if recipe.start is not None and found is None:
            load_into(network, recipe.start, fresh_classifier=recipe.fresh_classifier)
            if objective.head is not None and not recipe.fresh_classifier:
                load_head(objective.head, recipe.start)
        jitter = Jitter(**recipe.jitter)
        augment = Augment(
            self.preprocessing,
            None if jitter == Jitter(*[0.0] * len(asdict(jitter))) else jitter,
            occluder_of(recipe.occluder, self.preprocessing.size, recipe.seed),
        )
        part = recipe.batch
        if part.size > len(rest):
            raise ValueError(f"batch.size: expected at most {len(rest)}, the images to train on, got {part.size}")
        plan: Plan = Shuffled(len(rest), part.size)
        if part.images_each:
            plan = PKBatches(labels, part.size // part.images_each, part.images_each, recipe.seed)
        rule = asdict(recipe.optimizer)
        torch.manual_seed(recipe.seed + self.accelerator.process_index)
        self.engine = Engine(
            objective,
            plan,
            self._source(faces, rest),
            labels,
            OptimizerConfig(**rule),
            recipe.epochs,
            self.accelerator,
            augment,
            [faces.names[k] for k in rest.tolist()],
            recipe.seed,
            part.accumulate,
        )
        self.validation = None
        if len(held):
            metric = recipe.validation.metric or recipe.default_metric
            number = torch.full((len(faces.people),), -1).scatter(0, kept, torch.arange(len(kept)))
            truth = number[faces.labels[held]] if metric == "accuracy" else faces.labels[held]
            self.validation = Validation(
                self._source(faces, held), truth, self.preprocessing, metric, recipe.validation.pairs, recipe.seed
            )
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.latest: float | None = None
        self.stale, self.stopped, self.seconds = 0, "", 0.0
        self.meter = Meter(self.accelerator.device)
        if found is not None:
            tensors, values = found
            self.engine.load_state(tensors, values)
            self.best, self.best_epoch, self.stale = values["best"], values["best_epoch"], values["stale"]
            self.latest = values["latest"]
            self.stopped = values["stopped"]
            self.meter.load(values["meter"])
        self.log: Log | None = None
        if self.main:
            self.log = Log(output, self.engine.step, recipe.log.tensorboard)
            write_atomically(output / RECIPE, to_yaml(recipe).encode())

    def _source(self, faces: FaceDataset, indices: Tensor) -> InMemory | FromDisk:
        part = self.recipe.data
        return source_of(
            faces,
            indices,
            channels=self.preprocessing.channels,
            in_memory=part.in_memory,
            memory=part.memory,
            workers=part.workers,
            device=self.accelerator.device,
            show=self.show,
        )

    # -- running ---------------------------------------------------------------------------------------

    def run(self) -> Result:
        engine, recipe = self.engine, self.recipe
        start, batch = time.perf_counter(), engine.plan.size
        title = f"train {self.output.name}"
        try:
            with (
                progress(title, "images", self.show, lambda: self.meter.text) as report,
                _interrupts(engine.world == 1) as interrupted,
            ):
                if engine.step == 0 and recipe.start is not None:
                    self._validate(0)
                for step in () if self.stopped == "early" else engine.steps():
                    self.meter.add(step)
                    done = step.number + 1
                    if done % recipe.log.every == 0 or done == 1:
                        self._log(step)
                    report(done * batch, engine.total * batch)
                    if step.last and (step.epoch + 1) % recipe.validation.every == 0:
                        self._validate(step.epoch + 1)
                    if recipe.validation.patience and self.stale >= recipe.validation.patience:
                        self.stopped = "early"
                        break
                    if interrupted():
                        self.stopped = "interrupted"
                        break
                    if done % recipe.log.checkpoint == 0:
                        self._checkpoint()
                self._checkpoint()
                if self.stopped != "interrupted":
                    self._save(LAST)
        except NotFinite as error:
            names = "\n".join([f"step {error.step}", *error.names])
            write_atomically(self.output / f"not-finite-{self.engine.rank}.txt", names.encode())
            raise
        finally:
            if self.log is not None:
                self.log.close()
        self.seconds = time.perf_counter() - start
        return Result(
            output=str(self.output),
            weights=str(self.output / (LAST if self.best is None else BEST)),
            steps=engine.step,
            epochs=engine.epoch,
            best=self.best,
            best_epoch=self.best_epoch,
            metric=None if self.validation is None else self.validation.metric,
            stopped=self.stopped,
            images=engine.step * batch,
            left_out=self.left_out,
            main=self.main,
            seconds=self.seconds,
        )

    def _log(self, step: Step) -> None:
        row = self.meter.row(step, self.engine)
        if self.log is None:
            return
        objective = self.engine.objective
        if isinstance(objective, Embed):
            row |= {f"triplets/{name}": value for name, value in objective.stats.as_dict().items()}
            self.log.distributions(step.number + 1, objective.stats, "batch")
        self.log.step(row)

    def _validate(self, epoch: int) -> None:
        if self.validation is None:
            return
        found = self.validation.judge(self.engine)
        self.latest = found.value
        better = self.best is None or found.value > self.best + self.recipe.validation.min_gain
        if better:
            self.best, self.best_epoch, self.stale = found.value, epoch, 0
            self._save(BEST)
        else:
            self.stale += 1
        self.meter.validation = f"validation {100 * found.value:.1f} %"
        if self.log is not None:
            row = {"step": float(self.engine.step), "epoch": float(epoch), self.validation.metric: found.value}
            self.log.validation(row, found.scores)

    def _checkpoint(self) -> None:
        tensors, values = self.engine.state()
        values |= {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "latest": self.latest,
            "stale": self.stale,
            "meter": self.meter.state(),
            "stopped": self.stopped if self.stopped == "early" else "",
            "recipe": to_yaml(self.recipe),
        }
        if self.main:
            save_checkpoint(self.output / CHECKPOINT, tensors, values)

    def _save(self, name: str) -> None:
        if not self.main:
            return
        objective = self.engine.objective
        assert isinstance(objective, Classify | Embed)
        about = {
            "stage": self.recipe.stage,
            "loss": self.recipe.loss.name,
            "step": self.engine.step,
            "epoch": self.engine.epoch,
            "head": objective.head is not None,
            "validation": {self.validation.metric: self.latest} if self.validation is not None else {},
        }
        people = self.people if isinstance(objective, Classify) else []
        Trained(objective.network, self.preprocessing, self.spec, people, objective.head, about).save(
            self.output / name
        )


def _claim(recipe: Recipe, output: Path, resume: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state to go on from, or None for a new run.  Raises ValueError where the folder holds another run."""
    path = output / CHECKPOINT
    if not resume:
        if path.exists() or (output / RECIPE).exists():
            raise ValueError(f"output: {output} holds a run already; resume it, or choose another folder")
        return None
    if (output / RECIPE).exists():
        _same(recipe, load(output / RECIPE), output)
    return load_checkpoint(path) if path.exists() else None


def _same(recipe: Recipe, before: Recipe, output: Path) -> None:
    mine, theirs = asdict(recipe), asdict(before)
    for name, value in mine.items():
        free = _FREE.get(name, ())
        if free is None:
            continue
        old = theirs[name]
        pairs = {name: (old, value)}
        if isinstance(value, dict):
            pairs = {f"{name}.{key}": (old.get(key), value.get(key)) for key in {**old, **value} if key not in free}
        for key, (was, now) in pairs.items():
            if was != now:
                raise ValueError(f"{key}: {output} was begun with {was!r}, expected the same to resume, got {now!r}")


@contextmanager
def _interrupts(wanted: bool) -> Iterator[Any]:
    """Yields a function that tells whether the run was asked to stop (Ctrl-C, or the signal to terminate).

    The step at hand is finished and a checkpoint written; asked twice, it stops at once.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


__all__ = ["Result", "train"]
