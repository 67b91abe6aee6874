"""Digests of images: they decide whether what was computed from an image may be used again."""

from __future__ import annotations

import hashlib

import numpy as np

from .align import Aligned
from .faces import EncodedFaces, FaceDataset, Subset, WithLandmarks
from .resize import Resized


def image_digest(dataset: FaceDataset, k: int) -> bytes:
    """Return a SHA-256 digest of the pixels of image k, as the data set hands them out, without its name and landmarks.

    A stored image file is read, but not decoded, where only this package's wrappers lie between it and ``dataset``.
    Otherwise the digest is that of the pixels.

    Raises:
        DataError: if the image cannot be read.
    """
    digest = hashlib.sha256()
    _add(digest, dataset, k)
    return digest.digest()


def _add(digest: hashlib._Hash, dataset: FaceDataset, k: int) -> None:
    # Exact types: a subclass may hand out other pixels.
    if type(dataset) is WithLandmarks:
        return _add(digest, dataset.dataset, k)
    if type(dataset) is Subset:
        return _add(digest, dataset.dataset, dataset.indices[k])
    digest.update(f"{type(dataset).__module__}.{type(dataset).__qualname__} ".encode())
    digest.update(f"{getattr(dataset, 'gray', None)} {getattr(dataset, 'size', None)}".encode())
    if type(dataset) is Aligned:
        digest.update(repr(dataset.alignment).encode())
        digest.update(np.ascontiguousarray(dataset.matrices[k].double().numpy()).tobytes())
        return _add(digest, dataset.dataset, k)
    if type(dataset) is Resized:
        return _add(digest, dataset.dataset, k)
    content = dataset.encoded(k) if type(dataset).__getitem__ is EncodedFaces.__getitem__ else None
    digest.update(dataset[k].image.contiguous().numpy().tobytes() if content is None else content)
    return None
