"""Features of the faces of a data set, clean or occluded, with the settings that make them comparable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import checks
from ..data import Face, FaceDataset
from ..errors import DataError
from ..files import read_npz, write_npz
from ..models import Preprocessing
from ..occlude.base import OcclusionLike
from ..progress import Report
from ..progress import progress as show_progress
from .fingerprints import fingerprint, module_of

#: Fusion of the features of an image and of its mirror image: sum, concatenation, or no mirror image.
Flip = Literal["sum", "concat", "none"]

_KIND = "occfast.Embeddings"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of images of a data set.

    Attributes:
        features: Output of the network after flip fusion, not normalized, float32 [N, D].
        names: Names of the images.
        labels: Person on each image, int64 [N].
        covered: Share of the pixels of each image that are occluded, float32 [N].
        about: Settings: "preprocessing" (:class:`~occfast.models.Preprocessing` as a dict), "flip", "occlusion" (None
            for clean images) and "model" (fingerprint of the weights).
    """

    features: Tensor
    names: list[str]
    labels: Tensor
    covered: Tensor
    about: dict[str, Any]

    def require(self, other: Embeddings) -> None:
        """Check that other features are comparable with these.

        Raises:
            ValueError: The network, size, color order, scaling, alignment or flip fusion differs. The occlusion may
                differ.
        """
        mine, theirs = ({**e.about, **e.about["preprocessing"]} for e in (self, other))
        for name in ("model", "size", "color", "mean", "std", "alignment", "flip"):
            a, b = mine.get(name), theirs.get(name)
            if a != b and not (name == "alignment" and None in (a, b)):
                raise ValueError(f"features: can't be compared: {name} {a} here, {b} there")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.npz`` file, atomically."""
        return write_npz(
            path,
            kind=_KIND,
            about=json.dumps(self.about),
            features=self.features.numpy(),
            names=json.dumps(self.names),
            labels=self.labels.numpy(),
            covered=self.covered.numpy(),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Read a file written by :meth:`save`.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: The file is damaged or something else.
        """
        content = read_npz(path)
        if str(content.get("kind", "")) != _KIND:
            raise DataError(f"{path}: not saved features")
        try:
            features, labels, covered = (torch.from_numpy(content[k]) for k in ("features", "labels", "covered"))
            names, about = json.loads(str(content["names"])), json.loads(str(content["about"]))
            whole = features.dim() == 2 and len(features) == len(names) == len(labels) == len(covered)
            if not whole or features.dtype != torch.float32 or not isinstance(about["preprocessing"], dict):
                raise ValueError("its arrays don't match")
            # Version 0.1.0 wrote British spelling.
            for part in (about["preprocessing"], about["preprocessing"].get("alignment") or {}):
                if part.get("color") == "grey":
                    part["color"] = "gray"
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: damaged features ({error})") from error
        return cls(features, names, labels, covered, about)


@torch.no_grad()
def embed(
    model: Callable[[Tensor], Tensor],
    dataset: FaceDataset,
    preprocessing: Preprocessing,
    *,
    indices: Sequence[int] | Tensor | None = None,
    occlusion: OcclusionLike | None = None,
    flip: Flip = "sum",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    progress: bool | Report = True,
    title: str = "embedding",
) -> Embeddings:
    """Compute the features of images.

    Args:
        model: Function of prepared images, float32 [B, C, H, W], that returns features [B, D]. A module is switched to
            ``eval`` mode during the call. For a classifier, pass :func:`occfast.models.features` of it.
        dataset: Data set with images of the size and colors of ``preprocessing``. Nothing is resized or converted. If
            the alignment of both is known, they must agree.
        preprocessing: How images become the network's input.
        indices: Numbers of the images. Default: all.
        occlusion: Occlusion applied to the images as they are stored. Its random draws depend on its seed and on the
            number of the image in the data set.
        flip: "sum" or "concat" of the features of an image and its mirror image, or "none". An occluded image is
            mirrored together with its occlusion.
        batch_size: Number of images per forward pass.
        device: Device of the model. Default: that of its first parameter, else the CPU.
        workers: Number of processes that read images.
        progress: True for a progress bar on the standard error, False for none, or a function of (done, total).
        title: Title of the progress bar.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Size, colors or alignment of the images don't match ``preprocessing``, an image has no landmarks but
            the occlusion needs them, the model fails on images of this size, or its features are not finite.
        DataError: An image can't be read.
    """
    checks.choice(flip, "flip", get_args(Flip))
    checks.integer(batch_size, "batch_size", 1)
    checks.integer(workers, "workers", 0)
    if dataset.alignment is not None:
        preprocessing.require(replace(preprocessing, alignment=dataset.alignment.as_dict()))
    wanted = list(range(len(dataset))) if indices is None else [int(k) for k in indices]
    if not wanted:
        raise ValueError("indices: expected at least one image, got none")
    if not callable(model):
        raise TypeError(f"model: expected a module or a function of images, got {type(model).__name__}")
    module = module_of(model)
    parameter = None if module is None else next(module.parameters(), None)
    place = torch.device(device) if device is not None else parameter.device if parameter is not None else "cpu"
    forward = _Forward(model)
    features, covered, names = [], [], []
    training = module is not None and module.training
    if module is not None:
        module.eval()
    try:
        with show_progress(title, "images", progress) as report:
            report(0, len(wanted))
            for numbers, faces in _batches(dataset, wanted, batch_size, workers):
                images, share = _prepared(faces, numbers, preprocessing, occlusion, place)
                found = forward(images)
                if flip != "none":
                    mirrored = forward(images.flip(3))
                    found = found + mirrored if flip == "sum" else torch.cat([found, mirrored], 1)
                features.append(_checked(found, faces))
                covered.append(share)
                names += [face.name for face in faces]
                report(len(names), len(wanted))
    finally:
        if module is not None:
            module.train(training)
    about = {
        "preprocessing": json.loads(preprocessing.to_json()),
        "flip": flip,
        "occlusion": None if occlusion is None else described(occlusion),
        "model": fingerprint(model),
    }
    labels = dataset.labels[torch.tensor(wanted)]
    return Embeddings(torch.cat(features), names, labels, torch.cat(covered), about)


def described(cover: OcclusionLike) -> dict[str, Any]:
    """Return the settings of an occlusion, for JSON."""
    about = getattr(cover, "about", None)
    return dict(about()) if callable(about) else {"kind": type(cover).__name__, "settings": repr(cover)}


class _Chosen(torch.utils.data.Dataset[Face]):
    def __init__(self, dataset: FaceDataset, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> Face:
        return self.dataset[self.indices[k]]


def _batches(
    dataset: FaceDataset, indices: list[int], size: int, workers: int
) -> Iterator[tuple[list[int], list[Face]]]:
    loader = torch.utils.data.DataLoader(
        _Chosen(dataset, indices), batch_size=size, num_workers=workers, collate_fn=list
    )
    done = 0
    for faces in loader:
        yield indices[done : done + len(faces)], faces
        done += len(faces)


def _prepared(
    faces: list[Face],
    numbers: list[int],
    preprocessing: Preprocessing,
    occlusion: OcclusionLike | None,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    expected = (preprocessing.channels, *preprocessing.size)
    for face in faces:
        if tuple(face.image.shape) != expected:
            raise ValueError(
                f"dataset: expected images of {list(expected)}, which the network takes, got {list(face.image.shape)} "
                f"for {face.name}; align (--template) or resize (--resize) it first"
            )
    images = torch.stack([face.image for face in faces]).to(device)
    share = torch.zeros(len(faces))
    if occlusion is not None:
        landmarks = None
        if occlusion.needs_landmarks:
            for face in faces:
                if face.landmarks is None:
                    raise ValueError(
                        f"dataset: expected landmarks, which the occlusion needs, {face.name} has none; "
                        "occfast data landmarks finds them"
                    )
            landmarks = torch.stack([face.landmarks for face in faces if face.landmarks is not None]).to(device)
        images, mask = occlusion(images, landmarks, torch.tensor(numbers, device=images.device))
        share = mask.flatten(1).float().mean(1).cpu()
    return preprocessing(images), share


class _Forward:
    """Forward passes of a model on contiguous images, which it gets in channels_last unless it fails on them."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model, self._layout = model, torch.channels_last

    def __call__(self, images: Tensor) -> Tensor:
        try:
            return self.model(images.contiguous(memory_format=self._layout))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._layout != torch.contiguous_format:  # a model that calls view(), for example
                self._layout = torch.contiguous_format
                return self(images)
            raise ValueError(
                f"model: failed on images {list(images.shape)}: {reason_of(error)}; if it takes another size, give it "
                "as size= (--size)"
            ) from error


def reason_of(error: Exception) -> str:
    """Return the line of a network's error that says what happened; those before it in TorchScript's say where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[-1]:.200}"


def _checked(features: object, faces: list[Face]) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(faces):
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"model: expected features [{len(faces)}, D], got {got}")
    finite = features.isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(
            f"model: expected finite features, got NaN or infinity for {faces[int((~finite).nonzero()[0])].name}"
        )
    return features.float().cpu()
