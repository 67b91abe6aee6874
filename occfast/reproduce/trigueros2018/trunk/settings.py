"""Settings of the networks on a pretrained trunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .... import checks
from ..settings import SIZES, times

#: The occluders, as they end the names of networks.
OCCLUDERS = tuple(map(times, SIZES))
#: The two losses of the triplet stage.
LOSSES = {"B": "triplet", "C": "batch_triplet"}
#: People that the triplet stage trains on, and what reports call them.
STAGES = {"same": "the same people", "other": "other people", "all": "all people"}


@dataclass(frozen=True)
class TrunkSettings:
    """Everything that the numbers depend on besides the data and the trunk.

    Tuples of candidates are decided on pairs of :attr:`~.sources.TrunkSources.choosing`; see :mod:`.choices`.

    Attributes:
        seeds: each seed has its own weights, batches and choice among the drawn occluders. The held-out images, P and
            the drawn occluders are the same for all seeds.
        trunk: file of MobileFaceNet's weights; None: in the folder of the data sets.
        occluders: the occluders of training, among "20x20", "20x40" and "40x40"; () leaves A, B and C alone, which
            takes a fraction of the time.
        feature_size: numbers in a feature of the heads; 320 in the paper.
        share: share of A's images that are held out, for P; 0.1 in the paper.
        dropout: of the features before the classifier, as in :class:`~occfast.models.PaperNet`.
        draws: occluded draws of each training image under each occluder.
        map_images: images of each map for P, at most.
        map_spacing: pixels between the positions of an image in these maps (:class:`~occfast.Sampled`).
        precision: of the trunk on covered images, for maps and training; "float32", or "bf16", which is faster on
            processors with bfloat16. Clean features and those that are tested are always float32.
        batch: images in a batch of classification.
        base_epochs: candidates for the epochs of A.
        base_rate: learning rate of A (Adam).
        fine_epochs: epochs of the networks that are fine-tuned with occluders.
        fine_rate: learning rate of these.
        covered: candidates for the share of the images that are occluded in training.
        people_each: people in a batch of the triplet stage.
        images_each: images of each of them.
        epochs: candidates for the epochs of the triplet stage.
        rates: candidates for its learning rate.
        choosing_seeds: seeds of the networks that the candidates are compared with; none of them may be in ``seeds``.
        resamples: bootstrap resamples of people.
    """

    seeds: tuple[int, ...] = (0,)
    trunk: str | None = None
    occluders: tuple[str, ...] = OCCLUDERS
    feature_size: int = 320
    share: float = 0.1
    dropout: float = 0.4
    draws: int = 2
    map_images: int = 200
    map_spacing: int = 24
    precision: str = "float32"
    batch: int = 256
    base_epochs: tuple[int, ...] = (20, 40, 80, 160)
    base_rate: float = 1e-3
    fine_epochs: int = 10
    fine_rate: float = 5e-4
    covered: tuple[float, ...] = (0.5, 1.0)
    people_each: int = 32
    images_each: int = 8
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    choosing_seeds: tuple[int, ...] = (1000, 1001, 1002)
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("seeds", "choosing_seeds", "base_epochs", "covered", "epochs", "rates"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: expected different values, got {values!r}")
        if not isinstance(self.occluders, tuple) or [o for o in OCCLUDERS if o in self.occluders] != [*self.occluders]:
            raise ValueError(
                f"occluders: expected some of {', '.join(OCCLUDERS)} in this order, got {self.occluders!r}"
            )
        for seed in (*self.seeds, *self.choosing_seeds):
            checks.seed(seed)
        if both := set(self.seeds) & set(self.choosing_seeds):
            raise ValueError(f"seeds: expected none of choosing_seeds, got {min(both)}")
        for name in ("feature_size", "draws", "map_images", "map_spacing", "fine_epochs", "batch"):
            checks.integer(getattr(self, name), name, 1)
        for name in ("people_each", "images_each"):
            checks.integer(getattr(self, name), name, 2)
        for count in (*self.base_epochs, *self.epochs):
            checks.integer(count, "epochs", 1)
        for rate in (self.base_rate, self.fine_rate, *self.rates):
            checks.number(rate, "rates", above=0.0)
        for share in self.covered:
            checks.number(share, "covered", 0.0, 1.0)
        checks.number(self.share, "share", 0.0, 0.9)
        checks.number(self.dropout, "dropout", 0.0, 0.9)
        checks.choice(self.precision, "precision", ("float32", "bf16"))
        checks.integer(self.resamples, "resamples", 20)

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends of the networks' names: "" without occluders, then each occluder."""
        return ("", *self.occluders)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each occluder."""
        return {times(size): size for size in SIZES if times(size) in self.occluders}

    @classmethod
    def of(cls, seeds: Sequence[int], **changes: Any) -> TrunkSettings:
        """Return the settings with some changes."""
        return cls(tuple(seeds), **changes)


__all__ = ["LOSSES", "OCCLUDERS", "STAGES", "TrunkSettings"]
