"""Batches of a training run: the images of each batch, and the source of their pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import checks
from ..data import FaceDataset, PKSampler
from ..data.images import recolor
from ..progress import Report
from ..progress import progress as show_progress

# -- images of a batch -----------------------------------------------------------------------------------------------


class Plan(Protocol):
    """Batches of each epoch: known at its beginning and equal in every process."""

    size: int

    def __len__(self) -> int:
        """Return the number of batches of the first epoch."""
        ...

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the indices of the images and their sample ids, both int64 [batches, size].

        Each image has another sample id in each epoch; random draws for a sample are keyed by it.
        """
        ...


class Shuffled:
    """All images in a new order each epoch; images that do not fill the last batch are left out of that epoch.

    Args:
        n: Number of images, at least 1.
        size: Batch size, at most n.
    """

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, min(size, n)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images of an epoch's batches and their sample ids, each int64 [batches, size]."""
        order = torch.randperm(self.n, generator=generator)
        indices = order[: len(self) * self.size].reshape(len(self), self.size)
        return indices, number * self.n + indices


class PKBatches:
    """Batches of K images of each of P people, for losses over triplets; see :class:`~occfast.data.PKSampler`.

    Args:
        labels: int64 [N].
        people, images_each: P and K.
        seed: Seed of the sampler.
    """

    def __init__(self, labels: Tensor, people: int, images_each: int, seed: int) -> None:
        self.size = people * images_each
        self.sampler = PKSampler(labels, people, images_each, seed, num_replicas=1, rank=0)

    def __len__(self) -> int:
        self.sampler.set_epoch(0)
        return len(self.sampler)

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images of an epoch's batches and their sample ids, each int64 [batches, size]."""
        self.sampler.set_epoch(number)
        indices = torch.tensor(list(self.sampler), dtype=torch.int64).reshape(-1, self.size)
        # Epochs differ in length; no epoch has more samples than this.
        most = sum(-(-len(mine) // self.sampler.k) for mine in self.sampler.classes) * self.sampler.k
        first = number * most
        return indices, first + torch.arange(indices.numel()).reshape(indices.shape)


# -- pixels ------------------------------------------------------------------------------------------


class InMemory:
    """Images [N, C, H, W] in memory, on the CPU or a GPU."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each row of ``plan``, int64 [size]."""
        for row in plan:
            yield self.images[row.to(self.images.device)]


class FromDisk:
    """Images that worker processes read a few batches ahead.

    Args:
        dataset: Data set with images of one size.
        indices: Images of ``dataset`` that are numbered 0, 1, … here.
        channels: 1 converts images to gray, 3 to RGB.
        workers: Number of processes; 0 reads in this one.
        pin: Put batches into page-locked memory, whose copies to a GPU overlap with its work.
    """

    def __init__(self, dataset: FaceDataset, indices: Tensor, channels: int, workers: int, pin: bool = False) -> None:
        from torch.utils.data import DataLoader

        self._rows: list[list[int]] = []
        self._loader: Any = DataLoader(
            _Images(dataset, indices, channels),
            batch_sampler=_Rows(self._rows),
            num_workers=workers,
            collate_fn=torch.stack,
            pin_memory=pin,
            persistent_workers=workers > 0,
            # Its own generator: creating an iterator draws a number, which would shift the network's dropout.
            generator=torch.Generator(),
        )

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each row of ``plan``, int64 [size]."""
        self._rows[:] = [row.tolist() for row in plan]
        yield from self._loader


class _Images(torch.utils.data.Dataset):
    def __init__(self, dataset: FaceDataset, indices: Tensor, channels: int) -> None:
        self.dataset, self.indices = dataset, indices.tolist()
        self.gray = channels == 1

    def __getitem__(self, k: int) -> Tensor:
        return recolor(self.dataset[self.indices[k]].image, self.gray)

    def __len__(self) -> int:
        return len(self.indices)


class _Rows(torch.utils.data.Sampler):
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def read_all(
    dataset: FaceDataset, indices: Tensor, channels: int, workers: int, *, progress: bool | Report = True
) -> Tensor:
    """Read images of a data set, all of one size, as uint8 [N, channels, H, W]."""
    size = dataset[int(indices[0])].image.shape[-2:]
    images = torch.empty(len(indices), channels, *size, dtype=torch.uint8)
    source, done = FromDisk(dataset, indices, channels, workers if len(indices) > 2000 else 0), 0
    with show_progress("reading images", "images", progress) as report:
        for part in source(torch.arange(len(indices)).split(64)):
            images[done : done + len(part)] = part
            done += len(part)
            report(done, len(indices))
    return images


def source_of(
    dataset: FaceDataset,
    indices: Tensor,
    *,
    channels: int,
    in_memory: bool | None,
    memory: str,
    workers: int,
    device: torch.device,
    progress: bool | Report = True,
) -> InMemory | FromDisk:
    """Return the source of a data set's images: memory if that is asked for or they fit, else the disk.

    Args:
        dataset: Data set.
        indices: Images to use, int64 [N].
        channels: 1 for gray, 3 for RGB.
        in_memory: True, False, or None for memory if the images need at most ``memory``.
        memory: Memory limit, such as "4GiB".
        workers: Processes that read images.
        device: Device of the network; a GPU with enough free memory holds the images itself.
        progress: As in :func:`occfast.train.train`.
    """
    if in_memory is None:
        need = len(indices) * channels * dataset[int(indices[0])].image[0].numel()
        in_memory = need <= checks.memory(memory, "data.memory")
    if not in_memory:
        return FromDisk(dataset, indices, channels, workers, pin=device.type == "cuda")
    images = read_all(dataset, indices, channels, workers, progress=progress)
    if device.type == "cuda" and 4 * images.nbytes <= torch.cuda.mem_get_info(device)[0]:
        images = images.to(device)
    return InMemory(images)
