"""Settings of the pdsn-landmarks reproduction, and the paper's numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from ... import checks
from ..._version import __version__

#: Table 1, rank-1 in %: no masks, LM1, LM2, 3×3; "nose to chin" is told without masks alone.
PAPER: dict[str, tuple[float | None, ...]] = {
    "forehead": (6.18, 6.18, 23.32, 18.37),
    "eyes": (2.83, 2.47, 8.13, 3.00),
    "nose": (14.49, 15.37, 20.49, 13.25),
    "mouth": (24.20, 26.86, 41.34, 19.26),
    "chin": (55.12, 55.12, 65.37, 53.00),
    "face mask": (24.20, 20.26, 19.89, 18.39),
    "sunglasses": (8.30, 7.77, 7.24, 5.83),
    "nose to chin": (11.13, None, None, None),
}


#: Clean test images, rank-1 and rank-5 in %.
PAPER_CLEAN = (82.51, 88.87)


@dataclass(frozen=True)
class Row:
    """A column of Table 1, or a row past the paper: with which base and which masks faces are compared.

    Attributes:
        name: in the report.
        base: "plain" (clean images), "occluders" (trigueros2018's noisy occluders placed by the plain base's map, and
            landmark masks together) or "background" (everything around the face is another image's).
        strategy: as :func:`occfast.pdsn.regions.named` knows it; None: no masks.
        own: regions of each probe's own landmarks.
        soft: soft masks instead of binary ones.
    """

    name: str
    base: str = "plain"
    strategy: str | None = None
    own: bool = False
    soft: bool = False


#: Table 1.
TABLE = (Row("none"), Row("LM1", strategy="lm1"), Row("LM2", strategy="lm2"), Row("3x3", strategy="3x3"))


#: What its conclusion asks for.
EXTENSIONS = (
    Row("LM2 split", strategy="lm2-split"),
    Row("LM2, each face's own", strategy="lm2", own=True),
    Row("LM2, soft", strategy="lm2", soft=True),
    Row("none, base with occluders", "occluders"),
    Row("LM2, base with occluders", "occluders", "lm2"),
    Row("none, base without background", "background"),
    Row("LM2, base without background", "background", "lm2"),
)


@dataclass(frozen=True)
class PDSNSettings:
    """Everything that the figures depend on.

    Attributes:
        data: "lfw" (people with at least 10 images) or "orl".
        size: (height, width) of the face boxes.
        people: the first so many; None: all.
        seeds: one whole run each: split, weights, occluders.
        past: also the rows past the paper.
        network, width, stem_pool: of the base; see :class:`~occfast.models.ResNet`.
        scale, margin: of the large margin cosine loss.
        epochs, batch_size, learning_rate, weight_decay: of the base, by SGD; patience: epochs without a better
            validation accuracy after which it stops, 0: never.
        generator_epochs, generator_patience, generator_batch, generator_rate, weight: of the mask generators; λ.
        dictionary_images: training images whose pairs make a dictionary, drawn by the seed; None: all.
        segmentation_width, segmentation_epochs, segmentation_rate: of the U-Net.
        compare: what is compared by cosine, "maps" or "features"; the report has both, the table this one.
        map_images, map_stride: of the occlusion map behind the base with occluders.
        percentiles: of the sweep on the validation images.
    """

    data: str = "lfw"
    size: tuple[int, int] = (128, 96)
    people: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    past: bool = True
    network: str = "resnet34"
    width: int = 64
    stem_pool: bool = False
    scale: float = 30.0
    margin: float = 0.35
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    patience: int = 15
    generator_epochs: int = 30
    generator_patience: int = 3
    generator_batch: int = 60
    generator_rate: float = 1e-3
    weight: float = 10.0
    dictionary_images: int | None = None
    segmentation_width: float = 1.0
    segmentation_epochs: int = 12
    segmentation_rate: float = 1e-3
    compare: Literal["maps", "features"] = "maps"
    map_images: int = 200
    map_stride: int = 4
    percentiles: tuple[float, ...] = (0, 5, 10, 15, 20, 25, 30, 35, 40, 50)

    def __post_init__(self) -> None:
        if self.data not in ("lfw", "orl"):
            raise ValueError(f"data: expected 'lfw' or 'orl', got {self.data!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {self.seeds}")
        for seed in self.seeds:
            checks.seed(seed)
        if self.compare not in ("maps", "features"):
            raise ValueError(f"compare: expected 'maps' or 'features', got {self.compare!r}")
        if self.people is not None and self.people < 2:
            raise ValueError(f"people: expected at least 2, got {self.people}")
        for name in ("width", "epochs", "batch_size", "generator_epochs", "generator_patience", "segmentation_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @classmethod
    def small(cls, **changes: Any) -> PDSNSettings:
        """ORL and narrow networks: minutes on one core."""
        small = cls(
            data="orl",
            size=(96, 72),
            seeds=(0,),
            past=False,
            network="resnet18",
            width=16,
            epochs=30,
            patience=0,
            generator_epochs=12,
            segmentation_width=0.125,
            segmentation_epochs=10,
            segmentation_rate=3e-3,
            map_images=40,
            map_stride=8,
        )
        return replace(small, **changes)

    @property
    def rows(self) -> tuple[Row, ...]:
        return TABLE + EXTENSIONS if self.past else TABLE

    def fingerprint(self) -> str:
        """Names the folder of the steps: other settings or versions never reuse a result."""
        stated = {name: value for name, value in asdict(self).items() if name not in ("seeds", "past")}
        return hashlib.sha256(
            json.dumps([stated, __version__, torch.__version__], sort_keys=True).encode()
        ).hexdigest()[:12]
