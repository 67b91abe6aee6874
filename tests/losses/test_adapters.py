"""The losses inside pytorch-metric-learning's wrappers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from occfast.losses import BatchTripletLoss, TripletLoss, TripletMiner, for_metric_learning
from tests.losses.test_memory import batches
from tests.losses.test_triplet import definition, pair_distance, select

pytest.importorskip("pytorch_metric_learning")
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("mining", ("all", "violating", "semihard", "hardest"))
@pytest.mark.parametrize("beta", (0.7, None))
def test_cross_batch_memory(mining: str, beta: float | None) -> None:
    from pytorch_metric_learning.losses import CrossBatchMemory

    loss = TripletLoss(0.4, mining=mining) if beta is None else BatchTripletLoss(0.4, beta, mining=mining)
    memory = CrossBatchMemory(for_metric_learning(loss), 5, memory_size=24).double()
    stored = torch.zeros(0, 5, dtype=torch.float64)
    for number, (x, y) in enumerate(batches(3, seed=2)):
        got_at, want_at = (x.clone().requires_grad_() for _ in range(2))
        got = memory(got_at, y)
        got.backward()
        stored = torch.cat((stored, x))
        # By definition: positives and negatives come from the memory, which holds the batch itself last.
        d = torch.tensor([[float(pair_distance(a, b, "squared_euclidean")) for b in stored] for a in x]).numpy()
        labels = y.repeat(number + 1)
        own = 8 * number
        triplets = [
            (a, p, n)
            for a in range(8)
            for p in range(len(stored))
            for n in range(len(stored))
            if y[a] == labels[p] and y[a] != labels[n] and p != own + a
        ]
        mined = select(d, triplets, mining, 0.4)
        ap = torch.stack([(want_at[a] - stored[p]).square().sum() for a, p, _ in mined])
        an = torch.stack([(want_at[a] - stored[n]).square().sum() for a, _, n in mined])
        if beta is None:
            want = (ap - an + 0.4).clamp(min=0).mean()
        else:
            spread = ap.var(correction=0) + an.var(correction=0)
            want = (1 - beta) * (ap.mean() - an.mean() + 0.4) + beta * spread
        want.backward()
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got_at.grad, want_at.grad, rtol=1e-8, atol=1e-11)


def test_a_miner_in_cross_batch_memory_chooses_the_triplets() -> None:
    from pytorch_metric_learning.losses import CrossBatchMemory

    loss = BatchTripletLoss(0.4)
    plain = CrossBatchMemory(for_metric_learning(loss), 5, memory_size=24).double()
    mined = CrossBatchMemory(for_metric_learning(loss), 5, memory_size=24, miner=TripletMiner(0.4)).double()
    for x, y in batches(2, seed=2):
        torch.testing.assert_close(mined(x, y), plain(x, y), rtol=1e-9, atol=1e-12)


def _work(rank: int, folder: str) -> None:
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    x, y = batches(2, seed=2)[rank]
    results = []
    for mining in ("violating", "hardest"):
        at = x.clone().requires_grad_()
        loss = DistributedLossWrapper(for_metric_learning(BatchTripletLoss(0.4, mining=mining)))(at, y)
        loss.backward()
        results.append((loss.detach(), at.grad))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")
def test_distributed_loss_wrapper(tmp_path: Path) -> None:
    multiprocessing.spawn(_work, args=(str(tmp_path),), nprocs=2)
    (x0, y0), (x1, y1) = batches(2, seed=2)
    for k, mining in enumerate(("violating", "hardest")):
        for rank in range(2):
            # Each rank's batch comes first in its own order; the wrapper multiplies by the number of ranks.
            first, second = ((x0, x1), (x1, x0))[rank]
            at = first.clone().requires_grad_()
            want, _, _ = definition(torch.cat((at, second)), torch.cat((y0, y1)), mining, 0.4, 0.7, "squared_euclidean")
            want.backward()
            loss, grad = torch.load(tmp_path / f"{rank}.pt")[k]
            torch.testing.assert_close(loss, 2 * want.detach(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(grad, 2 * at.grad, rtol=1e-8, atol=1e-11)


def test_alone_the_wrapper_is_the_loss() -> None:
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    [(x, y)] = batches(1, seed=2)
    loss = BatchTripletLoss(0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(DistributedLossWrapper(for_metric_learning(loss))(x, y), loss(x, y))


def test_what_cannot_be_wrapped() -> None:
    with pytest.raises(TypeError, match="loss: expected BatchTripletLoss or TripletLoss, got Linear"):
        for_metric_learning(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="loss: expected distributed=False"):
        for_metric_learning(BatchTripletLoss(distributed=True))
