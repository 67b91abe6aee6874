"""LargeMarginCosine against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from occfast.losses.cosface import LargeMarginCosine


def test_formula() -> None:
    head = LargeMarginCosine(7, 5, scale=30.0, margin=0.2).double()
    x, y = torch.randn(6, 7, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    loss = F.cross_entropy(head(x, y), y)
    want = 0.0
    for row, label in zip(x, y.tolist(), strict=True):
        cosines = [float(row @ w / (row.norm() * w.norm())) for w in head.weight]
        own = math.exp(30.0 * (cosines[label] - 0.2))
        rest = sum(math.exp(30.0 * c) for j, c in enumerate(cosines) if j != label)
        want -= math.log(own / (own + rest)) / len(x)
    assert float(loss.detach()) == pytest.approx(want, rel=1e-10)
    plain = head(x)
    taken = (plain - head(x, y)).detach()
    torch.testing.assert_close(taken, 30.0 * 0.2 * F.one_hot(y, 5).double(), rtol=1e-9, atol=1e-9)


def test_gradient() -> None:
    head = LargeMarginCosine(4, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 1, 0])

    def logits(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(head, {"weight": weight}, (features, y))

    assert torch.autograd.gradcheck(logits, (x, head.weight))


def test_zero_rows_have_no_gradient() -> None:
    head = LargeMarginCosine(4, 3)
    x = torch.zeros(2, 4, requires_grad=True)
    logits = head(x)
    logits.sum().backward()
    assert torch.equal(logits, torch.zeros(2, 3)) and torch.equal(x.grad, torch.zeros(2, 4))
    assert head.weight.grad.isfinite().all()


def test_half_precision_keeps_float32_cosines() -> None:
    head = LargeMarginCosine(64, 10)
    x, y = torch.randn(8, 64).bfloat16(), torch.arange(8)
    want = head(x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x, y)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    assert float(head(x).detach().abs().max()) <= 64.0001


def test_learns() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.eye(3)[y] + 0.3 * torch.randn(60, 3)
    head = LargeMarginCosine(3, 3, scale=16.0)
    optimizer = torch.optim.SGD(head.parameters(), 0.05)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(head(x, y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert float((head(x).argmax(1) == y).float().mean()) > 0.9


def test_bad_input() -> None:
    for arguments, message in (
        ({"in_features": 0}, "in_features: expected an int of at least 1, got 0"),
        ({"n_classes": 0}, "n_classes"),
        ({"scale": 0.0}, "scale: expected a number above 0, got 0.0"),
        ({"margin": -0.1}, "margin"),
        ({"scale": math.inf}, "scale"),
        ({"scale": 1e308}, "scale: expected at most 7.23e.37 with margin 0.35, so that logits stay finite"),
        ({"scale": 1.0, "margin": 1e39}, "scale: expected at most"),
    ):
        with pytest.raises(ValueError, match=message):
            LargeMarginCosine(**{"in_features": 3, "n_classes": 3, **arguments})
    for arguments in ({"n_classes": 2.0}, {"in_features": True}, {"scale": "64"}, {"margin": None}):
        with pytest.raises(TypeError, match=next(iter(arguments))):
            LargeMarginCosine(**{"in_features": 3, "n_classes": 3, **arguments})
    head, x, y = LargeMarginCosine(4, 3), torch.randn(2, 4), torch.tensor([0, 2])
    for arguments, kind, message in (
        ((x[:, :3], y), ValueError, r"features: expected shape \[N, 4\], got \[2, 3\]"),
        ((x.long(), y), TypeError, "features: expected a floating-point"),
        ((x, y.float()), TypeError, "labels: expected an integer tensor"),
        ((x, y[:1]), ValueError, r"labels: expected shape \[2\]"),
        ((x, y + 1), ValueError, r"labels: expected values in \[0, 3\), got \[1, 3\]"),
        ((x[:0], y[:0]), ValueError, r"features: expected at least one row, got shape \[0, 4\]"),
        ((x[:0],), ValueError, "features: expected at least one row"),
        ((x.to("meta"), y), ValueError, "features: expected a tensor on cpu"),
    ):
        with pytest.raises(kind, match=message):
            head(*arguments)
