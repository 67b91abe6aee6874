"""Faces for the networks on a trunk, and the trunk: whom they are trained on, chosen by and tested with."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ....data import Aligned, FaceDataset
from ....data.roots import find_root
from ....errors import DataError
from ....evaluate import PairProtocol
from ....evaluate.protocols import drawn_pairs
from ....files import read_bytes
from ....models import MobileFaceNet, Preprocessing
from ....train import load_network
from ...graph import fingerprint
from ..sources import CachedDataset, Sources

TEMPLATE = "sphereface-112x96"
#: Where the weights lie in the folder of the data sets.
WEIGHTS = "models/mobilefacenet-112x96.safetensors"
#: Images of the default data, by name of :attr:`TrunkSources.sets`, for predictions.
SIZES = {"train": 6082, "others": 3238, "choosing": 1760, "lfw": 7701}
_PREPROCESSING = Preprocessing((112, 96), "RGB", mean=0.5, std=128 / 255)


class Trunk(nn.Module):
    """MobileFaceNet up to its last pooling, frozen: what a head is trained on.

    Args:
        network: with its weights.

    Input: float ``[N, 3, 112, 96]``. Output: float ``[N, 512]``.
    """

    def __init__(self, network: MobileFaceNet) -> None:
        super().__init__()
        layers = nn.Sequential(
            network.conv1, network.dw_conv1, network.blocks, network.conv2, network.linear7, nn.Flatten()
        )
        self.layers = fuse(layers.eval())  # folds the norms into the convolutions: 1.3 times as fast on a processor
        self.feature_size = network.linear7.bn.num_features
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled features."""
        found: Tensor = self.layers(x)
        return found


@dataclass
class TrunkSources(Sources):
    """The data of one run, and the trunk.

    Attributes:
        weights: file of the trunk's weights; None: :data:`WEIGHTS` in the folder of the data sets.
        listed: the people of "others" who are in LFW too; known once that data set is opened.
    """

    scale: str = "trunk"
    weights: Path | None = None
    listed: list[str] = field(default_factory=list)

    def _aligned(self, faces: FaceDataset) -> FaceDataset:
        return Aligned(faces, TEMPLATE, gray=False)

    @cached_property
    def _others(self) -> FaceDataset:
        faces = self._open("others")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says it
            found, unknown = self.in_lfw("others", faces)
        self.listed = list(dict.fromkeys(entry.person for entry in found))
        if unknown or not self.listed or len(self.listed) == len(faces.people):
            raise DataError(
                f"{self.where('others')}: expected a data set in which some people are in LFW and others are not, with "
                "exclude_for_lfw.csv beside it or names in place of numbers: the former serve to choose "
                "hyperparameters, the latter to train"
            )
        return self._aligned(faces)

    @cached_property
    def others(self) -> CachedDataset:
        """Aligned faces of people to train on whom A does not know and LFW does not have."""
        faces = self._others
        return CachedDataset(faces.select(exclude=self.listed))

    @cached_property
    def choosing(self) -> tuple[CachedDataset, PairProtocol]:
        """Aligned faces of the people of "others" who are in LFW, and pairs of them, to choose hyperparameters by."""
        everybody = self._others  # sets ``listed``
        faces = CachedDataset(everybody.select(people=self.listed))
        return faces, drawn_pairs(faces, folds=2 if len(faces.people) < 20 else 10)

    def faces(self, name: str) -> CachedDataset:
        """Return the faces of one of :attr:`sets`."""
        return {
            "train": lambda: self.train,
            "others": lambda: self.others,
            "choosing": lambda: self.choosing[0],
            "lfw": lambda: self.pairs[0],
        }[name]()

    def protocol(self, name: str) -> PairProtocol:
        """Return the pairs of "choosing" or "lfw"."""
        return self.choosing[1] if name == "choosing" else self.pairs[1]

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of faces by their use; no image is in two of them, and nobody of "train" or "others" in another."""
        return tuple(SIZES)

    # -- the trunk ------------------------------------------------------------------------------------------

    @cached_property
    def weights_file(self) -> Path:
        """The file of the trunk's weights."""
        if self.weights is not None:
            return self.weights
        folder, _, name = WEIGHTS.partition("/")
        path = find_root(None if self.root is None else self.root / folder, folder, WEIGHTS) / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; name the trunk's weights with --set trunk=FILE")
        return path

    def trunk(self) -> Trunk:
        """Load the trunk."""
        loaded = load_network(self.weights_file, network="mobilefacenet", preprocessing=_PREPROCESSING)
        assert isinstance(loaded.network, MobileFaceNet)
        return Trunk(loaded.network)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preparation of the trunk's input."""
        return _PREPROCESSING

    # -- for the graph ----------------------------------------------------------------------------------------

    @property
    def fingerprints(self) -> dict[str, Callable[[], str]]:
        """Functions that compute the fingerprint of each data set and of the trunk."""
        return {
            **{name: lambda name=name: fingerprint(self.faces(name)) for name in self.sets},  # type: ignore[misc]
            "trunk": lambda: hashlib.sha256(read_bytes(self.weights_file)).hexdigest(),
        }

    @cached_property
    def here(self) -> bool:
        """Whether the data and the weights are available."""
        if self.weights is not None and not self.weights.is_file():
            raise DataError(f"{self.weights}: no such file (--set trunk=)")
        try:
            return bool(super().here) and self.weights_file.is_file()
        except DataError:
            if self.given or self.weights is not None:
                raise
            return False

    def about(self) -> dict[str, Any]:
        """Describe the data, for the report."""
        names = {"train": self.where("train"), "others": self.where("others"), "choosing": self.where("others")}
        found: dict[str, Any] = {
            name: {
                "name": names.get(name, self.where("lfw")),
                "images": len(self.faces(name)),
                "people": len(self.faces(name).people),
            }
            for name in ("train", "others", "choosing")
        }
        protocol = self.pairs[1]
        return {
            **found,
            "pairs": {"name": self.where("lfw"), "pairs": len(protocol.same), "missing": protocol.missing},
            "choosing pairs": len(self.choosing[1].same),
            "left_out": [vars(entry) for entry in self.left_out],
            "trunk": self.weights_file.name,
        }
