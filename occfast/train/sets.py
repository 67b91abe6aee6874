"""Verification sets of a recipe: opened and checked before training begins, scored at every validation."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import evaluate
from ..data import LFW, Alignment, FaceDataset, Resized, Subset, VerificationBin, open_dataset
from ..data.align import aligned_as
from ..data.digests import image_digest
from ..data.overlap import shared_names
from ..evaluate.protocols import PairProtocol
from ..evaluate.scores import pair_scores
from ..models import Preprocessing, features
from .batches import FromDisk, InMemory
from .engine import Engine, NotFinite
from .settings import PAIR_LISTS, DataPart, SetPart
from .validate import collect

_FOLDS = 10  # of sets without folds of their own


@dataclass(frozen=True, eq=False)
class VerificationSet:
    """Pairs of faces that every validation scores.

    Attributes:
        name: Name in logs and of ``validation.metric``.
        faces: The images that the pairs use, as the network takes them.
        protocol: Pairs, by number in ``faces``.
        prepare: Converts stored images to the network's input.
        source: Source of the images' pixels.
    """

    name: str
    faces: FaceDataset
    protocol: PairProtocol
    prepare: Preprocessing
    source: InMemory | FromDisk

    @property
    def columns(self) -> list[str]:
        """Names of the values of :meth:`evaluate`."""
        return list(_values(self.name, _verify(self.protocol, torch.arange(len(self.protocol.same)).double())))

    @property
    def digest(self) -> str:
        """Digest of pairs, folds and images, to recognize the set when a run is resumed."""
        digest = hashlib.blake2b(digest_size=16)
        folds = self.protocol.folds
        parts = (self.protocol.index, self.protocol.same, folds if isinstance(folds, Tensor) else torch.tensor(folds))
        for part in parts:
            digest.update(f"{tuple(part.shape)} ".encode() + part.contiguous().numpy().tobytes())
        for k in range(len(self.faces)):
            digest.update(image_digest(self.faces, k))
        return digest.hexdigest()

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Score the engine's network: ``NAME/accuracy``, and ``NAME/tar_at_FAR`` where there are pairs enough.

        Each process embeds its share. The features are those of :func:`occfast.evaluate.embed`, an image's and its
        mirror image's summed, so ``occfast evaluate`` gives the same values for the weights of this moment.

        Raises:
            NotFinite: If an answer of the network is NaN or infinite.
        """
        network = engine.objective.network
        assert isinstance(network, nn.Module)
        embed = features(network)

        def both(images: Tensor) -> Tensor:
            return embed(images).float() + embed(images.flip(3)).float()

        found = collect(engine, self.source, len(self.faces), self.prepare, both)
        finite = found.isfinite().all(1)
        if not bool(finite.all()):
            names = [self.faces.names[k] for k in (~finite).nonzero()[:, 0].tolist()]
            where = f"an answer in the verification set {self.name}"
            raise NotFinite(where, max(engine.epoch - 1, 0), engine.step, engine.rate, names)
        dead = found.norm(dim=1) == 0  # no error: similar to nobody
        alive = found.masked_fill(dead[:, None], 1.0)
        first, second = self.protocol.index.T
        scores = pair_scores(alive, alive, first, second)
        return _values(self.name, _verify(self.protocol, scores.masked_fill(dead[first] | dead[second], 0.0)))


def _verify(protocol: PairProtocol, scores: Tensor) -> evaluate.Verification:
    return evaluate.verification(scores, protocol.same, protocol.folds, fars=protocol.fars)


def _values(name: str, found: evaluate.Verification) -> dict[str, float]:
    assert found.accuracy is not None
    rates = {f"{name}/tar_at_{far:g}": entry.tar for far, entry in found.tar_at_far.items() if entry.supported}
    return {f"{name}/accuracy": found.accuracy, **rates}


def open_sets(
    parts: Sequence[SetPart],
    data: DataPart,
    preprocessing: Preprocessing,
    source_of: Callable[[FaceDataset, Tensor], InMemory | FromDisk],
    trained: tuple[Sequence[str], Sequence[str]],
) -> list[VerificationSet]:
    """Open the verification sets of a recipe; a warning names people who are trained on as well.

    Args:
        parts: The sets.
        data: The training data's part of the recipe: images without alignment are resized if those are.
        preprocessing: Preparation of the network's images; the sets are aligned as it records.
        source_of: Function of a data set and the numbers of its images that returns the source of their pixels.
        trained: Names of the images to train on, and of the person on each.

    Raises:
        DataError: If a set is missing or damaged.
        ValueError: If it does not suit the network or its folds; the message names the set.
    """
    found = []
    for part in parts:
        try:
            faces, protocol = _open(part, preprocessing.color == "gray")
            used, index = protocol.index.unique(return_inverse=True)
            own = Subset(faces, used)
            protocol = replace(protocol, index=index.reshape(-1, 2))
            _verify(protocol, torch.arange(len(protocol.same)).double())  # folds that don't suit are known before hours
            ready = _prepared(own, part, data, preprocessing)
        except ValueError as error:
            raise type(error)(f"validation.sets: {part.title}: {error}") from error
        _warn_of_shared(part.title, own, trained)
        found.append(
            VerificationSet(part.title, ready, protocol, preprocessing, source_of(ready, torch.arange(len(ready))))
        )
    return found


def _open(part: SetPart, gray: bool) -> tuple[FaceDataset, PairProtocol]:
    """Return the faces of a set and its pairs."""
    path = Path(part.set)
    if part.is_list:
        faces = open_dataset(path.parent if part.images is None else part.images, gray=gray, landmarks=part.landmarks)
        protocol = evaluate.listed_pairs(faces, path, part.title, folds=part.folds)
        if protocol.folds is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # missing images have raised a warning above
                protocol = evaluate.listed_pairs(faces, path, part.title, folds=_FOLDS)
        return faces, protocol
    faces = open_dataset(part.set, gray=gray, landmarks=part.landmarks)
    if isinstance(faces, LFW):
        if part.folds is not None:
            raise ValueError(f"folds: only valid for a .bin or a list without folds, got {part.folds}")
        return faces, evaluate.lfw(faces)
    plain = getattr(faces, "dataset", faces)  # under landmarks of a file
    if isinstance(plain, VerificationBin):
        return faces, evaluate.packed_pairs(plain, folds=part.folds or _FOLDS)
    raise ValueError(
        f"expected lfw, a .bin or a list of pairs ({', '.join(PAIR_LISTS)}), got a data set of kind "
        f"{type(faces).__name__}"
    )


def _prepared(faces: FaceDataset, part: SetPart, data: DataPart, how: Preprocessing) -> FaceDataset:
    """Return the faces as the network expects them: aligned as its training data, or resized if those are."""
    gray = how.color == "gray"
    alignment = Alignment.read(how.alignment, "data")
    size = tuple(faces[0].image.shape[1:])
    if part.aligned or (alignment is None and data.size is not None):
        return faces if size == how.size else Resized(faces, how.size, gray=gray)
    if alignment is not None and faces.alignment is None:
        if faces.landmarks is None:
            raise ValueError(
                f"no landmarks to align by; find them with occfast data landmarks and give them as landmarks, or, for "
                f"faces that are aligned to {alignment.template} already, give aligned: true"
            )
        lost = faces.landmarks.isnan().flatten(1).any(1).nonzero()[:, 0].tolist()
        if lost:
            raise ValueError(f"no landmarks to align by on {len(lost)} images, such as {faces.names[lost[0]]}")
        return aligned_as(faces, alignment, gray=gray)
    if faces.alignment is not None:  # colors are the recipe's, as those of the training data
        theirs = replace(faces.alignment, color=None).as_dict()
        how.require(replace(how, alignment=theirs))
    if size != how.size:
        raise ValueError(
            f"expected images of {how.size[0]}x{how.size[1]}, as those to train on, got {size[0]}x{size[1]} for "
            f"{faces.names[0]}; to have them resized, give aligned: true"
        )
    return faces


def _warn_of_shared(name: str, faces: FaceDataset, trained: tuple[Sequence[str], Sequence[str]]) -> None:
    """Warn of people who are trained on: by name, or, where names are numbers, by an image of the same name."""
    known = set(zip(*trained, strict=True))
    people = {entry.matches for entry in shared_names(sorted(set(trained[1])), faces.people)}
    persons = [faces.people[label] for label in faces.labels.tolist()]
    people |= {person for image, person in zip(faces.names, persons, strict=True) if (image, person) in known}
    if people:
        first = sorted(people)
        warnings.warn(
            f"validation.sets: {name}: {len(people)} of {len(faces.people)} people are trained on as well, which makes "
            f"its accuracy too optimistic: {', '.join(first[:5])}{', …' * (len(first) > 5)}; leave them out with "
            "data.arguments.exclude (occfast data overlap)",
            stacklevel=2,
        )


__all__ = ["VerificationSet", "open_sets"]
