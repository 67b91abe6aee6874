"""What a training run is made of: a recipe, read from YAML into the dataclasses below by OmegaConf.

A file states what differs from the defaults; ``extends`` names a recipe to start from (a packaged one or a file beside
it), and ``key.key=value`` overrides come last.  Unknown keys are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import checks
from ..packages import require
from .jitter import Jitter

RECIPES = Path(__file__).with_name("recipes")


@dataclass
class DataPart:
    """Where the faces come from.

    Attributes:
        name: "orl", "lfw", "celeba", "folder", "recordio", or ``module:function`` that gives a ``FaceDataset``.
        root: folder or file of the data set; None where it needs none.
        arguments: what else the data set takes.
        template: align the faces to this template of ``occfast.data`` as they are read; None: they are aligned.
        size: [height, width] of the images; None: the template's, or as they come.
        color: "gray", "RGB" or "BGR": what the network takes.
        mean, std: the network's input is (x / 255 - mean) / std of 8-bit pixels x.
        min_images: people with fewer images are left out (the log says how many).
        in_memory: keep all images decoded in memory: True, False, or None: if they take at most ``memory``.
        memory: see there.
        workers: processes that read images where they are not in memory.
    """

    name: str = "???"
    root: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    size: list[int] | None = None
    color: str = "gray"
    mean: float = 0.5
    std: float = 0.5
    min_images: int = 1
    in_memory: bool | None = None
    memory: str = "4GiB"
    workers: int = 2


@dataclass
class ValidationPart:
    """How the network is judged as it learns.

    Attributes:
        share: of the images (or people) kept out of training, drawn at random; 0: no validation.
        by: "images": the same people on other images; "people": other people.
        metric: "accuracy" (share of images put down to the right person), "verification" (accuracy over pairs, ten
            folds) or ``module:function`` (a ``Metric`` of :mod:`occfast.train.validate`); None: the stage's.
        pairs: pairs at most that "verification" compares, half of them of one person.
        every: epochs between validations.
        patience: stop after so many validations without a new best, in which the network stagnates or declines;
            0: never.
        min_gain: what counts as better.
    """

    share: float = 0.1
    by: str = "images"
    metric: str | None = None
    pairs: int = 6000
    every: int = 1
    patience: int = 0
    min_gain: float = 0.0


@dataclass
class NetworkPart:
    """Which network.

    Attributes:
        name: one of ``occfast.models.NETWORKS``, or ``module:function``.
        arguments: of that function, besides classes, channels and size.
    """

    name: str = "paper"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class LossPart:
    """Which loss.

    Attributes:
        name: "cross_entropy" or "large_margin_cosine" (stage "classify"), "triplet" or "batch_triplet" ("embed").
        label_smoothing: of the cross-entropy, in [0, 1).
        scale, cosine_margin: of the large margin cosine loss.
        margin, beta, mining: of the triplet losses (α and β of trigueros2018's Eqs. 6 and 9).
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    scale: float = 64.0
    cosine_margin: float = 0.35
    margin: float = 0.5
    beta: float = 0.7
    mining: str = "violating"


@dataclass
class BatchPart:
    """How images come together.

    Attributes:
        size: images a step, over all processes: the result does not depend on their number.
        images_each: 0: images in random order; K: K images of each of size / K people (triplet losses need several).
        accumulate: parts in which each process goes through its share of a batch (less memory).
    """

    size: int = 256
    images_each: int = 0
    accumulate: int = 1


@dataclass
class OptimizerPart:
    """How weights follow the gradient.

    Attributes:
        name: "sgd" (Nesterov) or "adamw".
        learning_rate: the largest.
        momentum: of SGD.
        weight_decay: not of biases and norms.
        schedule: "cosine" (falls to 0) or "constant".
        warmup: share of the steps in which the learning rate rises linearly.
        clip: the largest norm of the gradient; None: any.
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
        share: of the images that get one, in [0, 1].
        size: [height, width] in pixels, or [[min, max], [min, max]].
        locations: "uniform", "normal", or the path of a saved occlusion map or ``LocationDistribution``.
        temperature: T of Eq. 4, for a map; None: the paper's for 20×20, 20×40 and 40×40.
        noise, level, intensity: see :class:`occfast.NoisyOccluder`.
    """

    share: float = 0.0
    size: list[Any] = field(default_factory=lambda: [20, 40])
    locations: str = "uniform"
    temperature: float | None = None
    noise: list[str] = field(default_factory=lambda: ["salt_and_pepper", "speckle", "gaussian"])
    level: list[float] = field(default_factory=lambda: [0.0, 0.3])
    intensity: list[float] = field(default_factory=lambda: [0.0, 1.0])


@dataclass
class LogPart:
    """What is written down.

    Attributes:
        every: steps between rows of ``steps.csv``.
        tensorboard: also write TensorBoard's files.
        checkpoint: steps between checkpoints; one is always written at the end, and where a run is interrupted.
    """

    every: int = 20
    tensorboard: bool = True
    checkpoint: int = 200


@dataclass
class Recipe:
    """Everything that a training run depends on.

    Attributes:
        stage: "classify" (tell the people of the training set apart) or "embed" (features for comparing anybody).
        seed: of the weights, the split, the order of the images and all augmentation.
        epochs: passes through the training images at most.
        start: weights to start from, ``.safetensors`` (and the head beside it) or ``.pt``; None: new ones.
        fresh_classifier: with ``start``: the people are others, begin with a new classifier.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".
        jitter: of :class:`~occfast.train.Jitter`; all 0: none.
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
    batch: BatchPart = field(default_factory=BatchPart)
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    jitter: dict[str, float] = field(default_factory=lambda: asdict(Jitter()))
    occluder: OccluderPart = field(default_factory=OccluderPart)
    log: LogPart = field(default_factory=LogPart)

    def check(self) -> None:
        """Raises ValueError where values can't be right or don't go together; the message names the key."""
        losses = {"classify": ("cross_entropy", "large_margin_cosine"), "embed": ("triplet", "batch_triplet")}
        for key, value, known in (
            ("stage", self.stage, tuple(losses)),
            ("loss.name", self.loss.name, losses.get(self.stage, ())),
            ("device", self.device, ("auto", "cpu", "cuda")),
            ("precision", self.precision, ("fp32", "bf16", "fp16")),
            ("data.color", self.data.color, ("gray", "RGB", "BGR")),
            ("validation.by", self.validation.by, ("images", "people")),
            ("optimizer.name", self.optimizer.name, ("sgd", "adamw")),
            ("optimizer.schedule", self.optimizer.schedule, ("cosine", "constant")),
        ):
            if value not in known:
                raise ValueError(f"{key}: expected one of {', '.join(map(repr, known))}, got {value!r}")
        checks.seed(self.seed)
        for key, number, least in (
            ("epochs", self.epochs, 1),
            ("data.min_images", self.data.min_images, 1),
            ("data.workers", self.data.workers, 0),
            ("validation.every", self.validation.every, 1),
            ("validation.pairs", self.validation.pairs, 2),
            ("validation.patience", self.validation.patience, 0),
            ("batch.size", self.batch.size, 1),
            ("batch.images_each", self.batch.images_each, 0),
            ("batch.accumulate", self.batch.accumulate, 1),
            ("log.every", self.log.every, 1),
            ("log.checkpoint", self.log.checkpoint, 1),
        ):
            if number < least:
                raise ValueError(f"{key}: expected at least {least}, got {number}")
        for key, share in (
            ("validation.share", self.validation.share),
            ("loss.label_smoothing", self.loss.label_smoothing),
            ("optimizer.warmup", self.optimizer.warmup),
            ("occluder.share", self.occluder.share),
        ):
            checks.number(share, key, 0.0, 1.0)
        if self.batch.images_each and self.batch.size % self.batch.images_each:
            raise ValueError(
                f"batch.size: expected a multiple of batch.images_each = {self.batch.images_each}, "
                f"got {self.batch.size}"
            )
        if self.stage == "embed" and self.batch.images_each < 2:
            raise ValueError(
                "batch.images_each: expected at least 2 images of each person for a loss over triplets, "
                f"got {self.batch.images_each}"
            )
        if self.stage == "embed" and self.batch.accumulate > 1:
            raise ValueError(
                "batch.accumulate: expected 1, since the triplets are those of the whole batch, "
                f"got {self.batch.accumulate}; use more processes"
            )
        if self.validation.by == "people" and (self.validation.metric or self.default_metric) == "accuracy":
            raise ValueError(
                "validation.by: other people can't be classified; expected 'images', or metric 'verification'"
            )
        if unknown := set(self.jitter) - set(asdict(Jitter())):
            raise ValueError(f"jitter: expected keys among {', '.join(asdict(Jitter()))}, got {', '.join(unknown)}")

    @property
    def default_metric(self) -> str:
        """ "accuracy" for classify, "verification" for embed."""
        return "accuracy" if self.stage == "classify" else "verification"


def names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        recipe: name of a packaged one (:func:`names`) or path of a YAML file.
        overrides: "key.key=value" each, YAML values.

    Raises:
        ValueError: an unknown recipe or key, a value of the wrong kind or that is missing; the message names it.
    """
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import MissingMandatoryValue, OmegaConf

    settings = _merged(recipe, overrides)
    if missing := sorted(OmegaConf.missing_keys(settings)):
        raise ValueError(f"{recipe}: {missing[0]} is not stated; give it as {missing[0]}=…")
    try:
        loaded = OmegaConf.to_object(settings)
    except MissingMandatoryValue as error:  # what missing_keys can't see
        raise ValueError(f"{recipe}: {error}") from error
    assert isinstance(loaded, Recipe)
    loaded.check()
    return loaded


def show(recipe: str | Path, overrides: Sequence[str] = ()) -> str:
    """A recipe with every default as YAML; what has to be stated is ``???``."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(_merged(recipe, overrides))


def to_yaml(recipe: Recipe) -> str:
    """Every value of a recipe, readable by :func:`load`."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def _merged(recipe: str | Path, overrides: Sequence[str]) -> Any:
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(Recipe)
    for place, content in _chain(recipe):
        try:
            merged = OmegaConf.merge(merged, content)
            for key in OmegaConf.missing_keys(content):  # merging leaves what an earlier file stated
                OmegaConf.update(merged, key, "???")
        except OmegaConfBaseException as error:
            raise _explained(place, error) from error
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override: expected key=value, got {override!r}")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            raise _explained(override, error) from error
    return merged


def _chain(recipe: str | Path) -> list[tuple[str, Any]]:
    """The files behind a recipe, the one that extends nothing first."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import DictConfig, OmegaConf

    chain: list[tuple[str, Any]] = []
    seen: set[Path] = set()
    name, folder = str(recipe), Path()
    while name:
        path = _find(name, folder)
        if path in seen:
            raise ValueError(f"{path}: extends: expected another recipe, got a circle")
        seen.add(path)
        try:
            content = OmegaConf.load(path)
        except Exception as error:  # PyYAML's errors have no common ancestor beside Exception
            raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(content, DictConfig):
            raise ValueError(f"{path}: expected keys and values, got a list")
        name, folder = str(content.pop("extends", "") or ""), path.parent
        chain.insert(0, (str(path), content))
    return chain


def _find(name: str, folder: Path) -> Path:
    if name in names():
        return RECIPES / f"{name}.yaml"
    path = folder / name
    if path.is_file():
        return path.resolve()
    raise ValueError(f"recipe: expected a YAML file or one of {', '.join(names())}, got {name!r}")


def _explained(place: str, error: Exception) -> ValueError:
    first = str(error).split("\n", 1)[0]
    key = getattr(error, "full_key", None) or ""
    hint = ""
    if "not in" in first:
        alike = difflib.get_close_matches(key, _keys(), 1, 0.5)
        first = "there is no such key"
        hint = f"; did you mean {alike[0]}?" if alike else ""
    return ValueError(f"{place}: {key}: {first}{hint}")


def _keys() -> list[str]:
    keys = []
    for name, value in asdict(Recipe()).items():
        keys += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return keys
