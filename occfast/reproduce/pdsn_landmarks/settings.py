"""Settings of the pdsn-landmarks reproduction at each scale, and the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ... import checks

#: Table 1, rank-1 in %: no masks, LM1, LM2, 3×3; "nose to chin" is stated without masks only.
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
#: Accuracy of the segmentation in %, section 5.2.
PAPER_SEGMENTATION = 90.49
TABLES = (1,)
#: Figure 1 explains Siamese networks.
FIGURES = (2, 3, 4, 5, 6, 7, 8, 9)
SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Row:
    """A way to compare faces: a column of Table 1, or a row beyond the paper.

    Attributes:
        name: name in the report.
        base: training of the base: "plain" (clean images), "occluders" (trigueros2018's noisy occluders placed by the
            plain base's map, and drawn masks, sunglasses and bands) or "background" (the surroundings of the face are
            replaced by another image's).
        strategy: strategy of :func:`occfast.pdsn.regions.named`; None: no masks.
        own: use regions of each probe's own landmarks.
        soft: use soft masks instead of binary ones.
    """

    name: str
    base: str = "plain"
    strategy: str | None = None
    own: bool = False
    soft: bool = False


#: Table 1.
TABLE = (Row("none"), Row("LM1", strategy="lm1"), Row("LM2", strategy="lm2"), Row("3x3", strategy="3x3"))


#: Beyond the paper: what its conclusion suggests, and regions of each face's own landmarks.
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
        boxes: "fitted" to the data set's landmarks, or "detected" by MTCNN with the landmarks, as in the paper;
            images without a face are left out.
        people: number of people; None: all.
        seeds: each seed is one complete run with its own split, weights and occluders.
        extensions: whether to add the rows beyond the paper (:data:`EXTENSIONS`).
        network: architecture of the base.
        width: channels of its first stage.
        stem_pool: whether its stem pools; see :class:`~occfast.models.ResNet`.
        scale: s of the large margin cosine loss.
        margin: m of the large margin cosine loss.
        epochs: maximum number of epochs of the base, which is trained with SGD.
        batch_size: of the base.
        learning_rate: of the base.
        weight_decay: of the base.
        patience: number of epochs without a better validation accuracy after which training stops; 0: never.
        generator_epochs: maximum number of epochs of the mask generators, which share the images of an epoch.
        generator_images: number of images that each generator sees at most, whatever the number of regions, in place
            of ``generator_epochs``; None: so many epochs.
        generator_patience: number of epochs without progress after which a generator stops.
        generator_batch: batch size of the mask generators.
        generator_rate: learning rate of the mask generators.
        weight: λ of the mask generators' loss.
        dictionary_images: number of random training images whose pairs make a dictionary; None: all.
        segmentation_on: occlusions that the U-Net is trained on, beside clean images: "all" of the table, or
            "accessories", face masks and sunglasses alone, as in the paper.
        segmentation_width: width of the U-Net.
        segmentation_epochs: maximum number of epochs of the U-Net.
        segmentation_rate: learning rate of the U-Net.
        compare: "maps" or "features": what Table 1 compares by cosine; results hold both.
        map_images: number of images of the occlusion map behind the base with occluders.
        map_stride: stride of that map in pixels.
        percentiles: percentiles to try on the validation images.
    """

    data: str = "lfw"
    size: tuple[int, int] = (128, 96)
    boxes: Literal["fitted", "detected"] = "fitted"
    people: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    extensions: bool = True
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
    generator_images: int | None = None
    generator_patience: int = 3
    generator_batch: int = 60
    generator_rate: float = 1e-3
    weight: float = 10.0
    dictionary_images: int | None = None
    segmentation_on: Literal["all", "accessories"] = "all"
    segmentation_width: float = 1.0
    segmentation_epochs: int = 12
    segmentation_rate: float = 1e-3
    compare: Literal["maps", "features"] = "maps"
    map_images: int = 200
    map_stride: int = 4
    percentiles: tuple[float, ...] = (0, 5, 10, 15, 20, 25, 30, 35, 40, 50)

    def __post_init__(self) -> None:
        checks.choice(self.data, "data", ("lfw", "orl"))
        checks.choice(self.boxes, "boxes", ("fitted", "detected"))
        checks.choice(self.segmentation_on, "segmentation_on", ("all", "accessories"))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {self.seeds}")
        for seed in self.seeds:
            checks.seed(seed)
        checks.choice(self.compare, "compare", ("maps", "features"))
        if self.generator_images is not None:
            checks.integer(self.generator_images, "generator_images", 1)
        if self.people is not None and self.people < 2:
            raise ValueError(f"people: expected at least 2, got {self.people}")
        for name in ("width", "epochs", "batch_size", "generator_epochs", "generator_patience", "segmentation_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @classmethod
    def of(cls, scale: str, **changes: Any) -> PDSNSettings:
        """Return the settings of a scale with some changes.

        Args:
            scale: "smoke" (ORL, minutes), "small" (LFW, a quarter of ResNet-34's channels, hours on a processor) or
                "paper" (LFW, ResNet-34).
            changes: values of attributes.
        """
        found = {
            "smoke": cls.small(epochs=28, generator_epochs=8, segmentation_epochs=8),
            "small": cls(
                seeds=(0,),
                width=16,
                epochs=24,
                segmentation_width=0.25,
                segmentation_epochs=6,
                generator_epochs=12,
                map_images=100,
            ),
            "paper": cls(seeds=(0,)),
        }
        if scale not in found:
            raise ValueError(f"scale: expected one of {', '.join(found)}, got {scale!r}")
        return replace(found[scale], **changes)

    @classmethod
    def small(cls, **changes: Any) -> PDSNSettings:
        """Return settings for ORL and narrow networks: minutes on one core."""
        small = cls(
            data="orl",
            size=(96, 72),
            seeds=(0,),
            extensions=False,
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

    def epochs_of(self, regions: int, images: int) -> int:
        """Return the maximum number of epochs of a number of mask generators, on a number of training images."""
        if self.generator_images is None:
            return self.generator_epochs
        return max(1, round(self.generator_images * regions / images))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The columns of Table 1 and, with ``extensions``, the rows beyond the paper."""
        return TABLE + EXTENSIONS if self.extensions else TABLE
