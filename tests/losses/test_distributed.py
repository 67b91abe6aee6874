"""distributed=True: every rank gets its part of the gradient of the one global loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn

from occfast.losses.triplet import BatchTripletLoss, TripletLoss

SIZES = {2: [7, 12], 3: [5, 0, 9], 4: [8, 3, 6, 1]}


def _batches(ranks: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(5)
    total = sum(SIZES[ranks])
    x = torch.randn(total, 6, generator=random, dtype=torch.float64)
    y = torch.randint(0, 4, (total,), generator=random)
    return list(zip(x.split(SIZES[ranks]), y.split(SIZES[ranks]), strict=True))


def _network() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def _losses(distributed: bool) -> list[nn.Module]:
    return [
        BatchTripletLoss(distributed=distributed),
        BatchTripletLoss(mining="semihard_random", distributed=distributed, distance="cosine", seed=3),
        TripletLoss(mining="hardest", distributed=distributed, distance="euclidean"),
    ]


def _work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    x, y = _batches(ranks)[rank]
    results = []
    for loss_fn in _losses(True):
        model = nn.parallel.DistributedDataParallel(_network())
        loss = loss_fn(F.normalize(model(x)), y)
        loss.backward()
        totals = loss_fn.stats.totals
        results.append((loss.detach(), totals, [p.grad for p in model.parameters()]))
    # Half precision and references travel too.
    a, b = x.bfloat16().requires_grad_(), x.clone().flip(1).float().requires_grad_()
    loss = BatchTripletLoss(mining="all", distributed=True)(a, y, ref_emb=b, ref_labels=y)
    loss.backward()
    results.append((loss.detach(), a.grad, b.grad))
    torch.save(results, Path(folder) / f"{rank}.pt")
    del model, loss
    dist.barrier()  # a rank that leaves while another still talks to it aborts that one
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", sorted(SIZES))
def test_ranks_agree_with_one_process(ranks: int, tmp_path: Path) -> None:
    multiprocessing.spawn(_work, args=(ranks, str(tmp_path)), nprocs=ranks)
    got = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    x, y = (torch.cat(parts) for parts in zip(*_batches(ranks), strict=True))
    for k, loss_fn in enumerate(_losses(False)):
        model = _network()
        loss = loss_fn(F.normalize(model(x)), y)
        loss.backward()
        assert int(loss_fn.stats.n_triplets) > 0
        for value, totals, grads in (each[k] for each in got):
            torch.testing.assert_close(value, loss.detach(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(totals, loss_fn.stats.totals, rtol=1e-10, atol=1e-12)
            # DistributedDataParallel has averaged: no factor by hand.
            for g, parameter in zip(grads, model.parameters(), strict=True):
                torch.testing.assert_close(g, parameter.grad, rtol=1e-9, atol=1e-12)
    a, b = x.bfloat16().requires_grad_(), x.clone().flip(1).float().requires_grad_()
    loss = BatchTripletLoss(mining="all")(a, y, ref_emb=b, ref_labels=y)
    loss.backward()
    for which, whole in ((1, a.grad), (2, b.grad)):
        parts = torch.cat([each[-1][which].float() for each in got]) / ranks
        torch.testing.assert_close(parts, whole.float(), rtol=2e-2 if which == 1 else 1e-5, atol=1e-5)


def test_alone_in_the_world(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        x, y = torch.randn(8, 3), torch.arange(8) // 2
        assert torch.equal(BatchTripletLoss(distributed=True)(x, y), BatchTripletLoss()(x, y))
        with pytest.raises(ValueError, match="indices_tuple: expected None with distributed=True"):
            BatchTripletLoss(distributed=True)(x, y, (y, y, y))
    finally:
        dist.destroy_process_group()
