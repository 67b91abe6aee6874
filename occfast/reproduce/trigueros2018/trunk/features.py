"""Features of the frozen trunk, computed once and kept in memory-mapped files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import write_array
from torch import Tensor

from ....errors import DataError
from ....files import writing
from ....models import Preprocessing
from ....occlude.noisy import NoisyOccluder
from ....progress import progress as show_progress
from ..sources import CachedDataset
from .sources import Trunk

FILE = "features.npy"
_BATCH = 16  # the maps of more images exceed a processor's cache


@torch.no_grad()
def compute(
    trunk: Trunk,
    faces: CachedDataset,
    preprocessing: Preprocessing,
    indices: Tensor,
    path: Path,
    *,
    device: str,
    occluder: NoisyOccluder | None = None,
    first_id: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    title: str = "features",
) -> Path:
    """Write the trunk's features of some images, float32 [len(indices), D].

    Args:
        trunk: on ``device``.
        faces: uint8 images of the trunk's size.
        preprocessing: of the trunk's input.
        indices: numbers of the images, int64 [N].
        path: ``.npy`` file to write.
        device: "cpu" or "cuda:N".
        occluder: covers the images before they are prepared; None leaves them clean.
        first_id: added to an image's number to give the key of its occluder.
        dtype: of the prepared images and the trunk; the features are stored as float32.
        progress: whether to show progress.
        title: title of the progress bar.
    """
    found = []
    with show_progress(title, "images", progress) as report:
        report(0, len(indices))
        done = 0
        for numbers in indices.split(_BATCH):
            images = faces.images(numbers).to(device)
            if occluder is not None:
                images = occluder(images, numbers + first_id)
            found.append(trunk(preprocessing(images).to(dtype)).float().cpu())
            done += len(numbers)
            report(done, len(indices))
    features = torch.cat(found)
    if not bool(features.isfinite().all()):
        raise DataError(f"{path}: expected finite features, got NaN or infinity; are these the trunk's weights?")
    with writing(path) as file:
        write_array(file, features.contiguous().numpy(), allow_pickle=False)
    return path


def load(path: Path, rows: int) -> Tensor:
    """Map a file of :func:`compute` into memory.

    Raises:
        DataError: if it is damaged or has another number of rows.
    """
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: PyTorch knows no read-only tensors
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from error
    if array.dtype != np.float32 or array.ndim != 2 or len(array) != rows:
        raise DataError(f"{path}: expected float32 [{rows}, D], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array)
