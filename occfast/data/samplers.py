"""Samplers whose batches hold several images of each identity, as losses over triplets need.

They work on an array of labels, are seeded, know about distributed ranks, and can resume within an epoch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["MPerClassSampler", "PKSampler"]

Labels = Sequence[int] | np.ndarray | Tensor


def _positive(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)


def _by_class(labels: Labels) -> list[np.ndarray]:
    """Return the indices of each class, in the order of the labels."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels: expected one dimension, got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError("labels: expected at least one, got none")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"labels: expected integers, got {array.dtype}")
    order = np.argsort(array, kind="stable")
    starts = np.flatnonzero(np.diff(array[order], prepend=array[order[0]] - 1))
    return np.split(order, starts[1:])


def _ranks(world: int | None, rank: int | None) -> tuple[int, int]:
    if (world is None) != (rank is None):
        raise ValueError(f"num_replicas, rank: expected both or neither, got {world!r} and {rank!r}")
    if world is None or rank is None:
        import torch.distributed as dist

        ready = dist.is_available() and dist.is_initialized()
        if ready and dist.get_world_size() > 1 and "accelerate" in sys.modules:
            state = getattr(sys.modules.get("accelerate.state"), "PartialState", None)
            if getattr(state, "_shared_state", None):
                warnings.warn(
                    "PKSampler divides the batches among the processes, and accelerate divides those of a prepared "
                    "DataLoader again: pass num_replicas=1, rank=0 if the DataLoader goes through "
                    "Accelerator.prepare, else pass both explicitly",
                    stacklevel=3,
                )
        return (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
    if not 0 <= rank < _positive("num_replicas", world):
        raise ValueError(f"rank: expected a number in [0, {world}), got {rank!r}")
    return world, rank


class _Resumable:
    """The position of a sampler: an epoch, and the items of it that were handed out.

    A new iterator starts at the beginning of the epoch, unless :meth:`load_state_dict` set a position before. An
    iterator that is exhausted advances the epoch.
    """

    _unit = ""  # key of the position in the state

    def __init__(self) -> None:
        self.epoch, self._done, self._resumes = 0, 0, False
        self._current: object = None

    def _begin(self) -> tuple[object, int]:
        """Return a token for a new iterator, which replaces those before it, and its first position."""
        self._done = self._done if self._resumes else 0
        self._resumes = False
        self._current = token = object()
        return token, self._done

    def _handed_out(self, token: object) -> None:
        if token is self._current:
            self._done += 1

    def _finish(self, token: object) -> None:
        if token is self._current:
            self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch (>= 0)."""
        if epoch < 0:
            raise ValueError(f"epoch: expected a number that is not negative, got {epoch}")
        self.epoch, self._done, self._resumes, self._current = epoch, 0, False, None

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the position within it."""
        return {"epoch": self.epoch, self._unit: self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a position: the next iterator starts there."""
        self.set_epoch(int(state["epoch"]))
        self._done, self._resumes = int(state[self._unit]), True


class PKSampler(_Resumable, Sampler[list[int]]):
    """Batches of P identities with K images each, for ``DataLoader(batch_sampler=...)``.

    Epochs are balanced. Each epoch shuffles the images of every identity and splits them into groups of K; a batch
    consists of P groups of different identities, so that every image occurs about once in an epoch. An identity with
    fewer than K images gives one group with repeats; an incomplete last group is filled with other images of the same
    identity. Groups are dropped if no P different identities are left for a batch, and, with several ranks, if the
    number of batches is not divisible by the number of ranks. All ranks get equally many batches, and no group goes to
    two ranks.

    A new iterator starts the epoch from its beginning, unless :meth:`load_state_dict` was called before it. An
    iterator that runs to its end advances the epoch; so does :meth:`set_epoch`. The state after n batches resumes at
    batch n + 1. A DataLoader with workers draws batches ahead of their use. To resume exactly, count the batches that
    were used and load ``{"epoch": e, "batch": n}``.

    Under accelerate, pass ``num_replicas=1, rank=0`` for a DataLoader that goes through ``Accelerator.prepare``, which
    divides the batches among the processes itself.

    Args:
        labels: integers [N], an array, list or tensor.
        p: identities in a batch, >= 1.
        k: images of each identity in a batch, >= 1.
        seed: seed; together with the epoch it determines all batches.
        min_images: leaves out identities with fewer images; 2 leaves out those without a positive pair.
        num_replicas: number of processes. Defaults to that of ``torch.distributed``, if initialized.
        rank: number of this process, likewise.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if an argument is out of range, or fewer than P identities are left.
    """

    _unit = "batch"

    def __init__(
        self,
        labels: Labels,
        p: int,
        k: int,
        seed: int = 0,
        min_images: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.p, self.k, self.seed = _positive("p", p), _positive("k", k), seed
        least = _positive("min_images", min_images)
        self.world, self.rank = _ranks(num_replicas, rank)
        self.classes = [indices for indices in _by_class(labels) if len(indices) >= least]
        if len(self.classes) < self.p:
            raise ValueError(
                f"p: expected at most {len(self.classes)}, the identities with {least} images or more, got {self.p}"
            )
        self._planned: tuple[int, list[list[int]]] | None = None

    @property
    def batch(self) -> int:
        """Batches of the present epoch that were handed out."""
        return self._done

    def _plan(self) -> list[list[int]]:
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._deal(np.random.default_rng((self.seed, self.epoch)))
        return self._planned[1]

    def _deal(self, random: np.random.Generator) -> list[list[int]]:
        groups: list[list[np.ndarray]] = []
        for indices in self.classes:
            shuffled = random.permutation(indices)
            full = len(shuffled) // self.k * self.k
            mine = list(shuffled[:full].reshape(-1, self.k))
            rest = shuffled[full:]
            if len(rest):
                others = shuffled[:full] if full else shuffled
                extra = random.choice(others, self.k - len(rest), replace=len(others) < self.k - len(rest))
                mine.append(np.concatenate((rest, extra)))
            groups.append(mine)
        # Identities with the most groups left come first, ties in random order, so that few groups are left over.
        left = np.array([len(mine) for mine in groups])
        batches: list[list[int]] = []
        while np.count_nonzero(left) >= self.p:
            chosen = np.lexsort((random.random(len(left)), -left))[: self.p]
            left[chosen] -= 1
            batches.append([int(i) for c in chosen for i in groups[c][left[c]]])
        order = random.permutation(len(batches))[: len(batches) // self.world * self.world]
        return [batches[i] for i in order[self.rank :: self.world]]

    def __len__(self) -> int:
        """Return the number of batches of the present epoch on this rank."""
        return len(self._plan())

    def __iter__(self) -> Iterator[list[int]]:
        token, start = self._begin()
        for batch in self._plan()[start:]:
            self._handed_out(token)
            yield batch
        self._finish(token)


class MPerClassSampler(_Resumable, Sampler[int]):
    """Indices of which every run of ``batch_size`` holds ``m`` of each of its classes, as in pytorch-metric-learning.

    Iterators, epochs and the state behave as those of :class:`PKSampler`.

    Args:
        labels: integers [N], an array, list or tensor.
        m: images of each class, >= 1.
        batch_size: a multiple of m, at most m times the number of classes. None takes all classes in each run.
        length_before_new_iter: indices in an epoch, rounded down to complete runs.
        seed: seed; together with the epoch it determines all indices. The classes of a run are drawn without repeats,
            and so are the images of a class with at least m of them.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if an argument is out of range.
    """

    _unit = "index"

    def __init__(
        self,
        labels: Labels,
        m: int,
        batch_size: int | None = None,
        length_before_new_iter: int = 100_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.m_per_class, self.seed = _positive("m", m), seed
        self.classes = _by_class(labels)
        whole = self.m_per_class * len(self.classes)
        self.run = whole if batch_size is None else _positive("batch_size", batch_size)
        if self.run % self.m_per_class:
            raise ValueError(f"batch_size: expected a multiple of m = {self.m_per_class}, got {batch_size}")
        if self.run > whole:
            raise ValueError(f"batch_size: expected at most {whole}, m times the number of classes, got {batch_size}")
        length = _positive("length_before_new_iter", length_before_new_iter)
        if batch_size is not None and length < self.run:
            raise ValueError(f"length_before_new_iter: expected at least batch_size = {self.run}, got {length}")
        self.runs = max(1, length // self.run)

    @property
    def index(self) -> int:
        """Indices of the present epoch that were handed out."""
        return self._done

    def __len__(self) -> int:
        return self.runs * self.run

    def __iter__(self) -> Iterator[int]:
        token, start = self._begin()
        epoch, (first, skipped) = self.epoch, divmod(start, self.run)
        for run in range(first, self.runs):
            random = np.random.default_rng((self.seed, epoch, run))
            picked: list[int] = []
            for c in random.permutation(len(self.classes))[: self.run // self.m_per_class]:
                mine = self.classes[c]
                picked.extend(map(int, random.choice(mine, self.m_per_class, replace=len(mine) < self.m_per_class)))
            for index in picked[skipped:]:
                self._handed_out(token)
                yield index
            skipped = 0
        self._finish(token)
