"""Ops of the triplet losses: loss with statistics, and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..enums import SLOTS, Distance, Mining, Slot
from .common import OUTPUT_DTYPES, expect, expect_device, expect_dtype, expect_shape, library, module_for, register
from .triplet_passes import Batch, Passes, gradients, gradients_by_tiles

#: Distances and mining strategies by the names of the losses.
DISTANCES = {distance.name.lower(): distance for distance in Distance}
MININGS = {mining.name.lower(): mining for mining in Mining}
MAX_BINS = 1024


def _check_triplets(embeddings: Tensor, labels: Tensor, names: tuple[str, str]) -> None:
    expect(embeddings.dim() == 2, names[0], "shape [B, D]", embeddings.shape)
    expect_dtype(embeddings, names[0], *OUTPUT_DTYPES)
    expect_dtype(labels, names[1], torch.int64)
    expect_shape(labels, names[1], (embeddings.shape[0],))
    expect(embeddings.shape[0] < 2**31, names[0], "fewer than 2**31 rows", embeddings.shape[0])


def _triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor | None,
    reference_labels: Tensor | None,
    distance: int,
    mining: int,
    hinge: bool,
    margin: float,
    beta: float,
    seed: int,
    step: int,
    statistics: bool,
    bins: int,
    top: float,
    gradient: bool,
    linear: bool,
    leading: bool,
) -> tuple[Tensor, ...]:
    device, square = embeddings.device, references is None
    _check_triplets(embeddings, labels, ("embeddings", "labels"))
    expect(
        square == (reference_labels is None),
        "reference_labels",
        "labels with references, none without",
        None if reference_labels is None else reference_labels.shape,
    )
    if references is not None and reference_labels is not None:
        _check_triplets(references, reference_labels, ("references", "reference_labels"))
        expect_dtype(references, "references", embeddings.dtype)
        expect(
            references.shape[1] == embeddings.shape[1], "references", f"{embeddings.shape[1]} columns", references.shape
        )
    expect_device(device, labels=labels, references=references, reference_labels=reference_labels)
    expect(distance in DISTANCES.values(), "distance", f"one of {sorted(map(int, DISTANCES.values()))}", distance)
    expect(mining in MININGS.values(), "mining", f"one of {sorted(map(int, MININGS.values()))}", mining)
    expect(0 <= margin < float("inf"), "margin", "a finite number, not negative", margin)
    expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    expect(0 <= step < 2**32, "step", "a number in [0, 2**32)", step)
    expect(1 <= bins <= MAX_BINS, "bins", f"a number in [1, {MAX_BINS}]", bins)
    expect(top >= 0, "top", "a distance, or 0 for a bound on those of the batch", top)

    expect(
        not leading or (references is not None and len(references) >= len(embeddings)),
        "leading",
        f"references that begin with the {len(embeddings)} embeddings",
        None if references is None else len(references),
    )
    batch = Batch.of(embeddings, labels, references, reference_labels, leading, distance, top)
    a, b, rows = batch.a, batch.b, len(batch.a)

    def nothing() -> Tensor:
        return a.new_empty((0, 0))  # a new one each time: outputs of an op share no memory

    native = module_for(a.device)
    by_a, by_b = nothing(), nothing()
    kept = nothing(), a.new_empty(0), a.new_empty(0)
    if native is None:
        values = batch.products
        values = reference.triplet_distances(values, a, b, batch.a_squares, batch.b_squares, batch.own, distance)
        counts, totals, nearest, histogram = reference.mine_triplets(
            values,
            batch.own,
            batch.members,
            batch.start,
            batch.stop,
            mining,
            hinge,
            statistics,
            margin,
            beta,
            seed,
            step,
            batch.edge,
            bins,
        )
        if gradient:
            kept = reference.triplet_weights(
                values, counts, totals, batch.a_squares, batch.b_squares, square, distance, hinge, beta
            )
    else:
        passes = Passes(
            native,
            batch,
            statistics,
            bins,
            distance=distance,
            mining=mining,
            hinge=hinge,
            margin=margin,
            beta=beta,
            seed=seed,
            step=step,
        )
        if not linear:
            values = batch.products
            counts = passes.mine(values, 0, rows)
            passes.add_up()
            if gradient:
                kept = values, *passes.weights(values, counts, 0, rows, square)
        else:
            by_a, by_b = gradients_by_tiles(passes, batch, gradient)
        totals, nearest, histogram = passes.totals, passes.nearest, passes.histogram
    # An embedding that is not finite is never selected, but must make the loss NaN.
    poison = (batch.a_squares.sum() + batch.b_squares.sum()) * 0
    loss = totals[Slot.LOSS].to(a.dtype) + poison
    rest = *kept, a, nothing() if square else b
    if linear:
        if native is None and gradient:
            by_a, by_b = gradients(*rest, square)
        rest = by_a, by_b, a.new_empty(0), nothing(), nothing()
    return loss, totals, nearest, histogram, batch.edge, batch.lengths, batch.a_squares, *rest


def _fake_triplet_loss(
    embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    statistics, bins, _, gradient, linear, _ = rest[-6:]
    (rows, dim), own = embeddings.shape, references is None
    columns = rows if references is None else references.shape[0]
    new, kept = embeddings.new_empty, int(gradient)
    sums = 0 if own else kept
    if linear:
        by_a, by_b = (rows * kept, dim * kept), (columns * sums, dim * sums)
        tensors = new(by_a), new(by_b), new(0), new((0, 0)), new((0, 0))
    else:
        matrix, b = (rows * kept, columns * kept), (0, 0) if own else (columns, dim)
        tensors = new(matrix), new(rows * sums), new(columns * sums), new((rows, dim)), new(b)
    return (
        new(()),
        new(SLOTS, dtype=torch.float64),
        new((2, rows if statistics else 0)),
        new((2, bins if statistics else 0), dtype=torch.int64),
        new(1, dtype=torch.float64),
        new(rows, dtype=torch.float64),
        new(rows),
        *tensors,
    )


def _triplet_loss_backward(
    grad: Tensor,
    matrix: Tensor,
    row_sums: Tensor,
    column_sums: Tensor,
    a: Tensor,
    b: Tensor,
    embeddings: Tensor,
    references: Tensor | None,
    linear: bool,
) -> tuple[Tensor, Tensor]:
    if linear:
        expect_shape(matrix, "matrix", tuple(embeddings.shape))
        return matrix * grad, row_sums * grad
    expect_shape(matrix, "matrix", (a.shape[0], a.shape[0] if references is None else b.shape[0]))
    by_a, by_b = gradients(matrix, row_sums, column_sums, a, b, references is None)
    return by_a.mul_(grad), by_b.mul_(grad)


def _fake_triplet_loss_backward(
    grad: Tensor, matrix: Tensor, row_sums: Tensor, column_sums: Tensor, a: Tensor, b: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, linear = rest
    by_a, by_b = (matrix, row_sums) if linear else (a, b)
    return torch.empty_like(by_a), torch.empty_like(by_b)


def _save_triplets(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, ctx.gradient, ctx.linear, _ = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if ctx.gradient:
        ctx.save_for_backward(*output[7:], inputs[0], inputs[2])


def _triplet_gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing: tuple[None, ...] = (None,) * 13
    if grad is None:
        return None, None, None, None, *nothing
    if not ctx.gradient:
        raise RuntimeError("triplet_loss: called with gradient=False, so it kept nothing to differentiate")
    saved = ctx.saved_tensors  # read once: each access unpacks, and activation checkpointing unpacks a tensor once
    by_a, by_b = triplet_loss_backward(grad, *saved, ctx.linear)
    return by_a, None, None if saved[-1] is None else by_b, None, *nothing


def _no_second_derivative(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError("the triplet losses have no second derivative: call backward without create_graph=True")


#: ``(embeddings [B,D] float32 or float64, labels int64 [B], references [M,D], reference_labels [M], ...)``, with a
#: :class:`Distance` and a :class:`Mining` -> loss, totals float64 [22] (:class:`Slot`), nearest [2,B], histogram int64
#: [2,bins], its upper edge float64 [1], the squared lengths of the embeddings float64 [B] and of the embeddings minus
#: their mean [B], and five tensors that the backward needs: the matrix of weights, its row and column sums, and the
#: centered rows; with ``linear`` both gradients, and no matrix is ever whole. ``gradient=False`` leaves them out.
#: ``leading``: the first B references are the embeddings, and no embedding is its own positive.
triplet_loss = register(
    "triplet_loss(Tensor embeddings, Tensor labels, Tensor? references, Tensor? reference_labels, int distance, "
    "int mining, bool hinge, float margin, float beta, int seed, int step, bool statistics, int bins, float top, "
    "bool gradient, bool linear, bool leading) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _triplet_loss,
    _fake_triplet_loss,
)

#: The gradients with respect to the embeddings and the references (empty without references). ``embeddings`` is
#: passed only to record whether it requires a gradient, so that a second derivative raises an error.
triplet_loss_backward = register(
    "triplet_loss_backward(Tensor grad, Tensor matrix, Tensor row_sums, Tensor column_sums, Tensor a, Tensor b, "
    "Tensor embeddings, Tensor? references, bool linear) -> (Tensor, Tensor)",
    _triplet_loss_backward,
    _fake_triplet_loss_backward,
)
torch.library.register_autograd("occfast::triplet_loss", _triplet_gradient, setup_context=_save_triplets, lib=library)
torch.library.register_autograd("occfast::triplet_loss_backward", _no_second_derivative, lib=library)
