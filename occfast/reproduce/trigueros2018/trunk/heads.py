"""Training of heads on the features of a frozen trunk: classification (A), then a triplet loss (B, C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....data import PKSampler
from ....errors import DataError
from ....losses import BatchTripletLoss, TripletLoss
from .settings import TrunkSettings

#: Heads are evaluated on this many images at a time.
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Examples:
    """Features to train on.

    Attributes:
        clean: features of the images, float32 [N, D].
        labels: people, int64 [N], numbered from 0.
        drawn: features of the same images under drawn occluders, [N, D] each; empty for training without occluders.
        covered: share of the images of a batch that are occluded.
    """

    clean: Tensor
    labels: Tensor
    drawn: tuple[Tensor, ...] = ()
    covered: float = 0.0

    @property
    def people(self) -> int:
        """Number of people."""
        return int(self.labels.max()) + 1

    def batch(self, numbers: Tensor, random: torch.Generator) -> Tensor:
        """Return the features of some images, each clean or under one of its drawn occluders."""
        found = self.clean[numbers]
        if not self.drawn or self.covered == 0:
            return found
        which = torch.randint(len(self.drawn), (len(numbers),), generator=random)
        which[torch.rand(len(numbers), generator=random) >= self.covered] = -1
        for draw, features in enumerate(self.drawn):
            chosen = which == draw
            found[chosen] = features[numbers[chosen]]
        return found


def joined(*parts: Examples) -> Examples:
    """Put the images of different people together; all parts have as many draws and the same ``covered``."""
    labels, people = [], 0
    for part in parts:
        labels.append(part.labels + people)
        people += part.people
    drawn = tuple(torch.cat(same) for same in zip(*(part.drawn for part in parts), strict=True))
    return Examples(torch.cat([part.clean for part in parts]), torch.cat(labels), drawn, parts[0].covered)


@dataclass(frozen=True, eq=False)
class Network:
    """A head with what was seen while it was trained.

    Attributes:
        head: maps the trunk's features to those that are compared.
        classifier: maps these to logits; None after the triplet stage.
        active: share of violating triplets in the first and the last epoch; empty for classification.
    """

    head: nn.Linear
    classifier: nn.Linear | None = None
    active: tuple[float, ...] = field(default=())

    @torch.no_grad()
    def embed(self, features: Tensor) -> Tensor:
        """Return the features that are compared, of unit length, [N, feature_size]."""
        return torch.cat([F.normalize(self.head(rows)) for rows in features.split(_ROWS)])

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of images that are classified correctly."""
        if self.classifier is None:
            raise ValueError("classifier: expected a network that classifies, this one was trained with a triplet loss")
        hits = [
            self.classifier(self.head(rows)).argmax(1) == wanted
            for rows, wanted in zip(features.split(_ROWS), labels.split(_ROWS), strict=True)
        ]
        return float(torch.cat(hits).double().mean())


def classify(
    s: TrunkSettings, examples: Examples, seed: int, *, epochs: Sequence[int], rate: float, start: Network | None = None
) -> dict[int, Network]:
    """Train a head and a classifier by softmax cross-entropy.

    Args:
        s: settings.
        examples: to train on.
        seed: of the weights, the batches, dropout and the choice among the drawn occluders.
        epochs: epochs after which to keep the network.
        rate: learning rate of Adam.
        start: network to fine-tune; None starts from new weights.

    Returns:
        The networks by number of epochs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is None:
            head = nn.Linear(examples.clean.shape[1], s.feature_size)
            classifier = nn.Linear(s.feature_size, examples.people)
        else:
            assert start.classifier is not None
            head, classifier = _copy(start.head), _copy(start.classifier)
        random = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam([*head.parameters(), *classifier.parameters()], rate)
        kept: dict[int, Network] = {}
        for epoch in range(1, max(epochs) + 1):
            order = torch.randperm(len(examples.labels), generator=random)
            for numbers in order.split(s.batch):
                features = F.dropout(head(examples.batch(numbers, random)), s.dropout)
                loss = F.cross_entropy(classifier(features), examples.labels[numbers])
                adam.zero_grad()
                loss.backward()
                adam.step()
            if epoch in epochs:
                kept[epoch] = Network(_copy(head), _copy(classifier))
    return kept


def separate(
    s: TrunkSettings, examples: Examples, seed: int, *, loss: str, epochs: Sequence[int], rate: float, start: Network
) -> dict[int, Network]:
    """Fine-tune a head with the triplet loss ("triplet") or the batch triplet loss ("batch_triplet").

    Arguments are those of :func:`classify`. The classifier is dropped and features are normalized, as in the paper.
    """
    criterion = {"triplet": TripletLoss(0.5), "batch_triplet": BatchTripletLoss(0.5, 0.7)}[loss]
    head = _copy(start.head)
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(head.parameters(), rate)
    people = min(s.people_each, examples.people)
    sampler = PKSampler(examples.labels, people, s.images_each, seed, min_images=2, num_replicas=1, rank=0)
    kept: dict[int, Network] = {}
    first = last = 0.0
    for epoch in range(1, max(epochs) + 1):
        active = []
        for batch in sampler:
            numbers = torch.tensor(batch)
            value = criterion(F.normalize(head(examples.batch(numbers, random))), examples.labels[numbers])
            adam.zero_grad()
            value.backward()
            adam.step()
            assert criterion.stats is not None
            active.append(float(criterion.stats.active_fraction))
        last = sum(active) / len(active)
        first = last if epoch == 1 else first
        if epoch in epochs:
            kept[epoch] = Network(_copy(head), None, (first, last))
    return kept


def _copy(layer: nn.Linear) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        found = nn.Linear(layer.in_features, layer.out_features)
    found.load_state_dict(layer.state_dict())
    return found


def weights(networks: Mapping[str, Network]) -> dict[str, Tensor]:
    """Return the weights of networks, for a file."""
    return {
        f"{name}/{part}/{key}": value
        for name, one in networks.items()
        for part, layer in (("head", one.head), ("classifier", one.classifier))
        if layer is not None
        for key, value in layer.state_dict().items()
    }


def from_weights(tensors: Mapping[str, Tensor]) -> dict[str, Network]:
    """Return the networks of :func:`weights`."""
    names = dict.fromkeys(key.partition("/")[0] for key in tensors)
    return {name: Network(_required(tensors, f"{name}/head"), _layer(tensors, f"{name}/classifier")) for name in names}


def _layer(tensors: Mapping[str, Tensor], name: str) -> nn.Linear | None:
    if f"{name}/weight" not in tensors:
        return None
    weight, bias = tensors[f"{name}/weight"], tensors[f"{name}/bias"]
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _required(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    layer = _layer(tensors, name)
    if layer is None:
        raise DataError(f"{name}: expected its weights among {len(tensors)} tensors")
    return layer
