"""Cross-batch memory, against listed triplets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from occfast.losses import BatchTripletLoss, CrossBatchMemory, TripletLoss
from occfast.native import ops
from tests.losses.test_triplet import pair_distance, select


def batches(count: int, seed: int = 4) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    return [(F.normalize(torch.randn(8, 5, generator=random, dtype=torch.float64)), labels) for _ in range(count)]


@pytest.mark.parametrize("mining", ("all", "violating", "semihard", "hardest"))
@pytest.mark.parametrize("beta", (0.7, None))
@pytest.mark.parametrize("backend", ("native", "reference"))
def test_definition(mining: str, beta: float | None, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch first, then the latest 12 of the embeddings before it; gradients reach the batch as anchors and others."""
    monkeypatch.setenv("OCCFAST_BACKEND", backend)
    for distance in ops.DISTANCES:
        for memory in ("quadratic", "linear"):
            options = dict(mining=mining, distance=distance, memory=memory)
            loss = TripletLoss(0.4, **options) if beta is None else BatchTripletLoss(0.4, beta, **options)
            rule = CrossBatchMemory(loss, 5, memory_size=12).double()
            held_x, held_y = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
            for x, y in batches(3):
                got_at, want_at = (x.clone().requires_grad_() for _ in range(2))
                got = rule(got_at, y)
                got.backward()
                everything, labels = torch.cat((want_at, held_x)), torch.cat((y, held_y))
                d = torch.stack([torch.stack([pair_distance(a, b, distance) for b in everything]) for a in want_at])
                triplets = [
                    (a, p, n)
                    for a in range(8)
                    for p in range(len(labels))
                    for n in range(len(labels))
                    if y[a] == labels[p] and y[a] != labels[n] and p != a
                ]
                mined = select(d.detach().numpy(), triplets, mining, 0.4)
                ap = torch.stack([d[a, p] for a, p, _ in mined])
                an = torch.stack([d[a, n] for a, _, n in mined])
                if beta is None:
                    want = (ap - an + 0.4).clamp(min=0).mean()
                else:
                    spread = ap.var(correction=0) + an.var(correction=0)
                    want = (1 - beta) * (ap.mean() - an.mean() + 0.4) + beta * spread
                want.backward()
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(got_at.grad, want_at.grad, rtol=1e-9, atol=1e-12)
                held_x, held_y = torch.cat((held_x, x))[-12:], torch.cat((held_y, y))[-12:]


def test_memory_is_a_ring_that_is_saved_and_only_written_in_training() -> None:
    rule = CrossBatchMemory(BatchTripletLoss(), 5, memory_size=12)
    parts = [(x.float(), y) for x, y in batches(4)]
    for x, y in parts[:3]:
        rule(x, y)
    assert rule.remembered == 12
    want = torch.cat([x for x, _ in parts[:3]])[-12:]
    assert torch.equal(rule.embeddings.sort(0).values, want.sort(0).values)
    again = CrossBatchMemory(BatchTripletLoss(), 5, memory_size=12)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again(*parts[3]), rule(*parts[3])) and torch.equal(again.embeddings, rule.embeddings)
    rule.eval()
    before = rule.embeddings.clone()
    rule(*parts[0])
    assert torch.equal(rule.embeddings, before)
    rule.reset()
    assert rule.remembered == 0 and torch.equal(rule(*parts[0]), BatchTripletLoss()(*parts[0]))


def test_a_batch_larger_than_the_memory_leaves_its_last_rows() -> None:
    rule = CrossBatchMemory(BatchTripletLoss(), 5, memory_size=3)
    x, y = batches(1)[0]
    rule(x.float(), y)
    assert torch.equal(rule.embeddings, x.float()[-3:]) and torch.equal(rule.labels, y[-3:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_not_remembered(bad: float) -> None:
    rule, other = (CrossBatchMemory(BatchTripletLoss(), 5, memory_size=12) for _ in range(2))
    (x, y), (following, _) = ((x.float(), y) for x, y in batches(2))
    broken = x.clone()
    broken[3, 2] = bad
    for one in (rule, other):
        one(x, y)
    assert not bool(rule(broken, y).isfinite())
    assert rule.remembered == 8 and torch.equal(rule(following, y), other(following, y))
    half = CrossBatchMemory(BatchTripletLoss(), 5).half()
    half(x * 1e5, y)  # finite, but not in the memory
    assert half.remembered == 0


def test_what_autograd_can_not_do_is_refused() -> None:
    rule = CrossBatchMemory(BatchTripletLoss(), 5, memory_size=12)
    [(x, y)] = [(x.float(), y) for x, y in batches(1)]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        rule(forward_ad.make_dual(x, torch.ones_like(x)), y)
    with pytest.raises(NotImplementedError, match=r"in no transform of torch.func"):
        torch.func.grad(lambda a: rule(a, y))(x)
    assert rule.remembered == 0
    at = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="each call remembers its batch"):
        checkpoint(lambda a: rule(2 * a, y), at, use_reentrant=True).backward()
    assert rule.remembered == 8
    rule.eval()
    (checkpoint(lambda a: rule(2 * a, y), at, use_reentrant=True)).backward()
    assert at.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.nn.Identity(), 5, 9), TypeError, "loss: expected BatchTripletLoss or TripletLoss, got Identity"),
        ((BatchTripletLoss(), 0, 9), ValueError, "embedding_size: expected"),
        ((TripletLoss(), 5, 0), ValueError, "memory_size: expected"),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    loss, embedding_size, memory_size = arguments
    with pytest.raises(error, match=message):
        CrossBatchMemory(loss, embedding_size, memory_size=memory_size)


def test_wrong_batches() -> None:
    rule = CrossBatchMemory(BatchTripletLoss(check_finite=True), 5)
    x, y = batches(1)[0]
    with pytest.raises(TypeError, match=r"embeddings: expected the precision of the memory, torch.float32, got .*64"):
        rule(x, y)
    with pytest.raises(ValueError, match="embeddings: expected 5 columns, got 4"):
        rule(x[:, :4].float(), y)
    with pytest.raises(ValueError, match="embeddings: expected finite numbers"):
        rule(x.float() / 0, y)
    assert rule.remembered == 0
