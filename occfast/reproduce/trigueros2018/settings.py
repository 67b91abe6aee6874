"""Settings of the trigueros2018 reproduction at each scale, and the paper's figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import checks
from ...occlude.locations import NORMAL_SPREAD
from ...sweep.types import MethodName
from ...train import Recipe, load_recipe
from ...train.augment import TEMPERATURES

#: Occluders (height, width) of the paper.
SIZES = tuple(TEMPERATURES)
#: Table 1, %: mean and standard deviation over locations, columns 20×20, 20×40, 40×40.
TABLE_1 = {
    "A": ((92.9, 10.99), (86.18, 18.51), (76.19, 27.89)),
    "A20x20": ((97.69, 2.62), (95.1, 5.64), (88.9, 14.13)),
    "A20x20R": ((97.12, 3.55), (93.98, 7.39), (86.93, 16.98)),
    "A20x40": ((97.75, 2.42), (95.85, 4.03), (90.64, 10.88)),
    "A20x40R": ((97.62, 2.9), (95.45, 5.12), (89.54, 13.29)),
    "A40x40": ((98.37, 1.7), (96.8, 3.16), (93.47, 6.94)),
    "A40x40R": ((98.31, 2.29), (96.52, 4.14), (92.61, 9.13)),
}
#: Table 2, %: accuracy on LFW and its standard deviation over the ten splits.
TABLE_2 = {
    "A": (97.33, 0.71),
    "B": (97.73, 0.76),
    "C": (98.12, 0.65),
    "A20x20": (97.4, 0.71),
    "B20x20": (97.85, 0.69),
    "C20x20": (98.35, 0.73),
    "A20x40": (97.68, 0.83),
    "B20x40": (97.79, 0.82),
    "C20x40": (98.42, 0.68),
    "A40x40": (97.18, 0.63),
    "B40x40": (97.5, 0.57),
    "C40x40": (98.16, 0.64),
}


@dataclass(frozen=True)
class Scheme:
    """How a network of Table 1 is occluded in training.

    Attributes:
        title: behind the network's size in reports.
        locations: "map": P = softmax(O / T) of A's map (Eq. 4); or "normal" about the center (R), or "uniform".
        temperature: factor of the paper's T.
        spread: standard deviation of "normal" along each axis, as a fraction of the image's size.
        share: share of the images that are occluded.
    """

    title: str
    locations: str = "map"
    temperature: float = 1.0
    spread: float = NORMAL_SPREAD
    share: float = 1.0


#: Schemes by the end of a network's name; the paper's are the first two.
SCHEMES = {
    "": Scheme(""),
    "R": Scheme("R", "normal"),
    "Rwide": Scheme("R, σ = 0.5", "normal", spread=0.5),
    "U": Scheme("R, uniform", "uniform"),
    "cool": Scheme(", T/2", temperature=0.5),
    "half": Scheme(", half covered", share=0.5),
    "Rhalf": Scheme("R, half covered", "normal", share=0.5),
}
_NAME = re.compile(r"[ABC](?:(\d+)x(\d+)([A-Za-z]*))?")
#: Networks of Figure 6.
FIGURE_6 = ("A", "A20x20", "A20x40", "A40x40")
#: Figures 3, 5 and 7 are photographs.
FIGURES = (1, 2, 4, 6)
TABLES = (1, 2)
#: A, trained for as many more epochs as the fine-tuned networks, without occluders.
CONTROL = "A longer"
SCALES = ("demo", "smoke", "small", "paper")
_AT_AR = "low_resolution={share: 0.5, factor: 2.7}"


def times(size: tuple[int, int]) -> str:
    """Return a size as the paper's network names have it, such as 20x40."""
    return f"{size[0]}x{size[1]}"


def size_of(network: str) -> tuple[int, int] | None:
    """Return the occluder that a network was trained with, from its name; None for A, B and C."""
    found = _NAME.fullmatch(network)
    return (int(found[1]), int(found[2])) if found and found[1] else None


def scheme_of(network: str) -> Scheme | None:
    """Return how a network was occluded in training, from its name; None for A, B and C."""
    found = _NAME.fullmatch(network)
    return SCHEMES[found[3]] if found and found[1] else None


def pretty(name: str) -> str:
    """Return the name of a network or an occluder as reports show it."""
    if name == CONTROL:
        return "A, trained as long"
    size, scheme = size_of(name), scheme_of(name)
    return name.replace("x", "×") if size is None or scheme is None else f"{name[0]}{size[0]}×{size[1]}{scheme.title}"


@dataclass(frozen=True)
class Settings:
    """Everything that the figures depend on besides the data.

    Attributes:
        scale: "demo", "smoke", "small" or "paper"; determines the data.
        seeds: each seed is one complete run with its own split, weights, batches and occluders.
        networks: networks of Table 1 to train besides A.
        network: arguments of :class:`~occfast.models.PaperNet`.
        common: overrides of the packaged recipes for all networks.
        base: overrides for A.
        fine: overrides for networks A... that are fine-tuned from A.
        triplet: overrides for networks B... and C....
        fine_seed: added to the seed for fine-tuned networks.
        split: images of each person for training, for P and for Table 1; None: by ``share``.
        share: share of the training set that is held out for P and for Table 1.
        placement_share: share of the held-out images that P may be made from; Table 1 has the others.
        same_images: whether Table 1's maps are of the images that all its networks recognize uncovered; otherwise each
            map is of those that its own network recognizes.
        placement_images: maximum number of images of a map for P; each is recognized without an occluder.
        table_images: maximum number of images of a map of Table 1.
        stride: distance of neighboring positions of the occluder in pixels; 1 in the paper.
        map_method: method of :func:`~occfast.occlusion_map`.
        finer_images: images of the table that A and the network of the largest occluder are mapped on at every second
            pixel, to tell what ``stride`` changes; 0 for no such maps.
        control: whether to train :data:`CONTROL` too.
        precision: "fp32" or "bf16" in training; maps and features are computed in fp32.
    """

    scale: str = "paper"
    seeds: tuple[int, ...] = (0,)
    networks: tuple[str, ...] = tuple(TABLE_1)[1:]
    network: tuple[tuple[str, Any], ...] = ()
    common: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    triplet: tuple[str, ...] = ()
    fine_seed: int = 0
    split: tuple[int, int, int] | None = None
    share: float = 0.1
    placement_share: float = 0.5
    same_images: bool = True
    placement_images: int = 1000
    table_images: int = 1000
    stride: int = 1
    map_method: MethodName = "auto"
    finer_images: int = 0
    control: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {self.scale!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different numbers, got {self.seeds}")
        for seed in self.seeds:
            checks.seed(seed)
        known = [f"A{times(size)}{end}" for size in SIZES for end in SCHEMES]
        if set(self.networks) - set(known) or len(set(self.networks)) != len(self.networks):
            raise ValueError(f"networks: expected different names among {', '.join(known)}, got {self.networks}")
        paper = tuple(TABLE_1)[1:]
        if self.scale != "demo" and set(paper) - set(self.networks):
            raise ValueError(f"networks: expected all of {', '.join(paper)} at scale {self.scale}, got {self.networks}")
        if self.split is not None and (len(self.split) != 3 or min(self.split) < 1):
            raise ValueError(f"split: expected three positive numbers of images, got {self.split}")
        if (self.split is None) == (self.scale == "demo"):
            raise ValueError(f"split: goes with scale demo, and only with it, got {self.split} at {self.scale}")
        width = dict(self.network).get("width", 1.0)
        if not (isinstance(width, int | float) and width > 0):
            raise ValueError(f"width: expected a positive number, got {width}")
        if self.stride < 1:
            raise ValueError(f"stride: expected at least 1, got {self.stride}")
        checks.number(self.share, "share", 0.0, 0.9)
        checks.number(self.placement_share, "placement_share", 0.0, 0.99, above=0.0)
        checks.integer(self.finer_images, "finer_images", 0)
        checks.flag(self.same_images, "same_images")
        checks.choice(self.precision, "precision", ("fp32", "bf16"))

    @classmethod
    def of(cls, scale: str, **changes: Any) -> Settings:
        """Return the settings of a scale with some changes.

        Args:
            scale: "demo" (ORL): Table 1 alone, with all 40 people, a quarter of the channels, batch normalization;
                minutes. "smoke" (ORL): both tables with 30 people; minutes. "small" (CelebA subset): a quarter of
                the channels, batch normalization, half of the images at AR's resolution, and Table 1 with further
                placements; hours. "paper": the paper's network and numbers; the optimizer and
                the number of epochs, which it does not state, are those of the packaged recipes.
            changes: values of attributes.
        """
        adam = ("optimizer.name=adamw", "optimizer.weight_decay=1e-4", "optimizer.warmup=0.1", "data.std=0.25")
        jitter = "jitter={flip: 0.5, shift: 0.03, scale: 0.05, turn: 5.0, gain: 0.15, offset: 0.08}"
        wide = "jitter={flip: 0.5, shift: 0.05, scale: 0.1, turn: 8.0, gain: 0.2, offset: 0.1}"
        narrow = (("batch_norm", True), ("width", 0.25))
        found: dict[str, dict[str, Any]] = {
            "demo": dict(
                networks=("A20x20", "A20x40", "A40x40", "A20x40R"),
                network=narrow,
                common=(*adam, wide, "batch.size=20"),
                same_images=False,
                base=("epochs=60", "optimizer.learning_rate=0.004"),
                fine=("epochs=24", "optimizer.learning_rate=0.002"),
                fine_seed=1,
                split=(6, 2, 2),
                share=0.0,
                stride=4,
                control=True,
            ),
            "smoke": dict(
                network=narrow,
                common=(*adam, jitter, "batch.size=20", "validation.every=1000"),
                base=("epochs=50", "optimizer.learning_rate=0.004"),
                fine=("epochs=24", "optimizer.learning_rate=0.002"),
                triplet=("epochs=10", "batch.size=60", "batch.images_each=4", "optimizer.learning_rate=0.0005"),
                share=0.4,
                placement_images=60,
                table_images=60,
                stride=8,
            ),
            "small": dict(
                networks=(
                    *tuple(TABLE_1)[1:],
                    *(f"A{size}{end}" for size in ("20x40", "40x40") for end in ("Rwide", "U", "cool")),
                    *("A40x40half", "A40x40Rhalf"),
                ),
                network=narrow,
                # AR's eyes are 14.1 pixels apart, those of the network's input 38.
                common=(*adam, jitter, "batch.size=64", "validation.every=4", _AT_AR),
                base=("epochs=40", "optimizer.learning_rate=0.003"),
                fine=("epochs=4", "optimizer.learning_rate=0.001"),
                triplet=("epochs=3", "batch.size=128", "batch.images_each=4", "optimizer.learning_rate=0.0003"),
                share=0.3,
                placement_share=0.15,
                placement_images=200,
                table_images=400,
                stride=10,
                finer_images=60,
                control=True,
            ),
            "paper": dict(common=("validation.every=4", "data.workers=8", "data.memory=8GiB")),
        }
        if scale not in found:
            raise ValueError(f"scale: expected one of {', '.join(found)}, got {scale!r}")
        return cls(scale, **{**found[scale], **changes})

    @property
    def tables(self) -> tuple[int, ...]:
        """Tables of the paper that this scale has."""
        return (1,) if self.scale == "demo" else TABLES

    @property
    def figures(self) -> tuple[int, ...]:
        """Figures of the paper that this scale has."""
        return (1, 2) if self.scale == "demo" else FIGURES

    @property
    def rows(self) -> list[str]:
        """Networks of Table 1, A first."""
        placed = ["A", *([CONTROL] if self.control and self.scale == "demo" else []), *self.networks]
        return placed + ([CONTROL] if self.control and self.scale != "demo" else [])

    def recipe(self, name: str, seed: int) -> Recipe:
        """Return the recipe of a network, without the paths of the weights and the map that it starts from."""
        fine: Sequence[str] = self.triplet if name[0] in "BC" else self.fine
        arguments = ", ".join(f"{key}: {str(value).lower()}" for key, value in self.network)
        overrides = [
            "data.name=orl",
            f"network.arguments={{{arguments}}}",
            f"validation.share={self.share}",
            "log.tensorboard=false",
            f"seed={seed if name == 'A' else seed + self.fine_seed}",
            f"precision={self.precision}",
            *self.common,
            *(self.base if name == "A" else fine),
        ]
        if name not in ("A", CONTROL):
            overrides.append("start=another step")
        size, scheme = size_of(name), scheme_of(name)
        packaged = "A" if name == CONTROL else name
        if size is not None and scheme is not None:
            placed = scheme.locations == "map"
            packaged = f"{name[0]}{times(size)}{'' if placed else 'R'}"
            overrides += [
                f"occluder.locations={'another step' if placed else scheme.locations}",
                f"occluder.spread={scheme.spread}",
                f"occluder.share={scheme.share}",
            ]
            if placed:
                overrides.append(f"occluder.temperature={scheme.temperature * TEMPERATURES[size]}")
        return load_recipe(packaged, overrides)


__all__ = [
    "CONTROL",
    "FIGURES",
    "FIGURE_6",
    "SCALES",
    "SCHEMES",
    "SIZES",
    "TABLES",
    "TABLE_1",
    "TABLE_2",
    "Scheme",
    "Settings",
    "pretty",
    "scheme_of",
    "size_of",
    "times",
]
