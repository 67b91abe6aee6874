"""Features of a data set's faces, clean or covered, with all that is needed to compare them honestly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..data import Face, FaceDataset
from ..errors import DataError
from ..files import read_npz, write_npz
from ..models import Preprocessing
from ..occlude.base import OcclusionLike
from ..progress import Report
from ..progress import progress as show_progress

#: How the features of an image and of its mirror image become one: their sum, one after the other, or no mirror image.
Flip = Literal["sum", "concat", "none"]

_KIND = "occfast.Embeddings"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of some images of a data set.

    Attributes:
        features: float32 [N, D], as the network gave them (not normalized), flipped ones fused.
        names: of the images.
        labels: of the people, int64 [N].
        covered: share of each image's pixels that an occlusion covered, float32 [N]; 0 for clean ones.
        about: how they came about: "preprocessing" (:class:`~occfast.models.Preprocessing` as a dict), "flip",
            "occlusion" (None for clean images), "model" (a fingerprint of its weights).
    """

    features: Tensor
    names: list[str]
    labels: Tensor
    covered: Tensor
    about: dict[str, Any]

    def require(self, other: Embeddings) -> None:
        """Refuse features that can't be compared with these.

        Raises:
            ValueError: naming the first difference: another network, size, color order, scaling, alignment or flip
                fusion.  What covers the faces may differ.
        """
        mine, theirs = ({**e.about, **e.about["preprocessing"]} for e in (self, other))
        for name in ("model", "size", "color", "mean", "std", "alignment", "flip"):
            a, b = mine.get(name), theirs.get(name)
            if a != b and not (name == "alignment" and None in (a, b)):
                raise ValueError(f"features: can't be compared: {name} {a} here, {b} there")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``.npz``, atomically."""
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
        """Read what :meth:`save` wrote.  Raises DataError for anything else, FileNotFoundError if there is none."""
        content = read_npz(path)
        if str(content.get("kind", "")) != _KIND:
            raise DataError(f"{path}: not saved features")
        try:
            features, labels, covered = (torch.from_numpy(content[k]) for k in ("features", "labels", "covered"))
            names, about = json.loads(str(content["names"])), json.loads(str(content["about"]))
            whole = features.dim() == 2 and len(features) == len(names) == len(labels) == len(covered)
            if not whole or features.dtype != torch.float32 or not isinstance(about["preprocessing"], dict):
                raise ValueError("its parts don't fit together")
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not whole features ({error})") from error
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
    """Features of images.

    Args:
        model: prepared images, float32 [B, C, H, W], to features [B, D]; a module is put into ``eval`` mode meanwhile.
            (Of a classifier take :func:`occfast.models.features`.)
        dataset: hands out images of the size and colors that ``preprocessing`` says.  Nothing is resized or
            converted here; where both know how faces were aligned, they must agree.
        indices: of the images, by default all.
        occlusion: covers each image before it is prepared; its draws are keyed by the image's number in the data set.
        flip: see :data:`Flip`; a covered image is mirrored with what covers it.
        device: of the model; None: that of its first parameter, else the CPU.
        workers: processes that read images.
        progress: as in :func:`occfast.progress.progress`.

    Raises:
        ValueError: naming what is wrong: a size, colors, alignment, an image without landmarks that the occlusion
            needs, features that are not finite.
        DataError: an image can't be read.
    """
    if flip not in get_args(Flip):
        raise ValueError(f"flip: expected one of {', '.join(get_args(Flip))}, got {flip!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if dataset.alignment is not None:
        preprocessing.require(replace(preprocessing, alignment=dataset.alignment.as_dict()))
    wanted = list(range(len(dataset))) if indices is None else [int(k) for k in indices]
    if not wanted:
        raise ValueError("indices: expected at least one image, got none")
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    module = module if isinstance(module, nn.Module) else None
    parameter = None if module is None else next(module.parameters(), None)
    place = torch.device(device) if device is not None else parameter.device if parameter is not None else "cpu"
    features, covered, names = [], [], []
    training = module is not None and module.training
    if module is not None:
        module.eval()
    try:
        with show_progress(title, "images", progress) as report:
            report(0, len(wanted))
            for numbers, faces in _batches(dataset, wanted, batch_size, workers):
                images, share = _prepared(faces, numbers, preprocessing, occlusion, place)
                found = model(images)
                if flip != "none":
                    mirrored = model(images.flip(3))
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
    """The settings of an occlusion, for JSON."""
    about = getattr(cover, "about", None)
    return dict(about()) if callable(about) else {"kind": type(cover).__name__, "settings": repr(cover)}


def fingerprint(model: Any) -> str | None:
    """SHA-256 (16 digits) of a module's weights with their names; None for a callable that is no module's."""
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    if not isinstance(module, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]


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
    faces: list[Face], numbers: list[int], preprocessing: Preprocessing, occlusion: OcclusionLike | None, device: Any
) -> tuple[Tensor, Tensor]:
    expected = (preprocessing.channels, *preprocessing.size)
    for face in faces:
        if tuple(face.image.shape) != expected:
            raise ValueError(
                f"dataset: expected images of {list(expected)}, which the network takes, got {list(face.image.shape)} "
                f"for {face.name}: align or resize the data set first"
            )
    images = torch.stack([face.image for face in faces]).to(device)
    share = torch.zeros(len(faces))
    if occlusion is not None:
        landmarks = None
        if occlusion.needs_landmarks:
            for face in faces:
                if face.landmarks is None:
                    raise ValueError(f"dataset: expected landmarks, which the occlusion needs, {face.name} has none")
            landmarks = torch.stack([face.landmarks for face in faces if face.landmarks is not None]).to(device)
        images, mask = occlusion(images, landmarks, torch.tensor(numbers, device=images.device))
        share = mask.flatten(1).float().mean(1).cpu()
    return preprocessing(images), share


def _checked(features: Any, faces: list[Face]) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(faces):
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"model: expected features [{len(faces)}, D], got {got}")
    finite = features.isfinite().all(1)
    if not bool(finite.all()):
        raise ValueError(f"model: expected finite features, not those of {faces[int((~finite).nonzero()[0])].name}")
    return features.float().cpu()
