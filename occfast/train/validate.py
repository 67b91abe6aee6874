"""Validation: the quality of a network during training, on images that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import evaluate
from ..losses import BatchTripletLoss, TripletStats
from ..models import features
from ..models.registry import imported
from .batches import FromDisk, InMemory
from .engine import Engine, NotFinite
from .objective import Classify

#: ``metric(features float32 [N, D], labels int64 [N]) -> float``, larger is better: the type of ``module:function``.
Metric = Callable[[Tensor, Tensor], float]

_BATCH = 128
_VIEWED = 2048  # images at most whose pairs make the score distributions


@dataclass(frozen=True)
class ValidationResult:
    """Result of one validation.

    Attributes:
        value: Value of the metric, finite; larger is better.
        scores: Distances of pairs of one person and of two (Figure 4 of trigueros2018); None if no features were
            computed, or of one person only.
    """

    value: float
    scores: TripletStats | None


@dataclass
class Validation:
    """Images kept out of training, and the metric to compute on them.

    Attributes:
        source: Source of their pixels.
        labels: int64 [N]; for "accuracy" the class numbers of the training set.
        prepare: Converts stored images to the network's input.
        metric: "accuracy", "verification" or ``module:function``, a :data:`Metric`.
        pairs: Largest number of pairs for "verification".
        seed: Seed of the pairs.
        names: Names of the images, for error messages.
    """

    source: InMemory | FromDisk
    labels: Tensor
    prepare: Callable[[Tensor], Tensor]
    metric: str
    pairs: int
    seed: int
    names: list[str]

    def __post_init__(self) -> None:
        self.function: Metric | None = None
        self.count: int | None = None  #: number of pairs that "verification" compares; None for other metrics
        if self.metric == "verification":  # too few pairs are known before hours of training
            self.count = draw_pairs(self.labels, self.pairs, self.seed).shape[1]
        elif self.metric != "accuracy":
            self.function = imported(self.metric, "validation.metric")

    def evaluate(self, engine: Engine) -> ValidationResult:
        """Evaluate the engine's network on all images; each process evaluates its share.

        Raises:
            NotFinite: If an answer of the network is NaN or infinite.
            ValueError: If the metric is.
        """
        if self.metric == "accuracy":
            objective = engine.objective
            assert isinstance(objective, Classify)
            answers = self._collect(engine, objective.answers)
            self._check_finite(engine, answers >= 0)
            return ValidationResult(float((answers == self.labels).double().mean()), None)
        network = engine.objective.network
        assert isinstance(network, nn.Module)
        found = self._collect(engine, lambda images: features(network)(images).float())
        self._check_finite(engine, found.isfinite().all(1))
        unit = F.normalize(found)
        if self.function is None:
            value = verification_accuracy(unit, self.labels, self.pairs, self.seed)
        else:
            value = float(self.function(unit, self.labels))
        if not math.isfinite(value):
            raise ValueError(f"validation.metric: expected a finite number from {self.metric}, got {value}")
        return ValidationResult(value, self._scores(unit))

    def _scores(self, unit: Tensor) -> TripletStats | None:
        chosen = torch.randperm(len(unit), generator=torch.Generator().manual_seed(self.seed))[:_VIEWED]
        labels = self.labels[chosen]
        if len(labels.unique()) in (1, len(labels)):
            return None
        viewer = BatchTripletLoss()
        viewer(unit[chosen], labels)
        return viewer.stats

    def _check_finite(self, engine: Engine, finite: Tensor) -> None:
        if not bool(finite.all()):
            names = [self.names[k] for k in (~finite).nonzero()[:, 0].tolist()]
            raise NotFinite("an answer in the validation", max(engine.epoch - 1, 0), engine.step, engine.rate, names)

    def _collect(self, engine: Engine, function: Callable[[Tensor], Tensor]) -> Tensor:
        return collect(engine, self.source, len(self.labels), self.prepare, function)


@torch.no_grad()
def collect(
    engine: Engine,
    source: InMemory | FromDisk,
    n: int,
    prepare: Callable[[Tensor], Tensor],
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the network's answers to all images, on the CPU, in their order; each process computes its share.

    Args:
        engine: Engine, whose objective is in training mode afterwards.
        source: Source of the images.
        n: Number of images.
        prepare: Converts stored images to the network's input.
        function: Function of prepared images that returns an answer to each.
    """
    objective = engine.objective
    objective.eval()
    each = -(-n // engine.world)
    mine = (torch.arange(each) * engine.world + engine.rank).clamp(max=n - 1)
    parts = []
    for images in source(mine.split(_BATCH)):
        with engine.accelerator.autocast():
            parts.append(function(prepare(images.to(engine.device, non_blocking=True))))
    answers = torch.cat(parts)
    if engine.world > 1:
        answers = engine.accelerator.gather(answers[None].contiguous()).transpose(0, 1).flatten(0, 1)
    objective.train()
    return answers[:n].cpu()


def verification_accuracy(features: Tensor, labels: Tensor, pairs: int = 6000, seed: int = 0, folds: int = 10) -> float:
    """Compute the accuracy of verification by cosine similarity over random pairs.

    As many pairs of one person as of two are drawn. Accuracy and thresholds are those of
    :func:`occfast.evaluate.verification`: each fold uses the best threshold on the others.

    Args:
        features: Float [N, D].
        labels: int64 [N].
        pairs: Largest number of pairs.
        seed: Seed of the pairs.
        folds: Number of folds, at least 2.

    Raises:
        ValueError: If there are fewer than ``folds`` pairs of either kind.
    """
    first, second = draw_pairs(labels, pairs, seed, folds)
    count = len(first) // 2
    unit = F.normalize(features.double())  # a feature of zeros has similarity 0 with everything
    number = torch.arange(2 * count)
    result = evaluate.verification((unit[first] * unit[second]).sum(1), number < count, number % count % folds)
    assert result.accuracy is not None
    # As a fraction of all pairs: folds may differ by a pair.
    right = (result.fold_accuracies * torch.bincount(number % count % folds).numpy()).round().sum()
    return float(right) / (2 * count)


def draw_pairs(labels: Tensor, pairs: int, seed: int, folds: int = 10) -> Tensor:
    """Draw random pairs of images, int64 [2, P]: half of one person each, then half of two.

    Raises:
        ValueError: If there are fewer than ``folds`` pairs of either kind.
    """
    random = torch.Generator().manual_seed(seed)
    same = _same_pairs(labels)
    other = torch.randint(len(labels), (2, 4 * max(pairs, same.shape[1], 64)), generator=random)
    other = other[:, labels[other[0]] != labels[other[1]]]
    count = min(pairs // 2, same.shape[1], other.shape[1])
    if count < folds:
        raise ValueError(
            f"validation: expected at least {folds} pairs of images of one person and of two, got {count} to compare; "
            "keep more images or people out of training (validation.share)"
        )
    same = same[:, torch.randperm(same.shape[1], generator=random)[:count]]
    return torch.cat([same, other[:, :count]], 1)


def _same_pairs(labels: Tensor) -> Tensor:
    """Return all pairs of different images of one person, int64 [2, P]."""
    order = labels.argsort(stable=True)
    groups = order.split(labels[order].unique_consecutive(return_counts=True)[1].tolist())
    found = [torch.combinations(group) for group in groups if len(group) > 1]
    return torch.cat(found).T if found else torch.empty(2, 0, dtype=torch.int64)


__all__ = ["Metric", "Validation", "ValidationResult", "collect", "draw_pairs", "verification_accuracy"]
