"""Samplers whose batches hold several images of each identity, as losses over triplets need.

Both work from a plain array of labels, are seeded, know about ranks and resume in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
    """Indices of each class, by rising label."""
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
        return (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
    if not 0 <= rank < _positive("num_replicas", world):
        raise ValueError(f"rank: expected a number in [0, {world}), got {rank!r}")
    return world, rank


class PKSampler(Sampler[list[int]]):
    """Batches of P identities with K images each, for ``DataLoader(batch_sampler=...)``.

    Epochs are balanced: an epoch shuffles the images of every identity, deals them out in hands of K, and makes
    batches of P hands of different identities, so every image comes about once an epoch.  Identities with fewer than
    K images give one hand, with repeats; a last short hand is filled up from the same identity's others.  Hands are
    dropped where no P different identities are left for a batch and, with several ranks, where the batches don't
    divide by their number: every rank gets as many, and no hand goes to two ranks.

    Args:
        labels: integer array, list or tensor [N]
        p, k: identities a batch, images an identity; >= 1
        seed: with the epoch it decides everything.
        min_images: leave out identities with fewer images (2: those without any positive pair)
        num_replicas, rank: by default those of ``torch.distributed``, if it is initialized

    The epoch goes up by one after each full pass, or by :meth:`set_epoch`.  :meth:`state_dict` after n batches
    resumes at batch n + 1.  (A DataLoader with workers asks for batches ahead of time: to resume exactly, count the
    batches that were used and say ``load_state_dict({"epoch": e, "batch": n})``.)
    """

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
        self.p, self.k, self.seed = _positive("p", p), _positive("k", k), seed
        least = _positive("min_images", min_images)
        self.world, self.rank = _ranks(num_replicas, rank)
        self.classes = [indices for indices in _by_class(labels) if len(indices) >= least]
        if len(self.classes) < self.p:
            raise ValueError(
                f"p: expected at most {len(self.classes)}, the identities with {least} images or more, got {self.p}"
            )
        self.epoch, self.batch = 0, 0
        self._planned: tuple[int, list[list[int]]] | None = None

    def _plan(self) -> list[list[int]]:
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._deal(np.random.default_rng((self.seed, self.epoch)))
        return self._planned[1]

    def _deal(self, random: np.random.Generator) -> list[list[int]]:
        hands: list[list[np.ndarray]] = []
        for indices in self.classes:
            shuffled = random.permutation(indices)
            full = len(shuffled) // self.k * self.k
            mine = list(shuffled[:full].reshape(-1, self.k))
            rest = shuffled[full:]
            if len(rest):
                others = shuffled[:full] if full else shuffled
                extra = random.choice(others, self.k - len(rest), replace=len(others) < self.k - len(rest))
                mine.append(np.concatenate((rest, extra)))
            hands.append(mine)
        # Those with the most hands left come first, ties at random, so that as few as possible are left over.
        left = np.array([len(mine) for mine in hands])
        batches: list[list[int]] = []
        while np.count_nonzero(left) >= self.p:
            chosen = np.lexsort((random.random(len(left)), -left))[: self.p]
            left[chosen] -= 1
            batches.append([int(i) for c in chosen for i in hands[c][left[c]]])
        order = random.permutation(len(batches))[: len(batches) // self.world * self.world]
        return [batches[i] for i in order[self.rank :: self.world]]

    def __len__(self) -> int:
        """Batches of the present epoch on this rank."""
        return len(self._plan())

    def __iter__(self) -> Iterator[list[int]]:
        plan = self._plan()
        while self.batch < len(plan):
            self.batch += 1
            yield plan[self.batch - 1]
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch (>= 0)."""
        if epoch < 0:
            raise ValueError(f"epoch: expected a number that is not negative, got {epoch}")
        self.epoch, self.batch = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_epoch(int(state["epoch"]))
        self.batch = int(state["batch"])


class MPerClassSampler(Sampler[int]):
    """Indices such that every run of ``batch_size`` holds ``m`` of each of its classes, as pytorch-metric-learning's.

    Args:
        labels: integer array, list or tensor [N]
        m: images of each class, >= 1
        batch_size: a multiple of m, at most m times the number of classes; None: runs over all the classes
        length_before_new_iter: indices a pass, rounded down to full runs
        seed: with the number of the pass it decides everything; classes are drawn without repeats for each run, and
            so are images where a class has m of them.
    """

    def __init__(
        self,
        labels: Labels,
        m: int,
        batch_size: int | None = None,
        length_before_new_iter: int = 100_000,
        seed: int = 0,
    ) -> None:
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
        self.epoch, self.index = 0, 0

    def __len__(self) -> int:
        return self.runs * self.run

    def __iter__(self) -> Iterator[int]:
        while self.index < len(self):
            run, within = divmod(self.index, self.run)
            random = np.random.default_rng((self.seed, self.epoch, run))
            picked: list[int] = []
            for c in random.permutation(len(self.classes))[: self.run // self.m_per_class]:
                mine = self.classes[c]
                picked.extend(map(int, random.choice(mine, self.m_per_class, replace=len(mine) < self.m_per_class)))
            for index in picked[within:]:
                self.index += 1
                yield index
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of a pass (>= 0)."""
        if epoch < 0:
            raise ValueError(f"epoch: expected a number that is not negative, got {epoch}")
        self.epoch, self.index = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_epoch(int(state["epoch"]))
        self.index = int(state["index"])
