"""Settings of the experiment on both papers together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import checks
from ...train import Recipe, load_recipe


@dataclass(frozen=True)
class Training:
    """How the recognizer is trained further.

    Attributes:
        title: in reports.
        noisy: share of the images with noisy occluders placed by P (trigueros2018).
        drawn: shares of the images with drawn accessories, and with bands LM2 of pdsn-landmarks ("band").
        kept: whether features are kept near those of the recognizer as it is.
    """

    title: str
    noisy: float = 0.0
    drawn: Mapping[str, float] = field(default_factory=dict)
    kept: bool = False


_ACCESSORIES = {"sunglasses": 0.4, "mask": 0.2, "scarf": 0.3, "hand": 0.1}
#: Half of the images are covered in every training but the uncovered one.
_OF_ALL = {"band": 0.1, **{name: 0.25 * share for name, share in _ACCESSORIES.items()}}
#: The recognizer without further training.
AS_IS = "as it is"
TRAININGS = {
    "uncovered": Training("trained on, uncovered"),
    "noisy": Training("noisy occluders placed by P", noisy=0.5),
    "accessories": Training("drawn accessories", drawn={name: 0.5 * share for name, share in _ACCESSORIES.items()}),
    "bands": Training("bands LM2", drawn={"band": 0.5}),
    "all": Training("all three", noisy=0.15, drawn=_OF_ALL),
    "kept": Training("all three, features kept", noisy=0.15, drawn=_OF_ALL, kept=True),
}
#: Trainings whose networks PDSN masks too, by default.
MASKED = ("uncovered", "all", "kept")
#: Masks by their titles: regions, and whether masks are soft.
MASKS = {"LM2": ("lm2", False), "LM2 split": ("lm2-split", False), "LM2, soft": ("lm2", True)}
#: Drawn covering of LFW's second image; AR has real sunglasses and scarves.
COVERINGS = ("mask:surgical",)
#: Size of P's occluder, (height, width), and the temperature of trigueros2018 for it.
OCCLUDER, TEMPERATURE = (20, 40), 0.4


@dataclass(frozen=True)
class TogetherSettings:
    """Everything that the figures depend on besides the data.

    Attributes:
        seeds: each seed is one further training of each kind.
        trunk: weights of the recognizer, ``.safetensors`` or PyTorch's; None: those in the folder of the data sets.
        epochs: of each training.
        batch: batch size.
        rates: learning rates to choose from.
        weights: weights of the distillation to choose from.
        choosing_seed: of the trainings that choose.
        low_resolution: share of the training images at AR's resolution.
        map_people: people of the map behind P.
        map_stride: of that map, in pixels.
        generator_epochs: of PDSN's mask generators.
        dictionary_images: training images behind generators and dictionaries.
        masked: trainings whose networks PDSN masks too.
        precision: "fp32" or "bf16" in training.
        resamples: of the people of pairs.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    trunk: str | None = None
    epochs: int = 2
    batch: int = 64
    rates: tuple[float, ...] = (0.005, 0.02)
    weights: tuple[float, ...] = (5.0, 20.0)
    choosing_seed: int = 1000
    low_resolution: float = 0.5
    map_people: int = 100
    map_stride: int = 8
    generator_epochs: int = 8
    dictionary_images: int = 1500
    masked: tuple[str, ...] = MASKED
    precision: str = "fp32"
    resamples: int = 1000

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or self.choosing_seed in self.seeds:
            raise ValueError(f"seeds: expected different numbers without {self.choosing_seed}, got {self.seeds}")
        for seed in (*self.seeds, self.choosing_seed):
            checks.seed(seed)
        for name in ("epochs", "batch", "map_people", "map_stride", "generator_epochs", "dictionary_images"):
            checks.integer(getattr(self, name), name, 1)
        checks.integer(self.resamples, "resamples", 20)
        for name in ("rates", "weights"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected one or more, got none")
            for value in getattr(self, name):
                checks.number(value, name, above=0.0)
        for name in self.masked:
            checks.choice(name, "masked", tuple(TRAININGS))
        checks.number(self.low_resolution, "low_resolution", 0.0, 1.0)
        checks.choice(self.precision, "precision", ("fp32", "bf16"))

    def recipe(self, training: str, seed: int, rate: float, weight: float) -> Recipe:
        """Return the recipe of a training, without the paths of the recognizer and of P."""
        of = TRAININGS[training]
        return load_recipe(
            "A",
            [
                "data.name=orl",  # the steps pass the faces
                "data.template=null",
                "data.color=RGB",
                "data.mean=0.5",
                f"data.std={128 / 255}",
                "network.name=mobilefacenet",
                "start=another step",
                "loss.name=large_margin_cosine",
                "loss.scale=30",
                "classifier.imprint=true",
                f"loss.distillation={weight if of.kept else 0.0}",
                f"epochs={self.epochs}",
                f"batch.size={self.batch}",
                f"optimizer.learning_rate={rate}",
                "optimizer.clip=5.0",
                "validation.share=0",
                "jitter={flip: 0.5, shift: 0.02, scale: 0.04, turn: 4.0, gain: 0.15, offset: 0.08}",
                # AR's eyes are 14.1 pixels apart, those of the network's input 35.
                f"low_resolution={{share: {self.low_resolution}, factor: 2.5}}",
                f"occluder.share={of.noisy}",
                f"occluder.size=[{OCCLUDER[0]}, {OCCLUDER[1]}]",
                f"occluder.locations={'another step' if of.noisy else 'uniform'}",
                f"occluder.temperature={TEMPERATURE if of.noisy else 'null'}",
                f"drawn={{{', '.join(f'{name}: {share}' for name, share in of.drawn.items())}}}",
                f"precision={self.precision}",
                f"seed={seed}",
                "log.tensorboard=false",
            ],
        )

    @classmethod
    def of(cls, seeds: tuple[int, ...], **changes: Any) -> TogetherSettings:
        """Return settings with some changes."""
        return cls(**{"seeds": seeds, **changes})


__all__ = [
    "AS_IS",
    "COVERINGS",
    "MASKED",
    "MASKS",
    "OCCLUDER",
    "TEMPERATURE",
    "TRAININGS",
    "TogetherSettings",
    "Training",
]
