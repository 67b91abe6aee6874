"""Settings of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from .. import checks
from ..losses import Mining
from ..models.preprocessing import COLORS, Preprocessing, per_channel
from ..models.presets import PRESETS
from ..occlude.locations import NORMAL_SPREAD
from .drawn import DrawnOccluders
from .jitter import Jitter

#: Losses of each stage.
_LOSSES = {"classify": ("cross_entropy", "large_margin_cosine"), "embed": ("triplet", "batch_triplet")}


#: Suffixes of lists of pairs.
PAIR_LISTS = (".txt", ".csv", ".tsv", ".lst")


@dataclass
class DataPart:
    """Data set of faces.

    Attributes:
        name: "orl", "lfw", "celeba", "folder", "recordio" or another kind of :func:`occfast.data.open_dataset`, or
            ``module:function`` that returns a ``FaceDataset``.
        root: Folder or file of the data set; None for data sets that need none.
        arguments: Further arguments of the data set.
        preset: Preparation that a known family of recognizers expects, one of ``occfast.models.PRESETS``: it sets
            template, size, color, mean and std. ``template`` may be null beside it, for faces that are aligned.
        template: Template of ``occfast.data`` to align the faces to as they are read; None for faces that are aligned.
        size: [height, width] of the images; None for the template's size.
        color: Colors of the network's input: "gray", "RGB" or "BGR".
        mean, std: The network's input is (x / 255 - mean) / std for 8-bit pixels x: one number, or one for each of
            three channels.
        min_images: People with fewer images are left out; the run reports how many images that are.
        in_memory: Keep all decoded images in memory; None: if they need at most ``memory``.
        memory: Memory limit for ``in_memory``, such as "4GiB".
        workers: Processes that read images from disk.
    """

    name: str = "???"
    root: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    template: str | None = None
    size: list[int] | None = None
    color: str = "gray"
    mean: Any = 0.5
    std: Any = 0.5
    min_images: int = 1
    in_memory: bool | None = None
    memory: str = "4GiB"
    workers: int = 2


@dataclass(frozen=True)
class SetPart:
    """One of the verification sets of ``validation.sets``, where a text alone states ``set``.

    Attributes:
        set: "lfw" (View 2, in $OCCFAST_DATA) or "lfw:PATH"; the path of a ``.bin``; or that of a list of pairs (.txt,
            .csv, .tsv, .lst).
        name: Name in logs and for ``validation.metric``; None: "lfw", or the file's name without its ending.
        images: Folder or data set with the images of a list of pairs; None: the folder that holds the list.
        landmarks: CSV file with landmarks to align by; None: those of the data set.
        aligned: The faces are aligned as those to train on; they are resized if their size differs.
        folds: Number of folds of a ``.bin`` or of a list without folds, as successive runs; None: 10.
    """

    set: str
    name: str | None = None
    images: str | None = None
    landmarks: str | None = None
    aligned: bool = False
    folds: int | None = None

    @classmethod
    def of(cls, entry: object, key: str) -> SetPart:
        """Read an entry of ``validation.sets``; raise TypeError or ValueError, naming ``key``, for anything else."""
        values = {"set": entry} if isinstance(entry, str) else entry
        if not isinstance(values, Mapping):
            raise TypeError(f"{key}: expected lfw, a path or {{set: …}}, got {entry!r}")
        known = [item.name for item in fields(cls)]
        if unknown := [str(name) for name in values if name not in known]:
            raise ValueError(f"{key}: expected keys among {', '.join(known)}, got {', '.join(unknown)}")
        for name in ("set", "name", "images", "landmarks"):
            if not isinstance(values.get(name), str) and (name == "set" or values.get(name) is not None):
                raise TypeError(f"{key}.{name}: expected a text, got {values.get(name)!r}")
        checks.flag(values.get("aligned", False), f"{key}.aligned")
        if values.get("folds") is not None:
            checks.integer(values["folds"], f"{key}.folds", 2)
        found = cls(**values)
        if not re.fullmatch(r"[\w.+-]+", found.title) or found.title in ("accuracy", "verification", "step", "epoch"):
            raise ValueError(
                f"{key}.name: expected letters, digits, '.', '_', '+' and '-', and neither accuracy nor verification, "
                f"got {found.title!r}; give it another name"
            )
        if found.images is not None and not found.is_list:
            raise ValueError(f"{key}.images: only valid for a list of pairs, got it for {found.set}")
        return found

    @property
    def title(self) -> str:
        """Name in logs."""
        kind, colon, _ = self.set.partition(":")
        if self.name is not None:
            return self.name
        return kind if kind == "lfw" and (colon or kind == self.set) else Path(self.set).stem

    @property
    def is_list(self) -> bool:
        """Whether it is a list of pairs."""
        return Path(self.set).suffix.lower() in PAIR_LISTS


@dataclass
class ValidationPart:
    """Validation during training.

    Attributes:
        share: Share of the images (or people) kept out of training; 0 for no validation. The name of each and the seed
            alone decide about it, so adding others does not move it.
        by: "images": other images of the same people; "people": other people.
        sets: Verification sets to score at every validation: "lfw", "lfw:PATH", a ``.bin``, a list of pairs, or a
            :class:`SetPart` as a mapping. They are aligned or resized as the images to train on.
        metric: Value that decides which weights are best. Of the images kept out: "accuracy" (share of images assigned
            to the right person), "verification" (accuracy over pairs in ten folds) or ``module:function`` (a ``Metric``
            of :mod:`occfast.train.validate`). Of a set: its name (accuracy), or ``NAME/tar_at_0.001``. None: the first
            of ``sets``; without any, the stage's default.
        pairs: Largest number of pairs for "verification", half of them of one person.
        every: Epochs between validations.
        patience: Stop after this many validations without a new best; 0: never.
        min_gain: Smallest improvement that counts as a new best.
    """

    share: float = 0.1
    by: str = "images"
    sets: list[Any] = field(default_factory=list)
    metric: str | None = None
    pairs: int = 6000
    every: int = 1
    patience: int = 0
    min_gain: float = 0.0


@dataclass
class NetworkPart:
    """Network architecture.

    A recipe that starts from weights of another run takes the architecture of those weights, unless it is stated here.

    Attributes:
        name: One of ``occfast.models.NETWORKS``, or ``module:function``.
        arguments: Arguments of that function besides classes, channels and size.
    """

    name: str = "paper"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class LossPart:
    """Loss.

    Attributes:
        name: "cross_entropy" or "large_margin_cosine" (stage "classify"), "triplet" or "batch_triplet" ("embed").
        label_smoothing: Label smoothing of the cross-entropy, in [0, 1).
        scale, cosine_margin: Scale and margin of the large margin cosine loss.
        margin, beta, mining: Options of the triplet losses (α and β of trigueros2018's Eqs. 6 and 9).
        memory_size: Number of embeddings of earlier batches that triplets are mined among as well
            (:class:`~occfast.losses.CrossBatchMemory`); 0: none. Less than the number of images to train on.
        distillation: Weight of the mean of 1 − cosine between the features of a training image, as it is jittered and
            occluded, and those that the weights in ``start`` give the stored image: what occlusion changes is
            undone, what was known before is kept. Needs ``start`` and a classifier beside the network, or the stage
            "embed".
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    scale: float = 64.0
    cosine_margin: float = 0.35
    margin: float = 0.5
    beta: float = 0.7
    mining: str = "violating"
    memory_size: int = 0
    distillation: float = 0.0


@dataclass
class ClassifierPart:
    """Classifier of the stage "classify" (An et al. 2021 and 2022, "Partial FC").

    Attributes:
        sharded: Divide the classifier by people among the processes (:class:`~occfast.losses.PartialFC`): each holds
            its share of the weights, of their moments and of the logits.
        sampling: Probability with which a person without an image in the batch takes part in a step, in (0, 1]; less
            than 1 needs ``sharded``.
        imprint: Begin with each person's mean feature, of up to eight images by the weights in ``start``, as its
            weights (Qi et al. 2018), so that a new classifier does not have to be learned before the network profits.
            Needs ``start`` and large margin cosine.
    """

    sharded: bool = False
    sampling: float = 1.0
    imprint: bool = False


@dataclass
class BatchPart:
    """Batches.

    Attributes:
        size: Images per step over all processes; the result does not depend on their number.
        images_each: 0 for images in random order; K for K images of each of size / K people, as triplet losses need.
        accumulate: Parts in which each process computes its share of a batch; more parts need less memory.
    """

    size: int = 256
    images_each: int = 0
    accumulate: int = 1


@dataclass
class OptimizerPart:
    """Optimizer and learning rate.

    Attributes:
        name: "sgd" (with Nesterov momentum) or "adamw".
        learning_rate: Largest learning rate, > 0.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: Weight decay; not applied to biases and norms.
        schedule: "cosine" (falls to 0) or "constant".
        warmup: Share of the steps in which the learning rate rises linearly.
        clip: Largest norm of the gradient; None for no limit.
    """

    name: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = None


@dataclass
class OccluderPart:
    """Noisy occluders on the training images (trigueros2018, section 3.1).

    Attributes:
        share: Share of the images that are occluded, in [0, 1].
        size: [height, width] in pixels, or [[min, max], [min, max]].
        locations: "uniform", "normal", or the path of a saved occlusion map or ``LocationDistribution``.
        temperature: T of Eq. 4 for a map; None for the paper's value at 20×20, 20×40 and 40×40.
        spread: Standard deviation of "normal" along each axis, as a fraction of the image's size, > 0.
        noise, level, intensity: As in :class:`occfast.NoisyOccluder`.
    """

    share: float = 0.0
    size: list[Any] = field(default_factory=lambda: [20, 40])
    locations: str = "uniform"
    temperature: float | None = None
    spread: float = NORMAL_SPREAD
    noise: list[str] = field(default_factory=lambda: ["salt_and_pepper", "speckle", "gaussian"])
    level: list[float] = field(default_factory=lambda: [0.0, 0.3])
    intensity: list[float] = field(default_factory=lambda: [0.0, 1.0])


@dataclass
class LowResolutionPart:
    """Loss of resolution of some training images, occluders included, for faces that are small where they are used.

    Attributes:
        share: Share of the images that are reduced and enlarged again, in [0, 1].
        factor: Factor by which height and width are reduced, at least 1.
    """

    share: float = 0.0
    factor: float = 2.0


@dataclass
class LogPart:
    """Logs and checkpoints.

    Attributes:
        every: Steps between rows of ``steps.csv``.
        tensorboard: Also write TensorBoard's files.
        checkpoint: Steps between checkpoints; one is always written at the end and when a run is interrupted.
    """

    every: int = 20
    tensorboard: bool = True
    checkpoint: int = 200


def preset_values(name: str) -> dict[str, Any]:
    """Return the keys of :class:`DataPart` that a preset states; raise ValueError for an unknown preset."""
    checks.choice(name, "data.preset", tuple(PRESETS))
    return preparation(PRESETS[name].preprocessing, PRESETS[name].template)


def preparation(how: Preprocessing, template: str | None) -> dict[str, Any]:
    """Return the keys of :class:`DataPart` that state a preparation of images."""
    mean, std = (list(value) if isinstance(value, tuple) else value for value in (how.mean, how.std))
    return {"template": template, "size": list(how.size), "color": how.color, "mean": mean, "std": std}


@dataclass
class Recipe:
    """Settings of a training run.

    Attributes:
        stage: "classify" (tell the people of the training set apart) or "embed" (features for comparing any faces).
        seed: Seed of the weights, the split, the order of the images and all augmentation.
        epochs: Largest number of passes through the training images.
        start: Weights to start from, ``.safetensors`` (with the head beside it), ``.pt``, ``.pth``; None for new ones.
        fresh_classifier: With ``start``: begin with a new classifier, for other people.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".
        jitter: Options of :class:`~occfast.train.Jitter`; all 0 for no jitter.
        drawn: Shares of the images with drawn occlusions, by name: "sunglasses", "mask", "scarf", "hand", "eyes" and
            the other names of :func:`occfast.occlude.named_occlusion`, or "band" for a gray band over any part of the
            face. They are placed by landmarks. Each image gets one of these or the noisy occluder, at most.
    """

    stage: str = "classify"
    seed: int = 0
    epochs: int = 40
    start: str | None = None
    fresh_classifier: bool = False
    device: str = "auto"
    precision: str = "fp32"
    data: DataPart = field(default_factory=DataPart)
    validation: ValidationPart = field(default_factory=ValidationPart)
    network: NetworkPart = field(default_factory=NetworkPart)
    loss: LossPart = field(default_factory=LossPart)
    classifier: ClassifierPart = field(default_factory=ClassifierPart)
    batch: BatchPart = field(default_factory=BatchPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    jitter: dict[str, float] = field(default_factory=lambda: asdict(Jitter()))
    occluder: OccluderPart = field(default_factory=OccluderPart)
    drawn: dict[str, float] = field(default_factory=dict)
    low_resolution: LowResolutionPart = field(default_factory=LowResolutionPart)
    log: LogPart = field(default_factory=LogPart)

    def check(self) -> None:
        """Check every value and their combinations.

        Raises:
            TypeError: If a value has a wrong type.
            ValueError: If a value is out of range, or values do not fit together; the message names the key.
        """
        self._check_choices()
        self._check_numbers()
        losses = _LOSSES[self.stage]
        checks.choice(self.loss.name, "loss.name", losses)
        if self.batch.images_each and self.batch.size % self.batch.images_each:
            raise ValueError(
                f"batch.size: expected a multiple of batch.images_each = {self.batch.images_each}, "
                f"got {self.batch.size}"
            )
        if self.stage == "classify" and self.loss.memory_size:
            raise ValueError(
                "loss.memory_size: expected 0 for the stage 'classify', which has no triplets, "
                f"got {self.loss.memory_size}"
            )
        if self.stage == "embed" and self.batch.images_each < 2:
            raise ValueError(
                "batch.images_each: expected at least 2 images of each person for a loss over triplets, "
                f"got {self.batch.images_each}"
            )
        if self.stage == "embed" and self.batch.size // self.batch.images_each < 2:
            raise ValueError(
                f"batch.size: expected at least {2 * self.batch.images_each}, two people with batch.images_each = "
                f"{self.batch.images_each} images, for a loss over triplets, got {self.batch.size}"
            )
        if self.stage == "embed" and self.batch.accumulate > 1:
            raise ValueError(
                "batch.accumulate: expected 1, since the triplets are those of the whole batch, "
                f"got {self.batch.accumulate}; use more processes"
            )
        if self.loss.distillation and self.start is None:
            raise ValueError(
                "loss.distillation: expected 0 without start, whose weights give the features to keep near, "
                f"got {self.loss.distillation:g}"
            )
        self._check_classifier()
        self._check_preset()
        self._check_sets()
        if self.validation.by == "people" and self.held_metric == "accuracy":
            raise ValueError(
                "validation.by: other people can't be classified; expected 'images', or metric 'verification'"
            )
        if self.stage == "embed" and self.validation.metric == "accuracy":
            raise ValueError("validation.metric: expected 'verification' for the stage 'embed', got 'accuracy'")

    def _check_choices(self) -> None:
        for key, value, known in (
            ("stage", self.stage, tuple(_LOSSES)),
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("precision", self.precision, ("fp32", "bf16", "fp16")),
            ("data.color", self.data.color, COLORS),
            ("validation.by", self.validation.by, ("images", "people")),
            ("optimizer.name", self.optimizer.name, ("sgd", "adamw")),
            ("optimizer.schedule", self.optimizer.schedule, ("cosine", "constant")),
            ("loss.mining", self.loss.mining, get_args(Mining)),
        ):
            checks.choice(value, key, known)
        for key, flag in (("fresh_classifier", self.fresh_classifier), ("log.tensorboard", self.log.tensorboard)):
            checks.flag(flag, key)

    def _check_classifier(self) -> None:
        part = self.classifier
        checks.flag(part.sharded, "classifier.sharded")
        checks.number(part.sampling, "classifier.sampling", 0.0, 1.0, above=0.0)
        if part.sampling < 1 and not part.sharded:
            raise ValueError(f"classifier.sampling: expected 1.0 without classifier.sharded=true, got {part.sampling}")
        if checks.flag(part.imprint, "classifier.imprint"):
            if self.start is None:
                raise ValueError(
                    "classifier.imprint: expected false without start, whose weights give features, got true"
                )
            if self.loss.name != "large_margin_cosine":
                raise ValueError(
                    f"classifier.imprint: expected false with loss.name={self.loss.name}, since only large margin "
                    "cosine compares directions of features, got true"
                )
        if not part.sharded:
            return
        if self.stage != "classify":
            raise ValueError(
                f"classifier.sharded: expected false for the stage {self.stage!r}, which has no classifier, got true"
            )
        if self.precision == "fp16":
            raise ValueError(
                "precision: expected 'fp32' or 'bf16' with classifier.sharded=true, since half precision would skip "
                "a step in one process and not in another, got 'fp16'"
            )
        if part.sampling < 1 and self.batch.accumulate > 1:
            raise ValueError(
                "batch.accumulate: expected 1 with classifier.sampling below 1, since the people of the whole batch "
                f"take part, got {self.batch.accumulate}; use more processes"
            )

    def _check_preset(self) -> None:
        if self.data.preset is None:
            return
        for key, expected in preset_values(self.data.preset).items():
            value = getattr(self.data, key)
            if value != expected and not (key == "template" and value is None):
                raise ValueError(
                    f"data.{key}: expected {expected}, as data.preset={self.data.preset} states, got {value!r}; leave "
                    "one of them out"
                )

    def _check_sets(self) -> None:
        names = [part.title for part in self.sets]
        for k, name in enumerate(names):
            if name in names[:k]:
                raise ValueError(f"validation.sets[{k}].name: {name} is the name of another set; choose another one")
        metric = self.validation.metric
        if metric is not None and ":" not in str(metric) and str(metric).partition("/")[0] not in names:
            checks.choice(metric, "validation.metric", ("accuracy", "verification", *names, "module:function"))
        if names and not self.validation.share and self.metric == self.held_metric:
            raise ValueError(
                f"validation.share: expected more than 0 for validation.metric={metric}, which images kept out of "
                f"training decide, got 0; or choose the metric among {', '.join(names)}"
            )

    def _check_numbers(self) -> None:
        checks.seed(self.seed)
        checks.memory(self.data.memory, "data.memory")
        for key, integer, least in (
            ("epochs", self.epochs, 1),
            ("data.min_images", self.data.min_images, 1),
            ("data.workers", self.data.workers, 0),
            ("loss.memory_size", self.loss.memory_size, 0),
            ("validation.every", self.validation.every, 1),
            ("validation.pairs", self.validation.pairs, 2),
            ("validation.patience", self.validation.patience, 0),
            ("batch.size", self.batch.size, 1),
            ("batch.images_each", self.batch.images_each, 0),
            ("batch.accumulate", self.batch.accumulate, 1),
            ("log.every", self.log.every, 1),
            ("log.checkpoint", self.log.checkpoint, 1),
        ):
            checks.integer(integer, key, least)
        if self.data.size is not None:
            checks.pair(list(self.data.size), "data.size")
        for key, share in (
            ("validation.share", self.validation.share),
            ("loss.label_smoothing", self.loss.label_smoothing),
            ("loss.beta", self.loss.beta),
            ("optimizer.momentum", self.optimizer.momentum),
            ("optimizer.warmup", self.optimizer.warmup),
            ("occluder.share", self.occluder.share),
            ("low_resolution.share", self.low_resolution.share),
        ):
            checks.number(share, key, 0.0, 1.0)
        for key, least_0 in (
            ("validation.min_gain", self.validation.min_gain),
            ("loss.margin", self.loss.margin),
            ("loss.distillation", self.loss.distillation),
            ("loss.cosine_margin", self.loss.cosine_margin),
            ("optimizer.weight_decay", self.optimizer.weight_decay),
        ):
            checks.number(least_0, key, 0.0)
        for key, positive in (
            ("optimizer.learning_rate", self.optimizer.learning_rate),
            ("optimizer.clip", self.optimizer.clip),
            ("loss.scale", self.loss.scale),
            ("occluder.spread", self.occluder.spread),
        ):
            if positive is not None or key != "optimizer.clip":
                checks.number(positive, key, above=0.0)
        checks.number(self.low_resolution.factor, "low_resolution.factor", 1.0)
        per_channel(self.data.mean, "data.mean")
        per_channel(self.data.std, "data.std", above=0.0)
        known = [item.name for item in fields(Jitter)]
        if unknown := set(self.jitter) - set(known):
            raise ValueError(f"jitter: expected keys among {', '.join(known)}, got {', '.join(sorted(unknown))}")
        for name, value in self.jitter.items():
            checks.number(value, f"jitter.{name}", 0.0)
        DrawnOccluders(self.drawn, self.occluder.share if self.drawn else 0.0, self.seed)

    @property
    def sets(self) -> list[SetPart]:
        """The verification sets."""
        return [SetPart.of(entry, f"validation.sets[{k}]") for k, entry in enumerate(self.validation.sets)]

    @property
    def metric(self) -> str:
        """Name of the value that decides which weights are best: a metric of the images kept out, or ``SET/VALUE``."""
        names = [part.title for part in self.sets]
        metric = self.validation.metric or (names[0] if names else self.default_metric)
        return f"{metric}/accuracy" if metric in names else metric

    @property
    def held_metric(self) -> str:
        """Metric of the images kept out of training."""
        metric = self.validation.metric
        if metric in ("accuracy", "verification") or ":" in str(metric):
            return str(metric)
        return "verification" if self.sets and self.validation.by == "people" else self.default_metric

    @property
    def default_metric(self) -> str:
        """Metric of a validation that names none: "accuracy" for classify, "verification" for embed."""
        return "accuracy" if self.stage == "classify" else "verification"
