"""The triplet losses with their statistics, and their gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .common import (
    OUTPUT_DTYPES,
    call,
    expect,
    expect_device,
    expect_dtype,
    expect_shape,
    library,
    module_for,
    register,
)

DISTANCES = {"squared_euclidean": 0, "euclidean": 1, "cosine": 2}
MININGS = {"all": 0, "violating": 1, "semihard": 2, "semihard_random": 3, "hardest": 4}
MAX_BINS = 1024


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in the tensors' own type: neither autocast nor TF32 or bfloat16 inside."""
    backends: Any = torch.backends
    held = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    before = held.fp32_precision
    held.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        held.fp32_precision = before


def _multiply(a: Tensor, b: Tensor, symmetric: bool = False) -> Tensor:
    """``a @ b``; on a CPU every sum has one order, whatever the number of threads."""
    native = module_for(a.device)
    if native is None or a.device.type == "cuda":
        with _full_precision(a.device):
            return a @ b
    out = a.new_empty((a.shape[0], b.shape[1]))
    call(
        native.multiply,
        a.device,
        a.data_ptr(),
        *a.stride(),
        b.data_ptr(),
        *b.stride(),
        OUTPUT_DTYPES[a.dtype],
        a.shape[0],
        b.shape[1],
        a.shape[1],
        symmetric,
        out.data_ptr(),
    )
    return out


def _center_rows(rows: Tensor, mean: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = module_for(rows.device)
    if native is None:
        return reference.center_rows(rows, mean, unit)
    n, dim = rows.shape
    given = mean is not None
    mean = rows.new_empty(dim, dtype=torch.float64) if mean is None else mean
    centered, squares = torch.empty_like(rows), rows.new_empty(n)
    lengths = rows.new_empty(n, dtype=torch.float64)
    call(
        native.center_rows,
        rows.device,
        rows.data_ptr(),
        OUTPUT_DTYPES[rows.dtype],
        n,
        dim,
        given,
        unit,
        mean.data_ptr(),
        centered.data_ptr(),
        squares.data_ptr(),
        lengths.data_ptr(),
    )
    return mean, centered, squares, lengths


def _check_triplets(embeddings: Tensor, labels: Tensor, names: tuple[str, str]) -> None:
    expect(embeddings.dim() == 2, names[0], "shape [B, D]", list(embeddings.shape))
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
) -> tuple[Tensor, ...]:
    device, own = embeddings.device, references is None
    _check_triplets(embeddings, labels, ("embeddings", "labels"))
    expect(
        own == (reference_labels is None),
        "reference_labels",
        "labels with references, none without",
        None if reference_labels is None else list(reference_labels.shape),
    )
    if references is not None and reference_labels is not None:
        _check_triplets(references, reference_labels, ("references", "reference_labels"))
        expect_dtype(references, "references", embeddings.dtype)
        expect(
            references.shape[1] == embeddings.shape[1],
            "references",
            f"{embeddings.shape[1]} columns",
            list(references.shape),
        )
    expect_device(device, labels=labels, references=references, reference_labels=reference_labels)
    expect(distance in DISTANCES.values(), "distance", f"one of {sorted(DISTANCES.values())}", distance)
    expect(mining in MININGS.values(), "mining", f"one of {sorted(MININGS.values())}", mining)
    expect(0 <= margin < float("inf"), "margin", "a finite number, not negative", margin)
    expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    expect(0 <= step < 2**32, "step", "a number in [0, 2**32)", step)
    expect(1 <= bins <= MAX_BINS, "bins", f"a number in [1, {MAX_BINS}]", bins)
    expect(top >= 0, "top", "a distance, or 0 for a bound on those of the batch", top)

    a, a_labels = embeddings.contiguous(), labels.contiguous()
    unit = distance == DISTANCES["cosine"]
    mean, a, a_squares, lengths = _center_rows(a, None, unit)
    b, b_labels, b_squares, b_lengths = a, a_labels, a_squares, lengths
    if references is not None and reference_labels is not None:
        b_labels = reference_labels.contiguous()
        _, b, b_squares, b_lengths = _center_rows(references.contiguous(), mean, unit)
    rows, columns = a.shape[0], b.shape[0]
    values = _multiply(a, b.T, symmetric=own)
    ordered, members = b_labels.sort(stable=True)
    start, stop = torch.searchsorted(ordered, a_labels), torch.searchsorted(ordered, a_labels, right=True)
    edge = _histogram_edge(lengths, b_lengths, distance, top)

    native = module_for(device)
    choices = (int(own), distance, mining, int(hinge), int(statistics))
    sizes = (rows, columns, a.shape[1])
    if native is None:
        values = reference.triplet_distances(values, a, b, a_squares, b_squares, own, distance)
        counts, totals, nearest, histogram = reference.mine_triplets(
            values, own, members, start, stop, mining, hinge, statistics, margin, beta, seed, step, edge, bins
        )
    else:
        slots, pieces = native.triplet_sizes
        counts = torch.empty((rows, columns), dtype=torch.int32, device=device)
        work = torch.empty((rows + pieces, slots), dtype=torch.float64, device=device)
        totals = torch.empty(slots, dtype=torch.float64, device=device)
        nearest = a.new_empty((2, rows if statistics else 0))
        histogram = torch.zeros((2, bins if statistics else 0), dtype=torch.int64, device=device)
        call(
            native.mine_triplets,
            device,
            values.data_ptr(),
            OUTPUT_DTYPES[a.dtype],
            a.data_ptr(),
            b.data_ptr(),
            a_squares.data_ptr(),
            b_squares.data_ptr(),
            sizes,
            choices,
            members.data_ptr(),
            start.data_ptr(),
            stop.data_ptr(),
            margin,
            beta,
            seed,
            step,
            edge.data_ptr(),
            bins,
            counts.data_ptr(),
            work[pieces:].data_ptr(),
            work.data_ptr(),
            totals.data_ptr(),
            nearest.data_ptr(),
            histogram.data_ptr(),
        )
    # An embedding that is not finite makes everything NaN, though it is never selected.
    poison = (a_squares.sum() + b_squares.sum()) * 0
    loss = totals[reference.LOSS].to(a.dtype) + poison
    matrix, row_sums, column_sums = a.new_empty((0, 0)), a.new_empty(0), a.new_empty(0)
    if gradient:
        if native is None:
            matrix, row_sums, column_sums = reference.triplet_weights(
                values, counts, totals, a_squares, b_squares, own, distance, hinge, beta
            )
        else:
            if not own:
                row_sums, column_sums = a.new_empty(rows), a.new_empty(columns)
            call(
                native.triplet_weights,
                device,
                values.data_ptr(),
                OUTPUT_DTYPES[a.dtype],
                counts.data_ptr(),
                totals.data_ptr(),
                a_squares.data_ptr(),
                b_squares.data_ptr(),
                sizes,
                choices,
                margin,
                beta,
                row_sums.data_ptr(),
                column_sums.data_ptr(),
            )
            matrix = values
    return (
        loss,
        totals,
        nearest,
        histogram,
        edge,
        lengths,
        a_squares,
        matrix,
        row_sums,
        column_sums,
        a,
        a.new_empty((0, 0)) if own else b,
    )


def _histogram_edge(a: Tensor, b: Tensor, distance: int, top: float) -> Tensor:
    """The largest value of the histogram's axis: as given, or a bound that the lengths set."""
    if top > 0 or distance == DISTANCES["cosine"] or not a.numel() or not b.numel():
        return torch.full((1,), top or 2.0, dtype=torch.float64, device=a.device)
    reach = a.max().sqrt() + b.max().sqrt()
    return (reach if distance == DISTANCES["euclidean"] else reach.square()).reshape(1)


def _fake_triplet_loss(
    embeddings: Tensor, labels: Tensor, references: Tensor | None, reference_labels: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    statistics, bins, _, gradient = rest[-4:]
    rows, dim = embeddings.shape
    columns = rows if references is None else references.shape[0]
    new, kept = embeddings.new_empty, int(gradient)
    double, long = torch.float64, torch.int64
    sums = 0 if references is None else kept
    return (
        new(()),
        new(reference.SLOTS, dtype=double),
        new((2, rows if statistics else 0)),
        new((2, bins if statistics else 0), dtype=long),
        new(1, dtype=double),
        new(rows, dtype=double),
        new(rows),
        new((rows * kept, columns * kept)),
        new(rows * sums),
        new(columns * sums),
        new((rows, dim)),
        new((0, 0) if references is None else (columns, dim)),
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
) -> tuple[Tensor, Tensor]:
    own = references is None
    expect_shape(matrix, "matrix", (a.shape[0], a.shape[0] if own else b.shape[0]))
    a = a.contiguous()
    if own:
        return _multiply(matrix, a).mul_(grad), a.new_empty((0, 0))
    b = b.contiguous()
    by_a = _multiply(matrix, b).addcmul_(row_sums[:, None], a)
    by_b = _multiply(matrix.T, a).addcmul_(column_sums[:, None], b)
    return by_a.mul_(grad), by_b.mul_(grad)


def _fake_triplet_loss_backward(
    grad: Tensor, matrix: Tensor, row_sums: Tensor, column_sums: Tensor, a: Tensor, b: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b)


def _save_triplets(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.gradient = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    if ctx.gradient:
        ctx.save_for_backward(*output[7:], inputs[0], inputs[2])


def _triplet_gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing: tuple[None, ...] = (None,) * 11
    if grad is None:
        return None, None, None, None, *nothing
    if not ctx.gradient:
        raise RuntimeError("triplet_loss: called with gradient=False, so it kept nothing to differentiate")
    saved = ctx.saved_tensors  # read once: each access unpacks, and activation checkpointing unpacks a tensor once
    by_a, by_b = triplet_loss_backward(grad, *saved)
    return by_a, None, None if saved[-1] is None else by_b, None, *nothing


def _no_second_derivative(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError("the triplet losses have no second derivative: call backward without create_graph=True")


#: ``(embeddings [B,D] float32 or float64, labels int64 [B], references [M,D], reference_labels [M])``, with the choices
#: of :data:`DISTANCES` and :data:`MININGS` -> loss, totals float64 [22] (slots of ``csrc/core/mining.h``), nearest
#: [2,B], histogram int64 [2,bins], its upper edge float64 [1], squared lengths float64 [B] of the embeddings and [B]
#: less their mean, and what the backward needs.  ``gradient=False`` saves making that.
triplet_loss = register(
    "triplet_loss(Tensor embeddings, Tensor labels, Tensor? references, Tensor? reference_labels, int distance, "
    "int mining, bool hinge, float margin, float beta, int seed, int step, bool statistics, int bins, float top, "
    "bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor)",
    _triplet_loss,
    _fake_triplet_loss,
)

#: The gradients by the embeddings and the references (empty where the embeddings are their own references).  Of
#: ``embeddings`` only whether they need a gradient counts: a second derivative must be refused, not silently 0.
triplet_loss_backward = register(
    "triplet_loss_backward(Tensor grad, Tensor matrix, Tensor row_sums, Tensor column_sums, Tensor a, Tensor b, "
    "Tensor embeddings, Tensor? references) -> (Tensor, Tensor)",
    _triplet_loss_backward,
    _fake_triplet_loss_backward,
)
torch.library.register_autograd("occfast::triplet_loss", _triplet_gradient, setup_context=_save_triplets, lib=library)
torch.library.register_autograd("occfast::triplet_loss_backward", _no_second_derivative, lib=library)
