"""Which images make a batch, and where their pixels come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import checks
from ..data import FaceDataset, PKSampler
from ..data.images import recolor
from ..progress import Report, progress

# -- which -----------------------------------------------------------------------------------------------


class Plan(Protocol):
    """The batches of each epoch: known from its beginning, the same in every process."""

    size: int

    def __len__(self) -> int:
        """Batches of the first epoch."""
        ...

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers of the images and their sample ids, both int64 [batches, size].

        A sample id is another one for each image in each epoch; what is drawn for a sample is keyed by it.
        """
        ...


class Shuffled:
    """All images in another order each epoch; what doesn't fill the last batch is left out of that epoch.

    Args:
        n: images, at least 1.
        size: of a batch; more than n counts as n.
    """

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, min(size, n)

    def __len__(self) -> int:
        return self.n // self.size

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        order = torch.randperm(self.n, generator=generator)
        indices = order[: len(self) * self.size].reshape(len(self), self.size)
        return indices, number * self.n + indices


class PKBatches:
    """K images each of P people a batch, for losses over triplets: see :class:`~occfast.data.PKSampler`.

    Args:
        labels: int64 [N].
        people, images_each: P and K.
        seed: of the sampler.
    """

    def __init__(self, labels: Tensor, people: int, images_each: int, seed: int) -> None:
        self.size = people * images_each
        self.sampler = PKSampler(labels, people, images_each, seed, num_replicas=1, rank=0)

    def __len__(self) -> int:
        self.sampler.set_epoch(0)
        return len(self.sampler)

    def epoch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.sampler.set_epoch(number)
        indices = torch.tensor(list(self.sampler), dtype=torch.int64).reshape(-1, self.size)
        # Epochs differ in length, but none has more hands than this.
        most = sum(-(-len(mine) // self.sampler.k) for mine in self.sampler.classes) * self.sampler.k
        first = number * most
        return indices, first + torch.arange(indices.numel()).reshape(indices.shape)


# -- from where ------------------------------------------------------------------------------------------


class InMemory:
    """Images [N, C, H, W] that are all in memory, on the processor or a GPU."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each row of ``plan``, int64 [size]."""
        for row in plan:
            yield self.images[row.to(self.images.device)]


class FromDisk:
    """Images read by worker processes as they are needed, a few batches ahead.

    Args:
        dataset: hands out images of one size.
        indices: the images of ``dataset`` that are numbered 0, 1, … here.
        channels: 1: gray, 3: RGB; images are converted where they are stored otherwise.
        workers: processes; 0 reads in this one.
        pin: put batches into page-locked memory, from which copies to a GPU overlap with its work.
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
            # Its own generator: making an iterator draws a number, which must not come from the network's dropout.
            generator=torch.Generator(),
        )

    def __call__(self, plan: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each row of ``plan``, int64 [size]."""
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


def read_all(dataset: FaceDataset, indices: Tensor, channels: int, workers: int, show: bool | Report = True) -> Tensor:
    """Some images of a data set, all of one size, uint8 [N, channels, H, W]."""
    size = dataset[int(indices[0])].image.shape[-2:]
    images = torch.empty(len(indices), channels, *size, dtype=torch.uint8)
    source, done = FromDisk(dataset, indices, channels, workers if len(indices) > 2000 else 0), 0
    with progress("read images", "images", show) as report:
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
    show: bool | Report = True,
) -> InMemory | FromDisk:
    """Where to take the images of a data set from: memory if they fit or that is asked for, else the disk."""
    if in_memory is None:
        need = len(indices) * channels * dataset[int(indices[0])].image[0].numel()
        in_memory = need <= checks.memory(memory, "data.memory")
    if not in_memory:
        return FromDisk(dataset, indices, channels, workers, pin=device.type == "cuda")
    images = read_all(dataset, indices, channels, workers, show)
    if device.type == "cuda" and 4 * images.nbytes <= torch.cuda.mem_get_info(device)[0]:
        images = images.to(device)
    return InMemory(images)
