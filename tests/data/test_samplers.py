"""PKSampler and MPerClassSampler."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from occfast.data.samplers import MPerClassSampler, PKSampler

LABELS = np.repeat(np.arange(12), 8)


@given(st.lists(st.integers(1, 11), min_size=3, max_size=12), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_every_batch_holds_p_identities_of_k_images(sizes: list[int], p: int, k: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)) * 7 - 3, sizes)
    for batch in PKSampler(labels, p, k, seed):
        counts = Counter(labels[batch].tolist())
        assert len(counts) == p and set(counts.values()) == {k}
        for label in counts:
            mine = [i for i in batch if labels[i] == label]
            assert len(set(mine)) == min(k, int((labels == label).sum()))  # repeats only where they must be


def test_an_epoch_is_balanced() -> None:
    seen = Counter(i for batch in PKSampler(LABELS, 4, 4) for i in batch)
    assert set(seen) == set(range(96)) and set(seen.values()) == {1}


def test_seeds_and_epochs() -> None:
    first, again, other = (
        PKSampler(LABELS, 3, 4, 1),
        PKSampler(torch.tensor(LABELS), 3, 4, 1),
        PKSampler(LABELS, 3, 4, 2),
    )
    epoch = list(first)
    assert epoch == list(again) and epoch != list(other)
    assert first.epoch == 1 and epoch != list(first)
    first.set_epoch(0)
    assert list(first) == epoch


@pytest.mark.parametrize("stop", (0, 1, 5))
def test_resumes_in_the_middle(stop: int) -> None:
    sampler = PKSampler(LABELS.tolist(), 3, 2, 4)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2)
    walk = iter(sampler)
    head = [next(walk) for _ in range(stop)]
    resumed = PKSampler(LABELS, 3, 2, 4)
    resumed.load_state_dict(sampler.state_dict())
    assert head + list(resumed) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_iterator_starts_the_epoch(workers: int) -> None:
    """After a peek, or after a loop that was left early, an epoch is whole again."""
    data = TensorDataset(torch.arange(96), torch.tensor(LABELS))
    for sampler, options in (
        (PKSampler(LABELS, 4, 4, 5), {}),
        (MPerClassSampler(LABELS, 4, 16, 96, seed=5), {"batch_size": 16}),
    ):
        name = "sampler" if options else "batch_sampler"
        loader = DataLoader(data, num_workers=workers, **{name: sampler}, **options)
        whole = [x.tolist() for x, _ in loader]
        assert len(whole) == len(loader) == 6 and sampler.epoch == 1
        second = next(iter(loader))[0].tolist()
        for _ in range(3):
            for count, _batch in enumerate(loader, 1):
                if count == 2:
                    break
        assert sampler.epoch == 1
        again = [x.tolist() for x, _ in loader]
        assert len(again) == 6 and again[0] == second and sampler.epoch == 2 and again != whole
        sampler.load_state_dict({"epoch": 1, "batch": 4, "index": 64})
        assert [x.tolist() for x, _ in loader] == again[4:]
        sampler.set_epoch(0)
        assert [x.tolist() for x, _ in loader] == whole


def test_a_loaded_position_is_used_once() -> None:
    sampler = PKSampler(LABELS, 3, 2, 4)
    whole = list(sampler)
    sampler.load_state_dict({"epoch": 0, "batch": 3})
    assert sampler.state_dict() == {"epoch": 0, "batch": 3}
    assert next(iter(sampler)) == whole[3] and sampler.state_dict() == {"epoch": 0, "batch": 4}
    assert list(sampler) == whole
    abandoned, walk = iter(sampler), iter(sampler)
    next(abandoned), next(walk), next(abandoned)
    assert sampler.state_dict() == {"epoch": 1, "batch": 1}  # the position of the newest iterator


def test_accelerate_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate divides the batches of a prepared loader among the processes once more."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    state = SimpleNamespace(PartialState=SimpleNamespace(_shared_state={"num_processes": 2}))
    monkeypatch.setitem(sys.modules, "accelerate", SimpleNamespace(state=state))
    monkeypatch.setitem(sys.modules, "accelerate.state", state)
    with pytest.warns(UserWarning, match="pass num_replicas=1, rank=0"):
        PKSampler(LABELS, 4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PKSampler(LABELS, 4, 2, num_replicas=1, rank=0).world == 1


def test_ranks_share_an_epoch() -> None:
    whole = sorted(map(tuple, PKSampler(LABELS, 4, 2, 9)))
    parts = [list(map(tuple, PKSampler(LABELS, 4, 2, 9, num_replicas=3, rank=rank))) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(batch for part in parts for batch in part) == whole  # 12 batches: none is left over
    uneven = [PKSampler(LABELS, 4, 2, 9, num_replicas=5, rank=rank) for rank in range(5)]
    assert [len(sampler) for sampler in uneven] == [2] * 5


def test_small_identities() -> None:
    labels = [0] * 5 + [1] + [2] * 4 + [3]
    assert {i for batch in PKSampler(labels, 2, 2, min_images=2) for i in batch} <= {0, 1, 2, 3, 4, 6, 7, 8, 9}
    with pytest.raises(ValueError, match="p: expected at most 2, the identities with 2 images or more, got 3"):
        PKSampler(labels, 3, 2, min_images=2)


def test_in_a_data_loader() -> None:
    data = TensorDataset(torch.arange(96), torch.tensor(LABELS))
    loader = DataLoader(data, batch_sampler=PKSampler(LABELS, 4, 4))
    assert [len(x) for x, _ in loader] == [16] * 6
    assert len(loader) == 6


@pytest.mark.parametrize("batch_size", (None, 16))
def test_m_per_class(batch_size: int | None) -> None:
    sampler = MPerClassSampler(LABELS, 4, batch_size, 200, seed=1)
    indices = list(sampler)
    run = batch_size or 48
    assert len(indices) == len(sampler) == 200 // run * run
    for first in range(0, len(indices), run):
        part = indices[first : first + run]
        assert set(Counter(LABELS[part].tolist()).values()) == {4} and len(set(part)) == run
    assert list(sampler) != indices
    resumed = MPerClassSampler(LABELS, 4, batch_size, 200, seed=1)
    resumed.load_state_dict({"epoch": 0, "index": 21})
    assert list(resumed) == indices[21:]


@pytest.mark.peers
@pytest.mark.parametrize(("m", "batch_size", "length"), ((4, 16, 200), (2, None, 100), (3, 9, 50), (4, None, 10)))
def test_m_per_class_is_as_long_as_the_peer(m: int, batch_size: int | None, length: int) -> None:
    samplers = pytest.importorskip("pytorch_metric_learning.samplers")
    peer = samplers.MPerClassSampler(LABELS, m, batch_size, length)
    mine = MPerClassSampler(LABELS, m, batch_size, length)
    if length >= (batch_size or m * 12):
        assert len(mine) == len(peer) == len(list(peer))
    assert len(list(mine)) == len(mine)


def test_bad_arguments() -> None:
    for arguments, kind, message in (
        ((np.ones((2, 2), int), 1, 1), ValueError, "labels: expected one dimension"),
        (([], 1, 1), ValueError, "labels: expected at least one"),
        (([0.5, 1.0], 1, 1), TypeError, "labels: expected integers"),
        ((LABELS, 0, 1), ValueError, "p: expected a positive integer, got 0"),
        ((LABELS, 1, 2.5), ValueError, "k: expected a positive integer"),
        ((LABELS, 13, 1), ValueError, "p: expected at most 12"),
        ((LABELS, 2, 2, 0, 1, 2), ValueError, "num_replicas, rank: expected both or neither"),
        ((LABELS, 2, 2, 0, 1, 2, 2), ValueError, r"rank: expected a number in \[0, 2\)"),
    ):
        with pytest.raises(kind, match=message):
            PKSampler(*arguments)
    for arguments, message in (
        ((LABELS, 4, 10), "batch_size: expected a multiple of m = 4, got 10"),
        ((LABELS, 4, 52), "batch_size: expected at most 48"),
        ((LABELS, 4, 16, 8), "length_before_new_iter: expected at least batch_size = 16, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            MPerClassSampler(*arguments)
    with pytest.raises(ValueError, match="epoch"):
        PKSampler(LABELS, 2, 2).set_epoch(-1)
