"""The interface of data sets of faces, and data sets made from others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .images import decode


@dataclass(frozen=True)
class Face:
    """One face of a data set.

    Attributes:
        image: uint8 [C, H, W] with C = 3 (RGB) or 1 (gray).
        label: number of the person, from 0.
        name: name of the image, unique in its data set.
        landmarks: float64 [5, 2], (row, column) in pixels of ``image``: left eye, right eye, nose, left and right
            corner of the mouth, as seen in the image; or None.
    """

    image: Tensor
    label: int
    name: str
    landmarks: Tensor | None


class FaceDataset(ABC):
    """Base class of data sets with N images.

    ``dataset[k]`` returns a :class:`Face`; iteration is in order. The attributes are known without opening an image, so
    that samplers, protocols and splits can be built at once.

    Attributes:
        names: names of the images, unique, [N].
        labels: number of the person in each image, int64 [N], from 0 to ``len(people) - 1``.
        people: names of the people, by number.
        landmarks: float64 [N, 5, 2] as in :class:`Face`, NaN for images without landmarks; or None.
        alignment: the alignment of the images; None if they are not aligned, or it is unknown.
    """

    names: Sequence[str]
    labels: Tensor
    people: Sequence[str]
    landmarks: Tensor | None = None
    alignment: Alignment | None = None

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def __getitem__(self, k: int) -> Face: ...

    def __iter__(self) -> Iterator[Face]:
        return (self[k] for k in range(len(self)))

    @cached_property
    def positions(self) -> dict[str, int]:
        """Number of the image of each name."""
        return {name: k for k, name in enumerate(self.names)}

    @property
    def counts(self) -> Tensor:
        """Number of images of each person, int64 [people]."""
        return self.labels.bincount(minlength=len(self.people))

    def encoded(self, k: int) -> bytes | None:
        """Return image k as it is stored (JPEG, PNG, ...), or None if it is not stored as a file.

        Raises:
            DataError: if it cannot be read.
        """
        return None

    def place(self, k: int) -> str:
        """Return where image k is stored, for messages."""
        return f"{type(self).__name__}, image {self.names[k]}"

    def landmarks_of(self, k: int) -> Tensor | None:
        """Return the landmarks of image k, float64 [5, 2], or None."""
        return self.landmarks[k] if self.landmarks is not None and self._has_landmarks[k] else None

    @cached_property
    def _has_landmarks(self) -> list[bool]:
        landmarks = self.landmarks
        return [] if landmarks is None else (~landmarks.isnan().flatten(1).any(1)).tolist()

    def select(
        self, *, min_images: int = 1, people: Iterable[str] | None = None, exclude: Iterable[str] = ()
    ) -> Subset:
        """Return the images of some of the people.

        Args:
            min_images: leaves out people with fewer images.
            people: keeps only these people.
            exclude: leaves out these people.

        Raises:
            ValueError: if nobody is left.
            DataError: if ``people`` or ``exclude`` has names that are not in :attr:`people`.
        """
        names = [self.people[label] for label in self.labels.tolist()]
        return Subset(self, keep(names, type(self).__name__, min_images, people, exclude))

    def _index(self, k: int) -> int:
        """Return ``k`` counted from the front. Raises IndexError beyond the end."""
        if not -len(self) <= k < len(self):
            raise IndexError(f"image {k} of {len(self)}")
        return k % len(self)


class EncodedFaces(FaceDataset):
    """Base class of data sets that store image files (JPEG, PNG, ...), on disk or in an archive.

    Args:
        gray: True decodes images as gray, [1, H, W]; False as RGB, [3, H, W]; None as each image is stored.
    """

    def __init__(self, *, gray: bool | None = False) -> None:
        self.gray = gray

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        content = self.encoded(k)
        assert content is not None
        image = decode(content, self.place(k), gray=self.gray)
        return Face(image, int(self.labels[k]), self.names[k], self.landmarks_of(k))


class Subset(FaceDataset):
    """A subset of the images of a data set, in the given order. People are renumbered in their previous order.

    Args:
        dataset: any data set of faces.
        indices: numbers of the images, without repeats.
    """

    def __init__(self, dataset: FaceDataset, indices: Iterable[int] | Tensor) -> None:
        self.dataset = dataset
        self.indices = [dataset._index(int(k)) for k in indices]
        if len(set(self.indices)) < len(self.indices):
            raise ValueError("indices: expected each image at most once, got repeats")
        self.names = [dataset.names[k] for k in self.indices]
        kept, self.labels = dataset.labels[self.indices].unique(return_inverse=True)
        self.people = [dataset.people[int(person)] for person in kept]
        self.landmarks = None if dataset.landmarks is None else dataset.landmarks[self.indices]
        self.alignment = dataset.alignment

    def encoded(self, k: int) -> bytes | None:
        """Return the stored image file of image k."""
        return self.dataset.encoded(self.indices[k])

    def place(self, k: int) -> str:
        """Return the location of image k for error messages."""
        return self.dataset.place(self.indices[k])

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        face = self.dataset[self.indices[k]]
        return Face(face.image, int(self.labels[k]), face.name, face.landmarks)


class WithLandmarks(FaceDataset):
    """A data set with other landmarks, such as those of a file or a detector.

    Args:
        dataset: any data set of faces.
        landmarks: [N, 5, 2], (row, column) in pixels of the images, NaN for images without landmarks.
    """

    def __init__(self, dataset: FaceDataset, landmarks: Tensor) -> None:
        if landmarks.shape != (len(dataset), 5, 2):
            raise ValueError(f"landmarks: expected shape [{len(dataset)}, 5, 2], got {list(landmarks.shape)}")
        self.dataset, self.landmarks = dataset, landmarks.double()
        self.names, self.labels, self.people = dataset.names, dataset.labels, dataset.people
        self.alignment = dataset.alignment

    def encoded(self, k: int) -> bytes | None:
        """Return the stored image file of image k."""
        return self.dataset.encoded(k)

    def place(self, k: int) -> str:
        """Return the location of image k for error messages."""
        return self.dataset.place(k)

    def __getitem__(self, k: int) -> Face:
        k = self._index(k)
        face = self.dataset[k]
        return Face(face.image, face.label, face.name, self.landmarks_of(k))


def keep(
    identities: Sequence[str],
    source: str,
    min_images: int = 1,
    people: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
) -> list[int]:
    """Return the numbers of the images to keep, given the person in each; see :meth:`FaceDataset.select`."""
    if min_images < 1:
        raise ValueError(f"min_images: expected at least 1, got {min_images}")
    count = Counter(identities)
    wanted, unwanted = None if people is None else set(people), set(exclude)
    for asked, name in ((wanted or set(), "people"), (unwanted, "exclude")):
        unknown = sorted(asked - count.keys())
        if unknown:
            raise DataError(f"{source}: {name}: {len(unknown)} without an image here: {', '.join(unknown[:5])}")
    kept = {
        person
        for person, images in count.items()
        if images >= min_images and person not in unwanted and (wanted is None or person in wanted)
    }
    if count and not kept:
        raise ValueError(f"{source}: expected people to be left, min_images = {min_images} leaves none of {len(count)}")
    return [k for k, identity in enumerate(identities) if identity in kept]


def number_people(identities: Sequence[str], source: str) -> tuple[list[str], Tensor]:
    """Return the people in sorted order, and the number of the person in each image, int64 [N]."""
    if not identities:
        raise DataError(f"{source}: expected images of people, found none")
    people = sorted(set(identities))
    number = {person: k for k, person in enumerate(people)}
    return people, torch.tensor([number[identity] for identity in identities])


def check_people(people: Sequence[str], source: str) -> None:
    """Raise DataError if two labels have one name."""
    twice = [person for person, times in Counter(people).items() if times > 1]
    if twice:
        raise DataError(f"{source}: expected a name of its own for every label, got {twice[0]!r} twice")


@dataclass(frozen=True)
class Alignment:
    """A record of how images were aligned.

    It is stored with data, features and weights, because a mismatch reduces accuracy without any error.

    Attributes:
        template: name of the template.
        size: (height, width) of the images in pixels.
        points: positions of the five landmarks at that size, (row, column).
        transform: as in :func:`align_faces`.
        border: as in :func:`align_faces`.
        color: "RGB", "gray", or None if the images kept their own colors.
    """

    template: str
    size: tuple[int, int]
    points: tuple[tuple[float, float], ...]
    transform: str
    border: str
    color: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Alignment:
        """Restore a record from :meth:`as_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        points = tuple((float(r), float(c)) for r, c in values["points"])
        height, width = values["size"]
        if values.get("color") == "grey":  # files of version 0.1.0
            values = {**values, "color": "gray"}
        return cls(**{**values, "size": (int(height), int(width)), "points": points})

    @classmethod
    def read(cls, values: object, source: str) -> Alignment | None:
        """Restore a record that a file holds, or None. Raises DataError, which names the file (``source``)."""
        if values is None:
            return None
        try:
            return cls.from_dict(values)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{source}: expected the record of an alignment, got {str(values)[:80]}") from error
