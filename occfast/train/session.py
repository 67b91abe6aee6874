"""Training run: from a recipe to weights in a folder, with logs, validation and checkpoints."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .. import checks
from ..data import FaceDataset
from ..errors import DataError
from ..files import write_atomically
from ..losses import (
    BatchTripletLoss,
    ClassifierLoss,
    CrossBatchMemory,
    LargeMarginCosine,
    Mining,
    PartialFC,
    TripletLoss,
)
from ..models import Preprocessing, build, feature_size, features
from ..models.preprocessing import Color
from ..models.registry import takes_classes, to_channels_last
from ..models.weights import Trained, description, load_head, load_into
from ..progress import Report
from ..progress import progress as show_progress
from .augment import Augment, occlusions_of
from .batches import FromDisk, InMemory, PKBatches, Plan, Shuffled, source_of
from .checkpoint import save_checkpoint
from .drawn import check_landmarks
from .engine import Engine, NotFinite, OptimizerConfig, Step, accelerator
from .faces import data_changes, fingerprint, open_data, split, split_rows, write_split
from .jitter import Jitter
from .log import Log, Meter
from .objective import Classify, Embed, Objective
from .page import Used, write_page
from .recipe import Recipe, load, to_yaml
from .resolution import LowResolution
from .run import BEST, CHECKPOINT, LAST, RECIPE, SPLIT, claim, clear, locked, other_processes
from .sets import VerificationSet, open_sets
from .validate import Validation

#: Images at a time whose features the weights in `start` give.
_TEACHER_BATCH = 64
#: Images of each person behind an imprinted row.
_IMPRINTED = 8


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        output: Folder of the run.
        weights: Path of the best weights by validation, or of the last ones without validation.
        steps, epochs: Numbers of steps and epochs done.
        best, best_epoch: Best value of the metric, and the number of epochs after which it was reached (0: before
            training); None without validation.
        metric: Name of the metric, for a verification set ``NAME/accuracy`` or ``NAME/tar_at_FAR``; None without
            validation.
        pairs: Number of pairs that the metric "verification", or that of a verification set, compares; else None.
        stopped: "" (all epochs), "early" (no better for ``validation.patience``) or "interrupted".
        images: Number of images trained on, over all epochs.
        left_out: Number of images of people with fewer than ``data.min_images``.
        main: True in the process that writes files.
        seconds: Duration of training in this call, without reading the data.
    """

    output: str
    weights: str
    steps: int
    epochs: int
    best: float | None
    best_epoch: int | None
    metric: str | None
    pairs: int | None
    stopped: Literal["", "early", "interrupted"]
    images: int
    left_out: int
    main: bool
    seconds: float


# -- network and objective ----------------------------------------------------------------------


def _network(recipe: Recipe, people: int, preprocessing: Preprocessing) -> tuple[nn.Module, dict[str, Any]]:
    part = recipe.network
    own = recipe.loss.name == "cross_entropy" and not recipe.classifier.sharded
    classes = people if own and takes_classes(part.name) else None
    network = build(part.name, classes, channels=preprocessing.channels, size=preprocessing.size, **part.arguments)
    spec = {"name": part.name, "classes": classes, "arguments": dict(part.arguments)}
    to_channels_last(network, preprocessing.channels, preprocessing.size)
    _check_takes(network.eval(), preprocessing)
    return network.train(), spec


@torch.no_grad()
def _check_takes(network: nn.Module, p: Preprocessing) -> None:
    """Refuse images that a network can't take, such as those too small for its layers, before anything is written."""
    try:
        network(torch.zeros(1, p.channels, *p.size))
    except RuntimeError as error:
        raise ValueError(
            f"data.size: the network can't take images [1, {p.channels}, {p.size[0]}, {p.size[1]}] "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def _objective(recipe: Recipe, network: nn.Module, own: bool, people: int, p: Preprocessing, world: int) -> Objective:
    loss = recipe.loss
    mining = cast("Mining", loss.mining)
    if recipe.stage == "embed":
        mined = (
            TripletLoss(loss.margin, mining=mining, distributed=world > 1, seed=recipe.seed)
            if loss.name == "triplet"
            else BatchTripletLoss(loss.margin, loss.beta, mining=mining, distributed=world > 1, seed=recipe.seed)
        )
        if not loss.memory_size:
            return Embed(network, mined, loss.distillation)
        size = feature_size(network, p.channels, p.size)
        return Embed(network, CrossBatchMemory(mined, size, memory_size=loss.memory_size), loss.distillation)
    if own:
        if loss.distillation:
            raise ValueError(
                f"loss.distillation: expected 0 for {recipe.network.name}, whose own classifier is trained, got "
                f"{loss.distillation:g}; loss.name=large_margin_cosine has a classifier beside the network"
            )
        return Classify(network, label_smoothing=loss.label_smoothing)
    size = feature_size(network, p.channels, p.size)
    if recipe.classifier.sharded:
        if people < world:
            raise ValueError(
                f"classifier.sharded: expected at least {world} people to train on, one for each process, got {people}"
            )
        sharded = PartialFC(
            size,
            people,
            loss=cast("ClassifierLoss", loss.name),
            scale=loss.scale,
            margin=loss.cosine_margin,
            label_smoothing=loss.label_smoothing,
            sampling=recipe.classifier.sampling,
            seed=recipe.seed,
        )
        return Classify(network, sharded, distillation=loss.distillation)
    head: nn.Module = nn.Linear(size, people)
    if loss.name == "large_margin_cosine":
        head = LargeMarginCosine(size, people, scale=loss.scale, margin=loss.cosine_margin)
    return Classify(network, head, loss.label_smoothing, loss.distillation)


def _first_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the rows of the first ``count`` images of each person, in order, int64 [N]."""
    order = labels.argsort(stable=True)
    sizes = labels.bincount()
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[place < count].sort().values


@torch.no_grad()
def _imprint(head: nn.Module, before: Tensor, labels: Tensor) -> None:
    """Make each person's mean direction the classifier's row; rows keep the mean length that they were drawn with."""
    assert isinstance(head, LargeMarginCosine | PartialFC)
    total = torch.zeros(head.n_classes, before.shape[1]).index_add_(0, labels, nn.functional.normalize(before))
    rows = nn.functional.normalize(total) * head.weight.norm(dim=1).mean().cpu()
    if isinstance(head, PartialFC):
        head.load_whole({"weight": rows})
    else:
        head.weight.copy_(rows)


# -- the run ---------------------------------------------------------------------------------------------


def train(
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data_changed: bool = False,
    progress: bool | Report = True,
    faces: FaceDataset | None = None,
) -> Result:
    """Train a network by a recipe.

    The folder ``output`` receives ``recipe.yaml`` with every value, ``best.safetensors`` and ``last.safetensors``
    (:func:`occfast.train.load_network` reads them), ``split.csv``, ``steps.csv``, ``validations.csv``,
    ``scores.jsonl``, ``tensorboard/`` and ``checkpoint.safetensors``; at its end ``report.html``, a page with the
    curves, the validations and what was used. Under ``torchrun``, every process calls this
    function.

    Args:
        recipe: Recipe, or the name or path of one.
        output: Folder, created if necessary.
        resume: Continue from the checkpoint in ``output``, or begin if there is none.
        overwrite: Replace a run in ``output``.
        data_changed: Resume although people, images or split differ from those that the run was begun with.
        progress: True shows a bar, False nothing; a function is called with (images done, images in all).
        faces: Data set to use in place of the one that the recipe names.

    Returns:
        The result of the run.

    Raises:
        ValueError: If the recipe is invalid; if ``output`` holds another run, or another process trains in it; if the
            data differ from those of the checkpoint; if the loss, a weight or a validation is no longer finite.
        DataError: If the data or the checkpoint cannot be read.
        ProcessLost: If another process of the group died.
        OSError: If the disk is full; the checkpoint and the weights written before are kept.
    """
    if not isinstance(recipe, Recipe):
        recipe = load(recipe)
    recipe.check()
    # Own generators: weights, dropout and everything else that PyTorch draws depend on the recipe's seed alone.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), other_processes(), contextlib.ExitStack() as stack:
        session = _Session(recipe, Path(output), progress, stack)
        session.prepare(resume, overwrite, data_changed, faces)
        return session.run()


class _Session:
    def __init__(self, recipe: Recipe, output: Path, progress: bool | Report, stack: contextlib.ExitStack) -> None:
        self.recipe, self.output = recipe, output
        device = recipe.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.accelerator = accelerator(checks.device(device), recipe.precision)
        self.main = self.accelerator.is_main_process
        self.progress: bool | Report = progress if self.main else False
        if self.main:
            stack.enter_context(locked(output))
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.latest: dict[str, float] = {}  # values of the last validation
        self.stale, self.seconds = 0, 0.0
        self.stopped: Literal["", "early", "interrupted"] = ""
        self.meter = Meter(self.accelerator.device)
        self.log: Log | None = None
        self.validation: Validation | None = None
        self.sets: list[VerificationSet] = []

    # -- preparing -------------------------------------------------------------------------------------

    def prepare(self, resume: bool, overwrite: bool, data_changed: bool, faces: FaceDataset | None) -> None:
        """Open the data, build the network and restore a checkpoint; nothing is written until all of it succeeded."""
        recipe, output = self.recipe, self.output
        found = claim(recipe, output, resume, overwrite)
        torch.manual_seed(recipe.seed)
        faces = open_data(recipe.data) if faces is None else faces
        rest, held = split(faces, recipe.validation, recipe.data.min_images, recipe.seed)
        kept, labels = faces.labels[rest].unique(return_inverse=True)
        self.people = [faces.people[int(person)] for person in kept]
        self.left_out = len(faces) - len(rest) - len(held)
        image = faces[int(rest[0])].image
        alignment = None if faces.alignment is None else faces.alignment.as_dict()
        size, color = (image.shape[1], image.shape[2]), cast("Color", recipe.data.color)
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
            unused = load_into(
                network, recipe.start, fresh_classifier=recipe.fresh_classifier, classes=self.spec["classes"]
            )
            own = self.spec["classes"] is not None
            if objective.head is not None and not recipe.fresh_classifier and not recipe.classifier.imprint:
                own = load_head(objective.head, recipe.start, unused)
            if own and not recipe.fresh_classifier:
                self._check_people(recipe.start)
        jitter = Jitter(**recipe.jitter)
        augment = Augment(
            self.preprocessing,
            None if jitter == Jitter(*[0.0] * len(asdict(jitter))) else jitter,
            *occlusions_of(recipe.occluder, recipe.drawn, self.preprocessing.size, recipe.seed),
            LowResolution(**asdict(recipe.low_resolution)) if recipe.low_resolution.share else None,
        )
        landmarks = None if faces.landmarks is None else faces.landmarks[rest]
        if augment.needs_landmarks:
            check_landmarks(landmarks, self.preprocessing.size, [faces.names[k] for k in rest.tolist()])
        source = self._source(faces, rest)
        everything = torch.arange(len(rest))
        targets = self._features_before(source, everything) if recipe.loss.distillation else None
        if recipe.classifier.imprint and found is None:
            assert objective.head is not None
            rows = _first_of_each(labels, _IMPRINTED)
            before = self._features_before(source, rows) if targets is None else targets[rows]
            _imprint(objective.head, before, labels[rows])
        part = recipe.batch
        if part.size > len(rest):
            raise ValueError(f"batch.size: expected at most {len(rest)}, the images to train on, got {part.size}")
        if recipe.loss.memory_size >= len(rest):
            raise ValueError(
                f"loss.memory_size: expected less than {len(rest)}, the images to train on, lest an image meet itself, "
                f"got {recipe.loss.memory_size}"
            )
        plan: Plan = Shuffled(len(rest), part.size)
        if part.images_each:
            people = part.size // part.images_each
            if people > len(self.people):
                raise ValueError(
                    f"batch.size: a batch needs {people} people (batch.size {part.size} / batch.images_each "
                    f"{part.images_each}), the data has {len(self.people)} to train on"
                )
            plan = PKBatches(labels, people, part.images_each, recipe.seed)
        torch.manual_seed(recipe.seed + self.accelerator.process_index)
        self.engine = Engine(
            objective,
            plan,
            source,
            labels,
            OptimizerConfig(**asdict(recipe.optimizer)),
            recipe.epochs,
            self.accelerator,
            augment,
            [faces.names[k] for k in rest.tolist()],
            recipe.seed,
            part.accumulate,
            landmarks if augment.needs_landmarks else None,
            targets,
        )
        validated = None
        if len(held):
            metric = recipe.held_metric
            number = torch.full((len(faces.people),), -1).scatter(0, kept, torch.arange(len(kept)))
            truth = number[faces.labels[held]] if metric == "accuracy" else faces.labels[held]
            validated = self._source(faces, held)
            self.validation = Validation(
                validated,
                truth,
                self.preprocessing,
                metric,
                recipe.validation.pairs,
                recipe.seed,
                [faces.names[k] for k in held.tolist()],
            )
        self._open_sets(faces, rest)
        pixels = [part.images for part in (source, validated) if isinstance(part, InMemory)]
        whole = len(pixels) == 1 + (validated is not None)
        gray = self.preprocessing.channels == 1
        self.fingerprint = fingerprint(
            faces, rest, held, gray, pixels if whole else [], landmarks if augment.needs_landmarks else None
        )
        self.fingerprint |= {f"sets/{one.name}": one.digest for one in self.sets}
        if found is not None:
            tensors, values = found
            changed = self._check_data(values.get("data"), split_rows(faces, rest, held), data_changed)
            self._restore(tensors, values)
            if changed:
                self.engine.restart_epoch()
                if isinstance(objective, Embed) and isinstance(objective.loss, CrossBatchMemory):
                    objective.loss.reset()  # the numbers of people may be others now
        if self.main:
            if overwrite:
                clear(output)
            self.log = Log(output, self.engine.step, recipe.log.tensorboard)
            write_split(output / SPLIT, faces, rest, held)
            write_atomically(output / RECIPE, to_yaml(recipe).encode())

    @torch.no_grad()
    def _features_before(self, source: InMemory | FromDisk, rows: Tensor) -> Tensor:
        """Return the features that the weights in ``start`` give stored images, float32 [len(rows), D]."""
        recipe, device = self.recipe, self.accelerator.device
        assert recipe.start is not None
        teacher, spec = _network(recipe, len(self.people), self.preprocessing)
        load_into(teacher, recipe.start, fresh_classifier=recipe.fresh_classifier, classes=spec["classes"])
        find, found = features(teacher.eval().to(device)), []
        with show_progress("features before the training", "images", self.progress) as report:
            for images in source(list(rows.split(_TEACHER_BATCH))):
                found.append(find(self.preprocessing(images.to(device))).float().cpu())
                report(sum(map(len, found)), len(rows))
        return torch.cat(found)

    def _restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what :meth:`_checkpoint` wrote; raise DataError if it is not whole."""
        try:
            self.engine.load_state(tensors, values)
            best, epoch, latest = values["best"], values["best_epoch"], values["latest"]
            if not isinstance(latest, dict):  # as versions before verification sets wrote it
                latest = {} if latest is None else {self.recipe.metric: latest}
            for name, value in (("best", best), ("best_epoch", epoch), *latest.items()):
                if value is not None:
                    checks.number(value, name)
            self.best, self.best_epoch, self.latest = best, epoch, latest
            self.stale = checks.integer(values["stale"], "stale", 0)
            self.stopped = cast("Any", checks.choice(values["stopped"], "stopped", ("", "early")))
            self.meter.load(values["meter"])
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            if str(error).startswith("checkpoint: "):  # says that it belongs to another network
                raise
            why = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise DataError(f"{self.output / CHECKPOINT}: not a whole checkpoint ({why})") from error

    def _check_people(self, start: str) -> None:
        """Refuse a classifier of other people, which fits if their number is the same."""
        theirs = description(start).get("people")
        if theirs and list(theirs) != self.people:
            count = sum(a != b for a, b in zip(theirs, self.people, strict=False))
            first = next((a, b) for a, b in zip(theirs, self.people, strict=False) if a != b)
            raise ValueError(
                f"start: the classifier in {start} is for other people: {count} of {len(self.people)} differ, such as "
                f"{first[0]!r} there and {first[1]!r} here; fresh_classifier=true begins a new one"
            )

    def _check_data(self, before: dict[str, str] | None, rows: list[tuple[str, str, str]], data_changed: bool) -> bool:
        """Return whether the training data differ from the checkpoint's; raise ValueError unless that is meant."""
        path = self.output / CHECKPOINT
        if before is None:
            if not data_changed:
                raise ValueError(
                    f"resume: {path} was written by a version of occfast before 0.1.0, which did not record its data "
                    "and split them in another way: trained images would come into the validation; start a new run "
                    "from its weights with start=, or resume it with --data-changed (data_changed=True)"
                )
            return True
        changes = data_changes(before, self.fingerprint, self.output / SPLIT, rows)
        other = [
            f"the pairs or images of the verification set {one.name} differ"
            for one in self.sets
            if before.get(f"sets/{one.name}") != self.fingerprint[f"sets/{one.name}"]
        ]
        if (changes or other) and not data_changed:
            what = "; ".join(filter(None, [changes, *other]))
            raise ValueError(
                f"resume: the data are not those that {self.output} was begun with: {what}; if that is meant, "
                "--data-changed (data_changed=True) continues with them"
            )
        if not changes:  # a run that now reads from disk does not forget the digest of all pixels
            self.fingerprint = {**before, **self.fingerprint}
        return bool(changes)

    def _open_sets(self, faces: FaceDataset, rest: Tensor) -> None:
        """Open the verification sets and check that one of their values, or the images kept out, decides."""
        recipe, labels = self.recipe, faces.labels.tolist()
        trained = [faces.names[k] for k in rest.tolist()], [faces.people[labels[k]] for k in rest.tolist()]
        with warnings.catch_warnings():
            if not self.main:  # one process warns
                warnings.simplefilter("ignore")
            self.sets = open_sets(recipe.sets, recipe.data, self.preprocessing, self._source, trained)
        known = [name for one in self.sets for name in one.columns]
        if self.sets and recipe.metric == recipe.held_metric and self.validation is None:
            raise ValueError(
                f"validation.share: expected images to be kept out of training for validation.metric={recipe.metric}, "
                f"got none; or choose the metric among {', '.join(known)}"
            )
        if self.sets and recipe.metric != recipe.held_metric and recipe.metric not in known:
            raise ValueError(f"validation.metric: expected one of {', '.join(known)}, got {recipe.metric!r}")

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
            progress=self.progress,
        )

    # -- running ---------------------------------------------------------------------------------------

    def run(self) -> Result:
        engine, recipe = self.engine, self.recipe
        start, batch = time.perf_counter(), engine.plan.size
        title = f"train {self.output.name}"
        try:
            with (
                show_progress(title, "images", self.progress, lambda: self.meter.text) as report,
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
        result = Result(
            output=str(self.output),
            weights=str(self.output / (LAST if self.best is None else BEST)),
            steps=engine.step,
            epochs=engine.epoch,
            best=self.best,
            best_epoch=self.best_epoch,
            metric=recipe.metric if self.validation is not None or self.sets else None,
            pairs=self._pairs(),
            stopped=self.stopped,
            images=engine.step * batch,
            left_out=self.left_out,
            main=self.main,
            seconds=self.seconds,
        )
        if self.main and self.stopped != "interrupted":
            write_page(self.output, recipe, result, self._used())
        return result

    def _used(self) -> Used:
        """Return what the page says that was used."""
        compared = {name: f"{len(one.protocol.same):,} pairs" for one in self.sets for name in one.columns}
        if self.validation is not None:
            count, images = self.validation.count, len(self.validation.labels)
            compared[self.validation.metric] = f"{images:,} images" if count is None else f"{count:,} pairs"
        network = self.engine.objective.network
        assert isinstance(network, nn.Module)
        return Used(
            people=len(self.people),
            images=len(self.engine.labels),
            held=0 if self.validation is None else len(self.validation.labels),
            left_out=self.left_out,
            parameters=sum(p.numel() for p in network.parameters()),
            preprocessing=self.preprocessing,
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
            compared=compared,
        )

    def _pairs(self) -> int | None:
        """Return the number of pairs behind the value that decides."""
        for one in self.sets:
            if self.recipe.metric in one.columns:
                return len(one.protocol.same)
        return None if self.validation is None else self.validation.count

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
        if self.validation is None and not self.sets:
            return
        scores, self.latest = None, {}
        if self.validation is not None:
            found = self.validation.evaluate(self.engine)
            scores, self.latest = found.scores, {self.validation.metric: found.value}
        for one in self.sets:
            self.latest |= one.evaluate(self.engine)
        value = self.latest[self.recipe.metric]
        better = self.best is None or value > self.best + self.recipe.validation.min_gain
        if better:
            self.best, self.best_epoch, self.stale = value, epoch, 0
            self._save(BEST)
        else:
            self.stale += 1
        shown = {} if self.validation is None else {"validation": self.latest[self.validation.metric]}
        shown |= {one.name: self.latest[f"{one.name}/accuracy"] for one in self.sets}
        self.meter.validation = ", ".join(f"{name} {100 * value:.1f} %" for name, value in shown.items())
        if self.log is not None:
            self.log.validation({"step": float(self.engine.step), "epoch": float(epoch), **self.latest}, scores)

    def _checkpoint(self) -> None:
        tensors, values = self.engine.state()
        values |= {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "latest": self.latest,
            "stale": self.stale,
            "meter": self.meter.state(),
            "data": self.fingerprint,
            "stopped": self.stopped if self.stopped == "early" else "",
            "recipe": to_yaml(self.recipe),
        }
        if self.main:
            save_checkpoint(self.output / CHECKPOINT, tensors, values)

    def _save(self, name: str) -> None:
        objective = self.engine.objective
        assert isinstance(objective, Classify | Embed)
        head = objective.head
        if isinstance(head, PartialFC):
            head = head.whole()  # every process sends its rows
        if not self.main:
            return
        about = {
            "stage": self.recipe.stage,
            "loss": self.recipe.loss.name,
            "step": self.engine.step,
            "epoch": self.engine.epoch,
            "head": head is not None,
            "validation": self.latest,
        }
        people = self.people if isinstance(objective, Classify) else []
        Trained(objective.network, self.preprocessing, self.spec, people, head, about).save(self.output / name)


@contextmanager
def _interrupts(wanted: bool) -> Iterator[Any]:
    """Yield a function that returns whether the run was asked to stop, by Ctrl-C or SIGTERM.

    The caller finishes the step and writes a checkpoint; a second signal stops at once.
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
