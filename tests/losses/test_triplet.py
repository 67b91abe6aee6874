"""The triplet losses against their definition, enumerated in float64."""

from __future__ import annotations

import inspect
import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import occfast.losses
from occfast.losses.miner import TripletMiner
from occfast.losses.stats import plot_score_distributions
from occfast.losses.triplet import BatchTripletLoss, TripletLoss
from occfast.native import ops
from occfast.native.enums import Slot
from occfast.native.ops import triplet_passes

MININGS = ("all", "violating", "semihard", "hardest")
DISTANCES = ("squared_euclidean", "euclidean", "cosine")


# -- the definition ------------------------------------------------------------------------------------


def pair_distance(a: Tensor, b: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        if not (a.any() and b.any()):
            return (a.sum() + b.sum()) * 0 + 1
        return (a / a.norm() - b / b.norm()).square().sum() / 2  # 1 - cosine, without losing digits
    square = (a - b).square().sum()
    if distance == "squared_euclidean":
        return square
    return square.sqrt() if float(square) > 0 else square * 0


def candidates(labels: list[int], references: list[int] | None) -> list[tuple[int, int, int]]:
    own = references is None
    others = labels if references is None else references
    return [
        (a, p, n)
        for a, p, n in itertools.product(range(len(labels)), range(len(others)), range(len(others)))
        if labels[a] == others[p] and labels[a] != others[n] and not (own and a == p)
    ]


def select(d: np.ndarray, triplets: list[tuple[int, int, int]], mining: str, margin: float) -> list[tuple]:
    if mining == "hardest":
        chosen = []
        for a in sorted({t[0] for t in triplets}):
            mine = [t for t in triplets if t[0] == a]
            p = min({t[1] for t in mine}, key=lambda p: (-d[a, p], p))
            n = min({t[2] for t in mine}, key=lambda n: (d[a, n], n))
            chosen.append((a, p, n))
        return chosen
    rules = {
        "all": lambda ap, an: True,
        "violating": lambda ap, an: an < ap + margin,
        "semihard": lambda ap, an: ap < an < ap + margin,
    }
    return [t for t in triplets if rules[mining](d[t[0], t[1]], d[t[0], t[2]])]


def definition(
    embeddings: Tensor,
    labels: Tensor,
    mining: str,
    margin: float,
    beta: float | None,
    distance: str,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> tuple[Tensor, list[tuple], list[tuple]]:
    """The loss (beta None: the mean hinge), the mined triplets and the candidates."""
    others = embeddings if ref is None else ref
    d = [[pair_distance(a, b, distance) for b in others] for a in embeddings]
    values = np.array([[float(x.detach()) for x in row] for row in d]).reshape(len(embeddings), len(others))
    every = candidates(labels.tolist(), None if ref_labels is None else ref_labels.tolist())
    mined = select(values, every, mining, margin)
    if not mined:
        return (embeddings.sum() + others.sum()) * 0, mined, every
    ap = torch.stack([d[a][p] for a, p, _ in mined])
    an = torch.stack([d[a][n] for a, _, n in mined])
    if beta is None:
        return (ap - an + margin).clamp(min=0).mean(), mined, every
    means, variances = ap.mean() - an.mean() + margin, ap.var(correction=0) + an.var(correction=0)
    return (1 - beta) * means + beta * variances, mined, every


def make(mining: str, margin: float, beta: float | None, distance: str, **options):
    if beta is None:
        return TripletLoss(margin, mining=mining, distance=distance, **options)
    return BatchTripletLoss(margin, beta, mining=mining, distance=distance, **options)


def batch(kind: str, distance: str = "") -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(9, 5, generator=random, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])
    if kind == "unit":
        return F.normalize(x), y
    if kind == "shifted":  # far from the origin: products cancel
        return F.normalize(x) + 1000.0, y
    if kind == "tied" and distance == "cosine":  # lengths and cosines without rounding
        axes = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 0, 1, 3, 0, 1]]
        return axes * torch.tensor([1, 2, -1, 4, 0.5, -2, 1, 2, 1])[:, None], y
    if kind == "tied":  # coordinates on a grid: many equal distances
        return torch.randint(0, 2, (9, 4), generator=random).double(), y
    if kind == "duplicated":
        return F.normalize(x)[[0, 1, 2, 0, 1, 2, 0, 1, 2]], torch.tensor([0, 0, 1, 0, 1, 1, 2, 2, 2])
    if kind == "identical":
        return torch.ones(6, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    if kind == "zeros":
        return torch.cat((torch.zeros(2, 5, dtype=torch.float64), x[:5])), torch.tensor([0, 1, 0, 1, 0, 1, 0])
    if kind == "one class":
        return F.normalize(x), torch.zeros(9, dtype=torch.int64)
    if kind == "all distinct":
        return F.normalize(x), torch.arange(9)
    if kind == "one positive":
        return F.normalize(x), torch.tensor([5, 5, 1, 2, 3, 4, 6, 7, 8])
    if kind == "huge":
        return x * 1e6, y
    if kind == "clusters":  # tight classes far apart
        return torch.randn(3, 5, generator=random, dtype=torch.float64)[y] * 100 + x * 1e-3, y
    return F.normalize(x)[: int(kind)], y[: int(kind)]


KINDS = (
    "unit",
    "shifted",
    "tied",
    "duplicated",
    "identical",
    "zeros",
    "one class",
    "all distinct",
    "one positive",
    "huge",
    "clusters",
    "0",
    "1",
    "2",
)


#: Batches without a negative, which the losses refuse.
ONE_CLASS = ("one class", "0", "1")


def relative(got: Tensor, want: Tensor) -> float:
    scale = float(want.abs().max()) if want.numel() else 0.0
    return float((got.double() - want).abs().max()) / (scale or 1.0) if want.numel() else 0.0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONE_CLASS])
@pytest.mark.filterwarnings("ignore:labels. no two embeddings")
def test_definition(kind: str, mining: str, distance: str) -> None:
    x, y = batch(kind, distance)
    margin = 0.5 if kind not in ("huge", "clusters") else 0.7 * float(x.abs().max()) ** 2
    for beta in (0.0, 0.7, 1.0, None):
        want_at, got_at = x.clone().requires_grad_(), x.clone().requires_grad_()
        want, mined, every = definition(want_at, y, mining, margin, beta, distance)
        loss = make(mining, margin, beta, distance)
        got = loss(got_at, y)
        want.backward()
        got.backward()
        # Of the terms it adds up: a loss near 0 is a difference of large numbers.
        size = max(abs(want.item()), margin, 1e-3)
        assert abs(float(got) - float(want)) <= 1e-10 * size
        assert got_at.grad.isfinite().all()
        assert relative(got_at.grad, want_at.grad) <= (
            1e-10 if float(want_at.grad.abs().max() if x.numel() else 1) > 1e-9 else 1
        )
        assert int(loss.stats.n_triplets) == len(mined)
        assert int(loss.stats.n_candidates) == len(every)


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", ONE_CLASS)
def test_batches_of_one_class_are_refused(kind: str, mining: str) -> None:
    x, y = batch(kind)
    message = "embeddings: expected at least one row" if kind == "0" else "labels: expected at least two classes"
    for beta in (0.7, None):
        loss = make(mining, 0.5, beta, "squared_euclidean")
        with pytest.raises(ValueError, match=message):
            loss(x, y)
        assert loss.stats is None
    # The operator under them gives 0, as the definition has it.
    want, mined, every = definition(x, y, mining, 0.5, 0.7, "squared_euclidean")
    at = x.clone().requires_grad_()
    options = (ops.MININGS[mining], False, 0.5, 0.7, 0, 0, True, 8, 0.0, True, False, False)
    got, totals, *_ = ops.triplet_loss(at, y, None, None, 0, *options)
    got.backward()
    assert float(got) == float(want) == 0 and not mined and not every
    assert float(totals[Slot.CANDIDATES]) == float(totals[Slot.MINED_POSITIVE]) == 0
    assert at.grad.shape == x.shape and not at.grad.any()


def test_batches_without_a_positive_pair_are_pointed_out() -> None:
    x, y = batch("all distinct")
    with pytest.warns(UserWarning, match="no two embeddings of the batch have the same label"):
        assert BatchTripletLoss()(x, y) == 0
    with pytest.warns(UserWarning, match="no two embeddings"):
        assert BatchTripletLoss()(x, y, None, x.clone(), y + 100) == 0
    with warnings.catch_warnings():  # nothing violates: that is success, not an error
        warnings.simplefilter("error")
        assert BatchTripletLoss(margin=0.0)(torch.eye(2)[[0, 0, 1, 1]] * 9, torch.tensor([0, 0, 1, 1])) == 0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
def test_definition_with_references(mining: str, distance: str) -> None:
    x, y = batch("unit")
    r, z = batch("zeros")
    for beta in (0.7, None):
        want_at = [t.clone().requires_grad_() for t in (x, r)]
        got_at = [t.clone().requires_grad_() for t in (x, r)]
        want, mined, every = definition(want_at[0], y, mining, 0.5, beta, distance, want_at[1], z)
        loss = make(mining, 0.5, beta, distance)
        got = loss(got_at[0], y, ref_emb=got_at[1], ref_labels=z)
        want.backward()
        got.backward()
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        for g, w in zip(got_at, want_at, strict=True):
            torch.testing.assert_close(g.grad, w.grad, rtol=1e-10, atol=1e-12)
        assert (int(loss.stats.n_triplets), int(loss.stats.n_candidates)) == (len(mined), len(every))


def vectorized(x: Tensor, y: Tensor, mining: str, margin: float, beta: float | None) -> Tensor:
    """The definition for larger batches: a [B, B, B] mask."""
    d = (x[:, None] - x[None]).square().sum(-1)
    same = y[:, None] == y
    positive = same & ~torch.eye(len(y), dtype=torch.bool)
    mask = positive[:, :, None] & ~same[:, None, :]
    ap, an = d[:, :, None].expand_as(mask), d[:, None, :].expand_as(mask)
    if mining != "all":
        mask = mask & (an < ap + margin)
    if mining == "semihard":
        mask = mask & (an > ap)
    ap, an = ap[mask], an[mask]
    if beta is None:
        return (ap - an + margin).clamp(min=0).mean()
    return (1 - beta) * (ap.mean() - an.mean() + margin) + beta * (ap.var(correction=0) + an.var(correction=0))


@pytest.mark.parametrize("mining", ("all", "violating", "semihard"))
@pytest.mark.parametrize("k", (2, 8, 65))
@pytest.mark.parametrize(("dtype", "tolerance"), ((torch.float64, 1e-10), (torch.float32, 1e-5)))
def test_larger_batches(mining: str, k: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)  # of this one no triplet is so near the margin that float32 selects otherwise
    y = torch.arange(195) // k
    centers = torch.randn(int(y.max()) + 1, 48, dtype=torch.float64)
    x = F.normalize(torch.randn(195, 48, dtype=torch.float64) + centers[y]).to(dtype)
    for beta in (0.7, None):
        want_at, got_at = x.clone().double().requires_grad_(), x.clone().requires_grad_()
        want, got = vectorized(want_at, y, mining, 0.5, beta), make(mining, 0.5, beta, "squared_euclidean")(got_at, y)
        want.backward()
        got.backward()
        assert got.dtype == dtype
        assert abs(float(got) - float(want)) <= tolerance * abs(float(want))
        assert relative(got_at.grad, want_at.grad) <= tolerance


@pytest.mark.parametrize("mining", ("violating", "semihard"))
def test_sorting_and_comparing_agree(mining: str) -> None:
    """Past 192 positives an anchor, they are sorted; the twin compares."""
    y = torch.arange(500) % 2
    for x in (torch.randn(500, 6), torch.randint(0, 3, (500, 3)).float()):
        arguments = (x, y, None, None, 0, ops.MININGS[mining], False, 0.5, 0.7, 0, 0, True, 64, 0.0, True, False, False)
        got = ops.triplet_loss(*arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OCCFAST_BACKEND", "reference")
            want = ops.triplet_loss(*arguments)
        torch.testing.assert_close(got[1][18:21], want[1][18:21], rtol=1e-5, atol=0)
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[7], want[7], rtol=1e-3, atol=1e-7)


def test_float32_far_from_the_origin() -> None:
    """Centring: without it these distances would be noise."""
    x = F.normalize(torch.randn(60, 32, dtype=torch.float64))
    y = torch.arange(60) // 4
    far = (x + 30.0).float()
    want = vectorized(far.double(), y, "all", 0.5, 0.7)
    got = BatchTripletLoss(mining="all")(far, y)
    assert abs(float(got) - float(want)) <= 1e-5 * float(want)


# -- semi-hard, one at random --------------------------------------------------------------------------


def test_random_semihard_takes_one_of_each_pair_evenly() -> None:
    x = F.normalize(torch.randn(24, 6, dtype=torch.float64))
    y = torch.arange(24) // 4
    semihard = set(zip(*(t.tolist() for t in TripletMiner(mining="semihard")(x, y)), strict=True))
    pairs = {(a, p) for a, p, _ in semihard}
    loss, miner = BatchTripletLoss(mining="semihard_random", seed=7), TripletMiner(mining="semihard_random", seed=7)
    seen: dict[tuple, int] = {}
    for _ in range(300):
        triplets = miner(x, y)
        chosen = list(zip(*(t.tolist() for t in triplets), strict=True))
        assert set(chosen) <= semihard
        assert sorted((a, p) for a, p, _ in chosen) == sorted(pairs)
        for t in chosen:
            seen[t] = seen.get(t, 0) + 1
        listed = BatchTripletLoss()(x, y, indices_tuple=triplets)
        torch.testing.assert_close(loss(x, y), listed, rtol=1e-10, atol=1e-12)
    for a, p in pairs:
        counts = [seen.get(t, 0) for t in semihard if t[:2] == (a, p)]
        expected = 300 / len(counts)
        # Chi squared with k degrees of freedom: its mean is k, its variance 2k; six standard deviations.
        chi = sum((c - expected) ** 2 / expected for c in counts)
        degrees = len(counts) - 1
        assert chi <= degrees + 6 * math.sqrt(2 * max(degrees, 1)) + 6


def test_random_semihard_repeats_from_its_state() -> None:
    x, y = F.normalize(torch.randn(40, 4)), torch.arange(40) // 4
    loss = BatchTripletLoss(mining="semihard_random")
    first = [float(loss(x, y)) for _ in range(3)]
    assert len(set(first)) == 3
    again = BatchTripletLoss(mining="semihard_random")
    again.load_state_dict({"_extra_state": {"step": 1}})
    assert float(again(x, y)) == first[1]


# -- gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("beta", (0.7, None))
def test_gradcheck(mining: str, distance: str, beta: float | None) -> None:
    torch.manual_seed(0)  # no triplet so near a threshold that a step of gradcheck crosses it
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    r = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y, z = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(*tensors: Tensor) -> Tensor:
        rule = make(mining, 0.5, beta, distance)
        return rule(tensors[0], y) if len(tensors) == 1 else rule(tensors[0], y, None, tensors[1], z)

    assert torch.autograd.gradcheck(loss, (x,))
    assert torch.autograd.gradcheck(loss, (x, r))


def test_second_derivative_is_refused() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    loss = BatchTripletLoss(mining="all")(x, torch.arange(6) // 2)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_scaled_and_repeated_backward() -> None:
    x, y = torch.randn(20, 5, requires_grad=True), torch.arange(20) // 4
    loss = BatchTripletLoss()(x, y)
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (three,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(three, 3 * one)


# -- properties ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from(MININGS), st.sampled_from(DISTANCES))
def test_permutation(seed: int, mining: str, distance: str) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 6, generator=random, dtype=torch.float64)
    y = torch.randint(0, 6, (30,), generator=random)
    order = torch.randperm(30, generator=random)
    rule = make(mining, 0.8, 0.6, distance)
    a, b = x.clone().requires_grad_(), x[order].clone().requires_grad_()
    first, second = rule(a, y), rule(b, y[order])
    first.backward()
    second.backward()
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.grad[order], b.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_same_bits_for_any_threads(mining: str, dtype: torch.dtype) -> None:
    x = F.normalize(torch.randn(301, 77, dtype=dtype))
    y = torch.arange(301) // 5
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        at = x.clone().requires_grad_()
        rule = BatchTripletLoss(mining=mining)
        loss = rule(at, y)
        loss.backward()
        results.append((loss.detach(), at.grad, rule.stats.totals, rule.stats.histogram, rule.stats.nearest))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_threads_are_used() -> None:
    from occfast.native import loader

    native = loader.module("cpu")
    assert native.workers(native.ExecContext(threads=2, stream=None)) == 2


def test_beta_joins_equation_7_and_the_variances() -> None:
    x, y = F.normalize(torch.randn(40, 8, dtype=torch.float64)), torch.arange(40) // 4
    mean, hinge, spread = BatchTripletLoss(beta=0.0), TripletLoss(), BatchTripletLoss(beta=1.0)
    values = [float(rule(x, y)) for rule in (mean, hinge, spread)]
    s = mean.stats
    assert values[0] == pytest.approx(values[1], rel=1e-12)  # every mined triplet violates
    assert values[0] == pytest.approx(float(s.mean_ap - s.mean_an + 0.5), rel=1e-12)
    assert values[2] == pytest.approx(float(s.var_ap + s.var_an), rel=1e-12)
    both = float(BatchTripletLoss(beta=0.3)(x, y))
    assert both == pytest.approx(0.7 * values[0] + 0.3 * values[2], rel=1e-12)


# -- types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_inputs_accumulate_in_float32(dtype: torch.dtype) -> None:
    x, y = F.normalize(torch.randn(64, 32)).to(dtype), torch.arange(64) // 4
    at, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    loss, want = BatchTripletLoss()(at, y), BatchTripletLoss()(wide, y)
    loss.backward()
    want.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, want)
    assert at.grad.dtype == dtype and torch.equal(at.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("backend", ("native", "reference"))
def test_autocast_and_low_matmul_precision_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCCFAST_BACKEND", backend)
    x, y = F.normalize(torch.randn(64, 64)), torch.arange(64) // 4

    def step() -> tuple[Tensor, Tensor]:
        at = x.clone().requires_grad_()
        loss = BatchTripletLoss()(at, y)
        loss.backward()
        return loss.detach(), at.grad

    plain = step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = step()
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        lower = step()
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, inside, lower, strict=True))


@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("own", (True, False))
@pytest.mark.parametrize("linear", (False, True))
def test_opcheck(mining: str, own: bool, linear: bool) -> None:
    x, y = torch.randn(9, 4, requires_grad=True), torch.arange(9) // 3
    refs = (None, None) if own else (torch.randn(7, 4, requires_grad=True), torch.arange(7) // 3)
    options = (0, ops.MININGS[mining], False, 0.5, 0.7, 0, 0)
    for statistics, gradient in ((True, True), (False, True)):
        torch.library.opcheck(ops.triplet_loss, (x, y, *refs, *options, statistics, 8, 0.0, gradient, linear, False))
    held = [t.detach() for t in ops.triplet_loss(x, y, *refs, *options, True, 8, 0.0, True, linear, False)[7:]]
    torch.library.opcheck(
        ops.triplet_loss_backward, (torch.tensor(1.0), *held, x.detach(), None if own else refs[0].detach(), linear)
    )


# -- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_linear_memory_gives_what_quadratic_gives(mining: str, dtype: torch.dtype, monkeypatch) -> None:
    """Tiles of 64 rows, the last of another size; distances and counts to the bit, sums up to their order."""
    monkeypatch.setattr(triplet_passes, "_TILE_BYTES", 1)
    x, y = F.normalize(torch.randn(200, 12, dtype=dtype)), torch.arange(200) % 23
    z, labels = F.normalize(torch.randn(90, 12, dtype=dtype)), torch.arange(90) % 23
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    for distance in ops.DISTANCES:
        for beta in (0.7, None):
            for refs in ((), (z, labels)):
                found = []
                for memory in ("quadratic", "linear"):
                    at, to = x.clone().requires_grad_(), [each.clone().requires_grad_() for each in refs[:1]]
                    rule = make(mining, 0.3, beta, distance, seed=7, memory=memory)
                    loss = rule(at, y, None, *to, *refs[1:])
                    loss.backward()
                    found.append((loss.detach(), rule.stats, at.grad, to[0].grad if to else None))
                (loss, stats, by_x, by_z), (other, others, its_x, its_z) = found
                assert torch.equal(other, loss)
                for name in ("totals", "nearest", "histogram"):
                    assert torch.equal(getattr(others, name), getattr(stats, name))
                assert relative(its_x, by_x) <= exact
                assert (its_z is None and by_z is None) or relative(its_z, by_z) <= exact


def test_linear_memory_without_a_gradient_and_twice_the_derivative() -> None:
    x, y = torch.randn(70, 4), torch.arange(70) // 5
    rule, whole = BatchTripletLoss(memory="linear"), BatchTripletLoss(memory="quadratic")
    assert torch.equal(rule(x, y), whole(x, y)) and torch.equal(rule.stats.histogram, whole.stats.histogram)
    at = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(rule(at, y), at, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_tiles_share_their_memory(monkeypatch) -> None:
    rows, dim = 640, 8
    monkeypatch.setattr(triplet_passes, "_TILE_BYTES", 1)  # ten tiles of 64 rows
    x, y = torch.randn(rows, dim).requires_grad_(), torch.arange(rows) // 4
    with torch.profiler.profile(profile_memory=True) as profile:
        BatchTripletLoss(memory="linear")(x, y).backward()
    sizes = [event.cpu_memory_usage for event in profile.events() if event.name == "aten::empty"]
    assert sizes.count(64 * rows * 4) <= 2  # distances and counts, int32 and float32


def test_memory_is_linear_where_the_pairs_would_take_much(monkeypatch) -> None:
    x, y = torch.randn(70, 4), torch.arange(70) // 5
    heights = []
    mine = triplet_passes.Passes.mine

    def watched(self, values, first, last, *rest, **options):
        heights.append(last - first)
        return mine(self, values, first, last, *rest, **options)

    monkeypatch.setattr(triplet_passes.Passes, "mine", watched)
    monkeypatch.setattr(triplet_passes, "_TILE_BYTES", 1)
    BatchTripletLoss()(x, y)
    monkeypatch.setattr("occfast.losses.triplet._QUADRATIC_BYTES", 70 * 70 * 8)
    BatchTripletLoss()(x, y)
    assert heights == [70, 70]
    BatchTripletLoss()(x.double(), y)
    assert heights[2:] == [64, 6]
    with pytest.raises(ValueError, match="memory: expected one of"):
        BatchTripletLoss(memory="small")


def test_compiles_whole() -> None:
    x, y = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    rule = BatchTripletLoss()

    def step(embeddings: Tensor) -> Tensor:
        return 2 * rule(embeddings, y)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    (want,) = torch.autograd.grad(step(x), x)
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, want)


def test_strided_and_sliced_inputs() -> None:
    x, y = torch.randn(5, 24).T, torch.arange(48)[::2] // 8
    torch.testing.assert_close(BatchTripletLoss()(x, y), BatchTripletLoss()(x.contiguous(), y.contiguous()))


# -- statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
def test_statistics(mining: str, distance: str) -> None:
    x, y = batch("unit")
    loss = make(mining, 0.5, 0.7, distance)
    loss(x, y)
    s = loss.stats
    _, mined, every = definition(x, y, mining, 0.5, 0.7, distance)
    d = np.array([[float(pair_distance(a, b, distance)) for b in x] for a in x])
    ap, an = (np.array([d[t[0], t[k]] for t in mined]) for k in (1, 2))
    for got, want in ((s.mean_ap, ap.mean()), (s.mean_an, an.mean()), (s.var_ap, ap.var()), (s.var_an, an.var())):
        assert float(got) == pytest.approx(want, rel=1e-10, abs=1e-13)
    spread = np.sqrt((ap.var() + an.var()) / 2)
    assert float(s.decidability) == pytest.approx(abs(ap.mean() - an.mean()) / spread, rel=1e-9)
    kinds = {"hard": 0, "semihard": 0, "easy": 0}
    for a, p, n in every:
        kinds["easy" if d[a, n] >= d[a, p] + 0.5 else "semihard" if d[a, n] > d[a, p] else "hard"] += 1
    assert kinds == {name: int(getattr(s, f"n_{name}")) for name in kinds}
    assert float(s.active_fraction) == pytest.approx((kinds["hard"] + kinds["semihard"]) / len(every))
    same = (y[:, None] == y).numpy()
    off = ~np.eye(len(y), dtype=bool)
    for values, mean, var in (
        (d[same & off], s.pair_mean_ap, s.pair_var_ap),
        (d[~same], s.pair_mean_an, s.pair_var_an),
    ):
        assert float(mean) == pytest.approx(values.mean(), rel=1e-10)
        assert float(var) == pytest.approx(values.var(), rel=1e-10)
    for i in range(len(y)):
        assert float(s.nearest_positive[i]) == pytest.approx(d[i][same[i] & off[i]].min(), rel=1e-10)
        assert float(s.nearest_negative[i]) == pytest.approx(d[i][~same[i]].min(), rel=1e-10)
    edges = s.histogram_edges.numpy()
    once = np.triu(np.ones_like(same), 1)
    for got, mask in ((s.histogram_positive, same), (s.histogram_negative, ~same)):
        want = np.histogram(d[mask & once], edges)[0]
        assert got.tolist() == want.tolist()
    assert float(s.norm) == pytest.approx(1.0)
    assert float(s.spread) == pytest.approx(float((x - x.mean(0)).square().sum(1).mean().sqrt()))
    assert not bool(s.collapsed)
    assert s.as_dict()["n_triplets"] == len(mined)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("bins", (1, 50, 64, 65, 1000))
@pytest.mark.parametrize("each", (2, 8, 9, 20, 210))
def test_counts_and_histograms_of_larger_batches(each: int, bins: int, dtype: torch.dtype) -> None:
    """Batches beyond one block of columns, with fewer and more positives than the kernel compares at a time."""
    y = torch.cat([torch.arange(3).repeat_interleave(each), torch.tensor([7, 8, 8])])
    y = y[torch.randperm(len(y))]
    x = torch.randint(0, 4, (len(y), 6)).to(dtype)  # exact distances, many ties
    loss = BatchTripletLoss(margin=3.0, mining="all", bins=bins)
    loss(x, y)
    s = loss.stats
    d = (x[:, None] - x).square().sum(-1)
    same = y[:, None] == y
    violating = hard = 0
    for a in range(len(y)):
        negatives = d[a][~same[a]]
        for near in d[a][same[a] & (torch.arange(len(y)) != a)]:
            violating += int((negatives < near + 3).sum())
            hard += int((negatives <= near).sum())
    assert (int(s.n_violating), int(s.n_hard)) == (violating, hard)
    once = torch.ones_like(same).triu(1)
    scale = torch.tensor(bins / float(s.histogram_top), dtype=dtype)  # a bin is decided in the type of the distances
    for got, mask in ((s.histogram_positive, same & once), (s.histogram_negative, ~same & once)):
        want = torch.bincount((d[mask] * scale).long().clamp(max=bins - 1), minlength=bins)
        assert got.tolist() == want.tolist()
    negative = d[~same].double()
    assert float(s.pair_mean_an) == pytest.approx(float(negative.mean()), rel=1e-6)
    assert float(s.pair_var_an) == pytest.approx(float(negative.var(correction=0)), rel=1e-6)
    torch.testing.assert_close(s.nearest_negative, d.masked_fill(same, float("inf")).amin(1))


def test_statistics_do_not_change_the_loss() -> None:
    x, y = F.normalize(torch.randn(50, 8)), torch.arange(50) // 5
    for mining in ops.MININGS:
        full, lean = BatchTripletLoss(mining=mining), BatchTripletLoss(mining=mining, statistics=False)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        first, second = full(a, y), lean(b, y)
        first.backward()
        second.backward()
        assert torch.equal(first, second) and torch.equal(a.grad, b.grad)
        assert int(full.stats.n_triplets) == int(lean.stats.n_triplets)
        with pytest.raises(ValueError, match="statistics: expected True"):
            _ = lean.stats.n_candidates


def test_collapse_alarm() -> None:
    y = torch.arange(16) // 4
    noise = torch.randn(16, 8)
    for x, expected in ((1 + 1e-4 * noise, True), (1e-3 * noise, True), (noise, False)):
        loss = BatchTripletLoss()
        loss(x, y)
        assert bool(loss.stats.collapsed) is expected


def test_stable_variances_on_a_large_offset() -> None:
    """Squared distances near 1e8 with a spread near 1: E[x²] - E[x]² would lose everything in float32."""
    x = torch.eye(30, dtype=torch.float64) * 7000 + 1e-4 * torch.randn(30, 30, dtype=torch.float64)
    y = torch.arange(30) // 3
    loss = BatchTripletLoss(mining="all")
    loss(x, y)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    negative = d[y[:, None] != y]
    assert float(loss.stats.pair_var_an) == pytest.approx(float(negative.var(correction=0)), rel=1e-7)


def test_plot(tmp_path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    loss = BatchTripletLoss()
    loss(F.normalize(torch.randn(40, 8)), torch.arange(40) // 4)
    before = loss.stats
    loss(F.normalize(torch.eye(10)[torch.arange(40) // 4] + 0.1 * torch.randn(40, 10)), torch.arange(40) // 4)
    figure = plot_score_distributions({"before": before, "after": loss.stats})
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == ["before", "after"]
    drawn = figure.axes[1].patches[0].get_data().values
    assert drawn.sum() == pytest.approx(1.0)
    figure.savefig(tmp_path / "scores.png")
    with pytest.raises(ValueError, match="stats: expected at least one"):
        plot_score_distributions({})


# -- pytorch-metric-learning ---------------------------------------------------------------------------


@pytest.mark.peers
@pytest.mark.parametrize("power", (1, 2))
def test_agrees_with_pytorch_metric_learning(power: int) -> None:
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning import losses, miners, reducers

    x, y = F.normalize(torch.randn(48, 16, dtype=torch.float64)), torch.arange(48) // 4
    metric = distances.LpDistance(normalize_embeddings=False, power=power)
    distance = "euclidean" if power == 1 else "squared_euclidean"
    mean = losses.TripletMarginLoss(margin=0.3, distance=metric, reducer=reducers.MeanReducer())
    nonzero = losses.TripletMarginLoss(margin=0.3, distance=metric)
    semihard = miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard", distance=metric)
    hardest = miners.BatchHardMiner(distance=metric)
    for mining, peer in (
        ("all", lambda at: mean(at, y)),
        ("violating", lambda at: nonzero(at, y)),
        ("semihard", lambda at: mean(at, y, semihard(at, y))),
        ("hardest", lambda at: mean(at, y, hardest(at, y))),
    ):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = TripletLoss(0.3, mining=mining, distance=distance)(a, y), peer(b)
        got.backward()
        want.backward()
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)
    # Its miners feed this loss, and this miner feeds its losses.
    listed = TripletLoss(0.3, distance=distance)(x, y, indices_tuple=hardest(x, y))
    torch.testing.assert_close(listed, TripletLoss(0.3, mining="hardest", distance=distance)(x, y), rtol=1e-9, atol=0)
    mine = TripletMiner(0.3, mining="semihard", distance=distance)(x, y)
    theirs = semihard(x, y)
    assert sorted(zip(*map(Tensor.tolist, mine), strict=True)) == sorted(zip(*map(Tensor.tolist, theirs), strict=True))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", MININGS)
def test_listed_triplets_are_the_mined_ones(mining: str, distance: str) -> None:
    x, y = batch("unit")
    for beta in (0.7, None):
        rule = make(mining, 0.5, beta, distance)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        want = rule(a, y)
        triplets = TripletMiner(0.5, mining=mining, distance=distance)(x, y)
        assert len(triplets[0]) == int(rule.stats.n_triplets)
        got = rule(b, indices_tuple=triplets)
        assert rule.stats is None
        want.backward()
        got.backward()
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12)


def test_pairs_as_indices() -> None:
    x, y = batch("unit")
    a, p, n = TripletMiner(mining="all")(x, y)
    pairs, negatives = torch.unique(torch.stack((a, p), 1), dim=0), torch.unique(torch.stack((a, n), 1), dim=0)
    rule = BatchTripletLoss(mining="all")
    got = rule(x, y, (pairs[:, 0], pairs[:, 1], negatives[:, 0], negatives[:, 1]))
    torch.testing.assert_close(got, rule(x, y), rtol=1e-10, atol=0)


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -0.1}, r"margin: expected a number in \[0, 1.7e\+38\], got -0.1"),
        ({"margin": 1e308}, r"margin: expected a number in \[0, 1.7e\+38\], got 1e\+308"),
        ({"margin": math.nan}, "margin"),
        ({"beta": 1.5}, r"beta: expected a number in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, "beta"),
        ({"mining": "hard"}, "mining: expected one of .*'hardest', got 'hard'"),
        ({"distance": "l1"}, "distance: expected one of"),
        ({"seed": -1}, "seed"),
        ({"bins": 0}, "bins"),
        ({"bins": 5000}, "bins"),
        ({"histogram_range": 0.0}, "histogram_range"),
        ({"histogram_range": 1e308}, "histogram_range"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchTripletLoss(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": "a"}, "margin: expected a number, got 'a'"),
        ({"margin": True}, "margin"),
        ({"beta": None}, "beta: expected a number, got None"),
        ({"mining": 3}, "mining: expected one of .*, got 3"),
        ({"distance": None}, "distance"),
        ({"seed": 1.5}, "seed: expected an int, got 1.5"),
        ({"bins": 8.0}, "bins: expected an int, got 8.0"),
        ({"histogram_range": "4"}, "histogram_range: expected a number, got '4'"),
        ({"distributed": 1}, "distributed: expected True or False, got 1"),
        ({"statistics": "no"}, "statistics"),
        ({"check_finite": None}, "check_finite"),
    ],
)
def test_options_of_a_wrong_type(options: dict, message: str) -> None:
    for kind in (BatchTripletLoss, TripletLoss, TripletMiner):
        known = {k: v for k, v in options.items() if k in inspect.signature(kind).parameters}
        if known:
            with pytest.raises(TypeError, match=message):
                kind(**known)


def test_bad_batches() -> None:
    rule, x, y = BatchTripletLoss(), torch.randn(6, 3), torch.arange(6) // 2
    for arguments, kind, message in (
        ((x[0], y), ValueError, r"embeddings: expected shape \[B, D\], got \[3\]"),
        ((x.long(), y), TypeError, "embeddings: expected a floating-point tensor"),
        (([[1.0]], y), TypeError, "embeddings: expected a tensor, got list"),
        ((x, y[:5]), ValueError, r"labels: expected shape \[6\], got \[5\]"),
        ((x, y.float()), TypeError, "labels: expected an integer tensor, got torch.float32"),
        ((x,), TypeError, "labels: expected a tensor, got NoneType"),
        ((x, y.to("meta")), ValueError, "labels: expected a tensor on cpu, got meta"),
        ((x, y, None, x), ValueError, "ref_labels: expected a tensor"),
        ((x, y, None, x[:, :2].clone(), y), ValueError, "ref_emb: expected 3 columns, got 2"),
        ((x, y, None, x.double(), y), TypeError, "ref_emb: expected the dtype"),
        ((x, y, (y, y)), ValueError, "indices_tuple: expected 3 or 4 tensors, got 2"),
        ((x, y, ([0], [1], [2])), TypeError, "indices_tuple: expected a tuple of tensors"),
        ((x, y, (y.float(), y, y)), TypeError, "indices_tuple: expected integer tensors, got torch.float32"),
        ((x, y, (y, y, y[:1])), ValueError, r"indices_tuple: .* got shapes \[\[6\], \[6\], \[1\]\]"),
        ((x, y, (y, y, y, y[:1])), ValueError, "indices_tuple: expected tensors of shape"),
        ((x, y, (y[:, None],) * 3), ValueError, "indices_tuple: expected tensors of shape"),
        ((x, y, (y, y, y + 4)), ValueError, r"indices_tuple: expected indices in \[0, 6\), got \[4, 6\]"),
        ((x, y, (y, y - 1, y)), ValueError, r"indices_tuple: expected indices in \[0, 6\), got \[-1, 1\]"),
        ((x[:, :0], y), ValueError, r"embeddings: expected at least one column, got shape \[6, 0\]"),
        ((x[:0], y[:0]), ValueError, r"embeddings: expected at least one row, got shape \[0, 3\]"),
        ((x, y, None, x[:0], y[:0]), ValueError, "ref_emb: expected at least one row"),
    ):
        with pytest.raises(kind, match=message):
            rule(*arguments)
    with pytest.raises(ValueError, match="distributed: expected an initialized"):
        BatchTripletLoss(distributed=True)(x, y)
    with pytest.raises(ValueError, match="candidate triplets"):
        TripletMiner(max_candidates=3)(x, y)
    with pytest.raises(ValueError, match="embeddings: expected at least one row"):
        TripletMiner()(x[:0], y[:0])


@pytest.mark.parametrize("value", (math.nan, math.inf))
@pytest.mark.parametrize("mining", ops.MININGS)
@pytest.mark.parametrize("backend", ("native", "reference"))
def test_embeddings_that_are_not_finite(value: float, mining: str, backend: str, monkeypatch) -> None:
    monkeypatch.setenv("OCCFAST_BACKEND", backend)
    x, y = torch.randn(400, 3), torch.arange(400) % 2  # many positives, so that they are sorted
    x[3, 1] = value
    assert BatchTripletLoss(mining=mining)(x, y).isnan()
    with pytest.raises(ValueError, match=r"embeddings: expected finite numbers, got NaN or infinity in rows \[3\]"):
        BatchTripletLoss(mining=mining, check_finite=True)(x, y)


@pytest.mark.parametrize("kind", (BatchTripletLoss, TripletLoss))
def test_a_loss_that_overflows_is_found_if_asked(kind: type) -> None:
    x, y = torch.tensor([[0.0], [1e30], [2e30], [5e30]]), torch.tensor([0, 0, 1, 1])
    listed = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    for arguments in ((x, y), (x, y, listed)):
        with pytest.raises(ValueError, match="embeddings: expected distances for which the loss is finite, got"):
            kind(mining="all", check_finite=True)(*arguments)


@pytest.mark.parametrize("kind", (BatchTripletLoss, TripletLoss))
@pytest.mark.parametrize("memory", ("quadratic", "linear"))
def test_the_largest_margin_gives_a_finite_loss(kind: type, memory: str) -> None:
    x = torch.randn(6, 3).requires_grad_()
    loss = kind(margin=1.7e38, memory=memory)(x, torch.arange(6) // 2)
    loss.backward()
    assert bool(loss.isfinite()) and bool(x.grad.isfinite().all())


def test_smaller_integer_labels() -> None:
    x, y = torch.randn(6, 3), torch.arange(6) // 2
    assert torch.equal(BatchTripletLoss()(x, y), BatchTripletLoss()(x, y.to(torch.int32)))


def test_public_names() -> None:
    for name in set(occfast.losses.__all__) - {"ClassifierLoss", "Distance", "Memory", "Mining", "for_metric_learning"}:
        assert getattr(occfast, name) is getattr(occfast.losses, name)


def test_only_torch_and_numpy_are_imported() -> None:
    script = """
import sys
for name in ("matplotlib", "scipy", "sklearn", "skimage", "PIL", "omegaconf", "safetensors", "rich", "typer", "jinja2"):
    sys.modules[name] = None
import torch
from occfast import MissingPackage
from occfast.losses import BatchTripletLoss, LargeMarginCosine, TripletMiner
x, y = torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2
loss = BatchTripletLoss()
loss(x, y).backward()
LargeMarginCosine(4, 4)(x, y).sum().backward()
TripletMiner()(x, y)
try:
    loss.stats.plot()
except MissingPackage as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "plots need the package matplotlib: pip install matplotlib\n"


# -- autograd ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", (True, False))
def test_saved_tensors_are_read_once(own: bool) -> None:
    x, y = batch("unit")
    refs = () if own else (None, x.flip(0).clone(), y.flip(0))
    plain = x.clone().requires_grad_()
    BatchTripletLoss()(plain, y, *refs).backward()

    unpacked = []

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        unpacked.append(packed[0])
        return packed[1]

    at, packed = x.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(0), (len(packed), t))[1], unpack):
        loss = BatchTripletLoss()(at, y, *refs)
    loss.backward()
    assert packed and len(unpacked) == len(set(unpacked)) == len(packed)
    for saving in (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    ):
        again = x.clone().requires_grad_()
        with saving:
            loss = BatchTripletLoss()(again, y, *refs)
        loss.backward()
        assert torch.equal(again.grad, plain.grad)


@pytest.mark.parametrize("memory", ("quadratic", "linear"))
def test_transforms_of_torch_func_are_refused(memory: str) -> None:
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.vmap):
        with pytest.raises(NotImplementedError, match=r"the triplet losses work in no transform of torch.func"):
            transform(lambda a: BatchTripletLoss(memory=memory)(a, y))(x[None] if transform is torch.func.vmap else x)


@pytest.mark.parametrize("reentrant", (False, True))
def test_activation_checkpointing(reentrant: bool) -> None:
    x, y = batch("unit")
    plain, at = (x.clone().requires_grad_() for _ in range(2))
    rule = BatchTripletLoss()
    want = rule(2 * plain, y)
    want.backward()
    got = torch.utils.checkpoint.checkpoint(lambda a: rule(2 * a, y), at, use_reentrant=reentrant)
    got.backward()
    assert torch.equal(got, want) and torch.equal(at.grad, plain.grad)
    # A second draw would be another loss than the one that was returned.
    drawn = BatchTripletLoss(mining="semihard_random")
    with pytest.raises(RuntimeError, match="mining: 'semihard_random' draws anew at each call"):
        torch.utils.checkpoint.checkpoint(lambda a: drawn(2 * a, y), at, use_reentrant=reentrant).backward()


def test_forward_mode_is_refused() -> None:
    x, y = batch("unit")
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        for arguments in ((dual, y), (x, y, None, dual, y)):
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                BatchTripletLoss()(*arguments)
        assert BatchTripletLoss()(x, y) > 0
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda a: TripletLoss()(a, y), (x,), (torch.ones_like(x),))
