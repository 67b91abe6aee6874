"""Features of one network and one data set, kept in files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import checks
from ..data import FaceDataset
from ..models import Preprocessing
from ..occlude.base import OcclusionLike
from ..progress import Report
from .embedding import Embeddings, Flip, described, embed
from .fingerprints import code_fingerprint, fingerprint, image_digests


class CachedEmbedder:
    """Computes features, clean or under an occlusion, and keeps them in files if a folder is given.

    A file is named by a digest of everything that its features depend on: the network (weights and code),
    preprocessing, flip fusion, occlusion and the content of every image. It is written once it is complete.

    Args:
        model, dataset, preprocessing, flip, batch_size, device, workers, progress: See :func:`embed`.
        indices: Numbers of all images that will be asked for.
        checkpoint: Folder of the files; None keeps nothing.
        resume: Whether to read files that are there.

    Raises:
        ValueError: ``checkpoint`` is given for a model that is not a module.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        dataset: FaceDataset,
        preprocessing: Preprocessing,
        indices: Tensor,
        *,
        flip: Flip = "sum",
        batch_size: int = 64,
        device: str | torch.device | None = None,
        workers: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
        progress: bool | Report = True,
    ) -> None:
        self._model, self._dataset, self._preprocessing, self._flip = model, dataset, preprocessing, flip
        self._batch_size, self._device, self._workers, self._progress = batch_size, device, workers, progress
        self._folder = None if checkpoint is None else Path(checkpoint)
        self._resume = checks.flag(resume, "resume")
        if self._folder is None:
            return
        weights = fingerprint(model)
        if weights is None:
            raise ValueError(
                f"checkpoint: expected a module or a module's method as the model, got {type(model).__name__}, whose "
                "features can't be recognized again; leave checkpoint out"
            )
        self._images = image_digests(dataset, indices.tolist(), progress=progress)
        self._about = {
            "weights": weights,
            "code": code_fingerprint(model),
            "preprocessing": preprocessing.to_json(),
            "flip": flip,
        }

    @property
    def images(self) -> str | None:
        """SHA-256 digest (16 hexadecimal digits) of the content of all images; None without a folder."""
        if self._folder is None:
            return None
        return hashlib.sha256(b"".join(digest for _, digest in sorted(self._images.items()))).hexdigest()[:16]

    def __call__(
        self, indices: Tensor, occlusion: OcclusionLike | None = None, *, title: str = "embedding"
    ) -> Embeddings:
        """Return the features of images under an occlusion; None: clean."""
        path = None if self._folder is None else self._path(self._folder, occlusion, indices)
        if path is not None and self._resume and path.is_file():
            return Embeddings.load(path)
        found = embed(
            self._model,
            self._dataset,
            self._preprocessing,
            indices=indices,
            occlusion=occlusion,
            flip=self._flip,
            batch_size=self._batch_size,
            device=self._device,
            workers=self._workers,
            progress=self._progress,
            title=title,
        )
        if path is not None:
            found.save(path)
        return found

    def _path(self, folder: Path, occlusion: OcclusionLike | None, indices: Tensor) -> Path:
        about = {**self._about, "occlusion": None if occlusion is None else described(occlusion)}
        digest = hashlib.sha256(json.dumps(about, default=repr, sort_keys=True).encode())
        for k in indices.tolist():
            digest.update(k.to_bytes(8, "little") + self._images[k])
        return folder / f"features-{digest.hexdigest()[:24]}.npz"
