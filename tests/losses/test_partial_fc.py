"""PartialFC against the whole classifier with PyTorch's autograd, on one to four processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from occfast.losses import LargeMarginCosine, PartialFC
from tests.processes import together

LOSSES = ("large_margin_cosine", "cross_entropy")
SIZE, CLASSES = 6, 11
BATCHES = {1: [19], 2: [7, 12], 3: [5, 0, 14], 4: [8, 3, 0, 8]}  # 19 images over different numbers of processes


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    return torch.randn(19, SIZE, generator=random).to(dtype), torch.randint(0, CLASSES, (19,), generator=random)


def created(loss: str, **options: Any) -> PartialFC:
    torch.manual_seed(2)
    return PartialFC(SIZE, CLASSES, loss=loss, scale=16.0, margin=0.3, **options)


def whole_of(loss: str) -> nn.Module:
    torch.manual_seed(2)
    return LargeMarginCosine(SIZE, CLASSES, scale=16.0, margin=0.3) if loss == LOSSES[0] else nn.Linear(SIZE, CLASSES)


def logits_of(whole: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return whole(x, y) if isinstance(whole, LargeMarginCosine) else whole(x)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


# -- on one process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_alone_it_is_the_whole_classifier(loss: str, smoothing: float) -> None:
    head, whole = created(loss, label_smoothing=smoothing).double(), whole_of(loss).double()
    assert torch.equal(head.weight, whole.weight) and (head.bias is None or torch.equal(head.bias, whole.bias))
    (x, y), results = batch(), []
    for module in (head, whole):
        inputs = x.clone().requires_grad_()
        if module is head:
            value = head(inputs, y)
        else:
            value = F.cross_entropy(logits_of(whole, inputs, y), y, label_smoothing=smoothing)
        (3 * value).backward()
        results.append([value.detach(), inputs.grad, *(p.grad for p in module.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    plain = whole(x)
    assert torch.equal(head.predicted, plain.argmax(1)) and torch.equal(head.predict(x), plain.argmax(1))
    head.eval()
    with torch.no_grad():
        assert torch.equal(head(x, y), results[0][0])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: str) -> None:
    head, (x, y) = created(loss, label_smoothing=0.1).double(), batch()
    parameters = dict(head.named_parameters())

    def value(inputs: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(parameters, weights, strict=True)), (inputs, y[:5]))

    assert torch.autograd.gradcheck(value, (x[:5].requires_grad_(), *parameters.values()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sampled_is_the_whole_without_the_other_columns(loss: str, smoothing: float) -> None:
    head = created(loss, sampling=0.3, seed=8, label_smoothing=smoothing).double()
    whole, (x, y) = whole_of(loss).double(), batch()
    x, y = x[:4].requires_grad_(), y[:4] // 2
    kept = head._kept(y)
    assert set(y.tolist()) <= set(kept.tolist()) and len(kept) < CLASSES
    place = {int(k): number for number, k in enumerate(kept)}
    got = head(x, y)
    inputs = x.detach().clone().requires_grad_()
    columns = logits_of(whole, inputs, y)[:, kept]
    want = F.cross_entropy(columns, torch.tensor([place[k] for k in y.tolist()]), label_smoothing=smoothing)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.backward()
    want.backward()
    for mine, theirs in zip([x, *head.parameters()], [inputs, *whole.parameters()], strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-11, atol=1e-13)
    absent = torch.ones(CLASSES, dtype=torch.bool)
    absent[kept] = False
    assert bool(absent.any()) and not bool(head.weight.grad[absent].any())
    assert head.step == 1 and head.get_extra_state() == {"step": 1}
    head.eval()
    full = F.cross_entropy(logits_of(whole, inputs, y), y, label_smoothing=smoothing)
    torch.testing.assert_close(head(x, y), full, rtol=1e-12, atol=1e-12)
    assert head.step == 1


def test_draws() -> None:
    head = PartialFC(1, 40_000, sampling=0.1, seed=2**63 - 1)
    nobody = torch.tensor([-1])
    first = head._kept(nobody)
    assert abs(len(first) - 4000) < 5 * math.sqrt(4000 * 0.9)
    assert torch.equal(head._kept(nobody), first)
    head.step = 1
    second = head._kept(nobody)
    both = int(torch.isin(first, second).sum())
    assert abs(both - 400) < 5 * math.sqrt(400)  # independent of the call before
    head.seed = 5
    assert not torch.equal(head._kept(nobody), second)


@pytest.mark.parametrize("factor", [1e4, 1e-30])
def test_logits_of_any_size(factor: float) -> None:
    head, (x, y) = created("cross_entropy"), batch(torch.float32)
    with torch.no_grad():
        head.weight *= factor
    whole = head.whole()
    x.requires_grad_()
    got = head(x, y)
    got.backward()
    torch.testing.assert_close(got, F.cross_entropy(whole(x), y), rtol=1e-6, atol=1e-6)
    assert bool(x.grad.isfinite().all())


def test_zero_rows_and_half_precision() -> None:
    head = PartialFC(4, 3)
    with torch.no_grad():
        head.weight[1] = 0
    x = torch.zeros(2, 4, requires_grad=True)
    head(x, torch.tensor([0, 1])).backward()
    assert not bool(x.grad.any()) and bool(head.weight.grad.isfinite().all()) and not bool(head.weight.grad[1].any())
    x = torch.randn(5, 4).bfloat16()
    want = head(x.float(), torch.arange(5) % 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x, torch.arange(5) % 3)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    assert head.predict(torch.tensor([[math.nan] * 4, [1.0] * 4])).tolist()[0] == -1


def test_what_is_kept_for_the_backward_pass() -> None:
    """The logits once, the gathered features, and the weights themselves."""
    head, (x, y) = PartialFC(SIZE, 50).double(), batch()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        head(x.requires_grad_(), y)
    large = sorted(tuple(t.shape) for t in saved if t.numel() > 2 * 50)
    stated = PartialFC.elements(SIZE, 50, 19)
    assert large.count((19, 50)) == 1 and stated == (50 * SIZE, 19 * 50, 19 * SIZE)
    assert {t.data_ptr() for t in saved if t.shape == (50, SIZE)} == {head.weight.data_ptr()}
    assert set(large) <= {(19, 50), (50, SIZE), (19, SIZE)}
    assert PartialFC.elements(4, 1000, 10, processes=4, sampling=0.1) == (1000, round(10 * (2.5 + 24.75)), 40)


def test_whole_and_back() -> None:
    for loss in LOSSES:
        head, whole = created(loss), whole_of(loss)
        found = head.whole()
        assert type(found) is type(whole) and found.weight.data_ptr() != head.weight.data_ptr()
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))
        other = PartialFC(SIZE, CLASSES, loss=loss)
        other.load_whole(found.state_dict())
        assert torch.equal(other.weight, head.weight)
        with pytest.raises(ValueError, match="state: expected weight of shape"):
            other.load_whole({**found.state_dict(), "weight": found.weight[1:]})
        with pytest.raises(ValueError, match="state: expected weight"):
            other.load_whole({})


def test_bad_input() -> None:
    good = {"in_features": 4, "n_classes": 3}
    for arguments, kind, message in (
        ({"in_features": 0}, ValueError, "in_features: expected an int of at least 1, got 0"),
        ({"n_classes": 2.5}, TypeError, "n_classes: expected an int"),
        ({"loss": "softmax"}, ValueError, "loss: expected one of"),
        ({"sampling": 0.0}, ValueError, "sampling: expected a number"),
        ({"sampling": 1.1}, ValueError, "sampling: expected a number"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing"),
        ({"scale": 0.0}, ValueError, "scale"),
        ({"margin": -1.0}, ValueError, "margin"),
        ({"seed": -1}, ValueError, "seed"),
    ):
        with pytest.raises(kind, match=message):
            PartialFC(**{**good, **arguments})
    head, x, y = PartialFC(4, 3), torch.randn(2, 4), torch.tensor([0, 2])
    for arguments, kind, message in (
        ((x[:, :3], y), ValueError, r"features: expected shape \[N, 4\], got \[2, 3\]"),
        (("x", y), TypeError, "features: expected a tensor, got str"),
        ((x, y.float()), TypeError, "labels: expected an integer tensor"),
        ((x, y[:1]), ValueError, r"labels: expected shape \[2\]"),
        ((x, y + 1), ValueError, r"labels: expected values in \[0, 3\), got \[1, 3\]"),
        ((x[:0], y[:0]), ValueError, "features: expected at least one row"),
        ((x.to("meta"), y), ValueError, "features: expected a tensor on cpu"),
    ):
        with pytest.raises(kind, match=message):
            head(*arguments)
    with pytest.raises(ValueError, match="whole: expected 3 rows, got shape"):
        head.own_rows(torch.zeros(4))
    sampled = PartialFC(4, 3, sampling=0.5)
    with pytest.raises(RuntimeError, match="sampling: negatives are drawn anew"):
        torch.utils.checkpoint.checkpoint(sampled, x.requires_grad_(), y, use_reentrant=False).backward()


# -- on several processes ------------------------------------------------------------------------------------------


class Process:
    """One of several processes that share a group."""

    def __init__(self, group: dist.ProcessGroup, ranks: int) -> None:
        self.group, self.ranks, self.rank = group, ranks, dist.get_rank(group)

    def part(self, values: Tensor) -> Tensor:
        return values.split(BATCHES[self.ranks])[self.rank].clone()


def check_loss(process: Process, loss: str, dtype: torch.dtype, smoothing: float) -> None:
    head = created(loss, label_smoothing=smoothing, process_group=process.group).to(dtype)
    whole, (x, y) = whole_of(loss).to(dtype), batch(dtype)
    mine = process.part(x).requires_grad_()
    value = head(mine, process.part(y))
    value.backward()
    x.requires_grad_()
    want = F.cross_entropy(logits_of(whole, x, y), y, label_smoothing=smoothing)
    want.backward()
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    assert relative(value, want) <= bound
    if len(mine):
        assert relative(mine.grad, process.ranks * process.part(x.grad)) <= bound
    own = slice(head.classes.start, head.classes.stop)
    norm = torch.zeros((), dtype=torch.float64)
    for got, expected in zip(head.parameters(), whole.parameters(), strict=True):
        assert torch.equal(got.detach(), expected.detach()[own]) and relative(got.grad, expected.grad[own]) <= bound
        norm += expected.grad.double().square().sum()
    assert relative(head.gradient_norm(), norm.sqrt()) <= bound
    assert torch.equal(head.predicted, process.part(whole(x.detach()).argmax(1)))
    assert torch.equal(head.predict(process.part(x.detach())), head.predicted)


def check_memory(process: Process) -> None:
    """Weights and logits of a process are its share of the whole's."""
    classes = 120
    head, (x, y) = PartialFC(SIZE, classes, process_group=process.group), batch(torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        head(process.part(x).requires_grad_(), process.part(y))
    stated = PartialFC.elements(SIZE, classes, len(x), processes=process.ranks)
    share = classes // process.ranks
    assert stated.weights == head.weight.numel() == share * SIZE
    assert [t.numel() for t in saved if t.shape == (19, share)] == [stated.logits] == [19 * share]
    assert max(t.numel() for t in saved) <= max(stated)


def check_training(process: Process, folder: Path, loss: str) -> None:
    """Trained with DistributedDataParallel, stopped, and continued on the next number of processes: as on one."""
    group, ranks = process.group, process.ranks

    def start() -> tuple[nn.Module, PartialFC, torch.optim.Optimizer]:
        head = created(loss, process_group=group, sampling=0.6, seed=4).double()
        torch.manual_seed(9)
        network = nn.Linear(SIZE, SIZE).double()
        optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=0.05)
        wrapped = network if ranks == 1 else nn.parallel.DistributedDataParallel(network, process_group=group)
        return wrapped, head, optimizer

    def train(network: nn.Module, head: PartialFC, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            x, y = (values.roll(step, 0) for values in batch())
            value = head(network(process.part(x)), process.part(y // 2))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(value.detach()))
        return losses

    network, head, optimizer = start()
    plain = getattr(network, "module", network)
    before = train(network, head, optimizer, range(3))
    state = head.gather_optimizer_state(optimizer)
    whole = head.whole()
    assert (state is None) == (whole is None) == (process.rank > 0)
    if whole is not None:
        saved = {"network": plain.state_dict(), "head": whole.state_dict(), "optimizer": state, "step": head.step}
        torch.save({**saved, "losses": before}, folder / f"{loss}-{ranks}.pt")
    after = train(network, head, optimizer, range(3, 6))
    dist.barrier(group)
    other = torch.load(folder / f"{loss}-{max(ranks - 1, 1)}.pt")
    torch.testing.assert_close(torch.tensor(before), torch.tensor(other["losses"]), rtol=1e-12, atol=0)
    result = head.gather_rows(head.weight)
    network, head, optimizer = start()
    getattr(network, "module", network).load_state_dict(other["network"])
    head.load_state_dict({**other["head"], "_extra_state": {"step": other["step"]}})
    optimizer.load_state_dict(head.own_optimizer_state(optimizer, other["optimizer"]))
    assert all(optimizer.state[head.weight][name].shape == head.weight.shape for name in ("exp_avg", "exp_avg_sq"))
    again = train(network, head, optimizer, range(3, 6))
    torch.testing.assert_close(torch.tensor(again), torch.tensor(after), rtol=1e-12, atol=0)
    weight = head.gather_rows(head.weight)
    if result is not None and weight is not None:
        torch.testing.assert_close(weight, result, rtol=1e-11, atol=1e-13)


def check_errors(process: Process) -> None:
    group, ranks = process.group, process.ranks
    with pytest.raises(
        ValueError, match=f"n_classes: expected at least {ranks}, one for each process, got {ranks - 1}"
    ):
        PartialFC(3, ranks - 1, process_group=group)
    head, (x, y) = created("cross_entropy", process_group=group), batch(torch.float32)
    y[0] = CLASSES  # only the first process has it, and every process says so
    with pytest.raises(ValueError, match=rf"labels: expected values in \[0, {CLASSES}\), got \[0, {CLASSES}\]"):
        head(process.part(x), process.part(y))
    with pytest.raises(ValueError, match="features: expected at least one row over all processes"):
        head(x[:0], y[:0])
    both = nn.parallel.DistributedDataParallel(
        Both(PartialFC(SIZE, 4 * ranks, process_group=group)), process_group=group
    )
    with pytest.raises(ValueError, match="got DistributedDataParallel around the classifier"):
        both(process.part(x), process.part(y) * 0)


class Both(nn.Module):
    def __init__(self, head: PartialFC) -> None:
        super().__init__()
        self.network, self.head = nn.Linear(SIZE, SIZE), head

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.network(x), y)


def groups() -> Iterator[Process]:
    for ranks in BATCHES:
        group = dist.new_group(list(range(ranks)))
        if dist.get_rank() < ranks:
            yield Process(group, ranks)
        dist.barrier()


def work(folder: Path) -> None:
    before = created("cross_entropy")
    dist.init_process_group("gloo")
    with pytest.raises(ValueError, match="process_group: expected the 1 processes that the classifier was created for"):
        before(*batch(torch.float32))
    for process in groups():
        for loss in LOSSES:
            for smoothing in (0.0, 0.1):
                for dtype in (torch.float64, torch.float32):
                    check_loss(process, loss, dtype, smoothing)
            check_training(process, folder, loss)
        if process.ranks > 1:
            check_memory(process)
            check_errors(process)


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")
def test_processes_do_what_one_does(tmp_path: Path) -> None:
    together(work, tmp_path, processes=max(BATCHES))
