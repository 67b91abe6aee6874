"""How good a network is while it is trained: on images that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.stats import TripletStats
from ..losses.triplet import BatchTripletLoss
from ..models import features
from ..models.registry import imported
from .batches import FromDisk, InMemory
from .engine import Engine, Transform
from .objective import Classify

#: ``metric(features float32 [N, D], labels int64 [N]) -> float``, larger is better: what ``module:function`` gives.
Metric = Callable[[Tensor, Tensor], float]

_BATCH = 128
_VIEWED = 2048  # images at most whose pairs make the score distributions


@dataclass(frozen=True)
class Judgment:
    """What a validation found.

    Attributes:
        value: of the metric, larger is better.
        scores: distances of pairs of one person and of two (Figure 4 of trigueros2018); None where no features were
            looked at.
    """

    value: float
    scores: TripletStats | None


@dataclass
class Validation:
    """The images kept out of training, and what is asked about them.

    Attributes:
        source: of their pixels.
        labels: int64 [N]; for "accuracy" the numbers of the training set's people.
        prepare: stored images to the network's input.
        metric: "accuracy", "verification" or ``module:function``, a :data:`Metric`.
        pairs: pairs at most that "verification" compares.
        seed: which pairs.
    """

    source: InMemory | FromDisk
    labels: Tensor
    prepare: Callable[[Tensor], Tensor]
    metric: str
    pairs: int
    seed: int

    def __post_init__(self) -> None:
        if self.metric == "verification":
            _pairs(self.labels, self.pairs, self.seed)  # whether there are enough is known before hours of training

    def judge(self, engine: Engine) -> Judgment:
        """Look at all images, each process at its share."""
        if self.metric == "accuracy":
            objective = engine.objective
            assert isinstance(objective, Classify)
            answers = self._collect(engine, lambda images: objective.logits(images).argmax(1))
            return Judgment(float((answers == self.labels).double().mean()), None)
        network = engine.objective.network
        assert isinstance(network, nn.Module)
        found = F.normalize(self._collect(engine, lambda images: features(network)(images).float()))
        viewer = BatchTripletLoss()
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed))[:_VIEWED]
        viewer(found[chosen], self.labels[chosen])
        if self.metric == "verification":
            value = verification(found, self.labels, self.pairs, self.seed)
        else:
            value = float(imported(self.metric, "validation.metric")(found, self.labels))
        return Judgment(value, viewer.stats)

    @torch.no_grad()
    def _collect(self, engine: Engine, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What the network says to every image, on the CPU, in their order."""
        objective, n = engine.objective, len(self.labels)
        objective.eval()
        each = -(-n // engine.world)
        mine = (torch.arange(each) * engine.world + engine.rank).clamp(max=n - 1)
        parts = []
        for images in self.source(mine.split(_BATCH)):
            with engine.accelerator.autocast():
                parts.append(function(self.prepare(images.to(engine.device, non_blocking=True))))
        said = torch.cat(parts)
        if engine.world > 1:
            said = engine.accelerator.gather(said[None].contiguous()).transpose(0, 1).flatten(0, 1)
        objective.train()
        return said[:n].cpu()


def verification(features: Tensor, labels: Tensor, pairs: int = 6000, seed: int = 0, folds: int = 10) -> float:
    """Accuracy of telling whether two images show one person, by cosine similarity.

    As many pairs of one person as of two are drawn, ``pairs`` in all at most; the threshold for each of the folds is
    the one that is best on the others, as LFW's protocol has it.

    Args:
        features: float [N, D].
        labels: int64 [N].

    Raises:
        ValueError: there are fewer than ``folds`` pairs of either kind.
    """
    first, second = _pairs(labels, pairs, seed, folds)
    count = len(first) // 2
    unit = F.normalize(features.double())
    scores = (unit[first] * unit[second]).sum(1)
    truth = torch.arange(2 * count) < count
    fold = torch.arange(2 * count) % count % folds
    right = 0
    for k in range(folds):
        threshold = best_threshold(scores[fold != k], truth[fold != k])
        right += int(((scores[fold == k] >= threshold) == truth[fold == k]).sum())
    return right / (2 * count)


def _pairs(labels: Tensor, pairs: int, seed: int, folds: int = 10) -> Tensor:
    """Pairs of images drawn at random, int64 [2, P]: the first half of one person each, the others of two."""
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


def best_threshold(scores: Tensor, truth: Tensor) -> float:
    """The threshold t for which ``scores >= t`` agrees most often with ``truth``: half way between two scores."""
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], truth[order]
    # With k scores at or above the threshold: positives among them, and negatives among the others.
    agree = torch.cat([hits.new_zeros(1, dtype=torch.int64), hits.cumsum(0)]) * 2 - torch.arange(len(hits) + 1)
    cut = torch.ones(len(hits) + 1, dtype=torch.bool)
    cut[1:-1] = ranked[:-1] > ranked[1:]  # equal scores can't be parted
    k = int(torch.where(cut, agree, agree.min() - 1).argmax())
    if k == 0:
        return float(ranked[0]) + 1
    return float(ranked[k - 1] if k == len(ranked) else (ranked[k - 1] + ranked[k]) / 2)


def _same_pairs(labels: Tensor) -> Tensor:
    """All pairs of different images of one person, int64 [2, pairs]."""
    order = labels.argsort(stable=True)
    groups = order.split(labels[order].unique_consecutive(return_counts=True)[1].tolist())
    found = [torch.combinations(group) for group in groups if len(group) > 1]
    return torch.cat(found).T if found else torch.empty(2, 0, dtype=torch.int64)


__all__ = ["Judgment", "Metric", "Transform", "Validation", "best_threshold", "verification"]
