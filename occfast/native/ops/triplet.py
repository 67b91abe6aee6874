"""Ops of the triplet losses: loss with statistics, and gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..enums import SLOTS, Distance, Mining, Slot
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

#: Distances and mining strategies by the names of the losses.
DISTANCES = {distance.name.lower(): distance for distance in Distance}
MININGS = {mining.name.lower(): mining for mining in Mining}
MAX_BINS = 1024


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute matrix products in the type of the tensors, without autocast, TF32 or bfloat16."""
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
    """Return ``a @ b``. On a CPU every sum has one order, whatever the number of threads."""
    native = module_for(a.device)
    if native is None or a.device.type == "cuda":
        with _full_precision(a.device):
            return a @ b
    out = a.new_empty((a.shape[0], b.shape[1]))
    (a_row, a_column), (b_row, b_column) = a.stride(), b.stride()
    product = native.MatrixProduct(
        a=a.data_ptr(),
        a_row=a_row,
        a_column=a_column,
        b=b.data_ptr(),
        b_row=b_row,
        b_column=b_column,
        dtype=OUTPUT_DTYPES[a.dtype],
        m=a.shape[0],
        n=b.shape[1],
        k=a.shape[1],
        symmetric=symmetric,
        out=out.data_ptr(),
    )
    call(native, "multiply", a.device, product)
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
    arguments = native.CenterRows(
        rows=rows.data_ptr(),
        dtype=OUTPUT_DTYPES[rows.dtype],
        n=n,
        dim=dim,
        given=given,
        unit=unit,
        mean=mean.data_ptr(),
        centered=centered.data_ptr(),
        squares=squares.data_ptr(),
        lengths=lengths.data_ptr(),
    )
    call(native, "center_rows", rows.device, arguments)
    return mean, centered, squares, lengths


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
) -> tuple[Tensor, ...]:
    device, own = embeddings.device, references is None
    _check_triplets(embeddings, labels, ("embeddings", "labels"))
    expect(
        own == (reference_labels is None),
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

    a, a_labels = embeddings.contiguous(), labels.contiguous()
    unit = distance == Distance.COSINE
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
    if native is None:
        values = reference.triplet_distances(values, a, b, a_squares, b_squares, own, distance)
        counts, totals, nearest, histogram = reference.mine_triplets(
            values, own, members, start, stop, mining, hinge, statistics, margin, beta, seed, step, edge, bins
        )
    else:
        counts = torch.empty((rows, columns), dtype=torch.int32, device=device)
        records = torch.empty((rows, SLOTS), dtype=torch.float64, device=device)
        pieces = torch.empty((native.PIECES, SLOTS), dtype=torch.float64, device=device)
        totals = torch.empty(SLOTS, dtype=torch.float64, device=device)
        nearest = a.new_empty((2, rows if statistics else 0))
        histogram = torch.zeros((2, bins if statistics else 0), dtype=torch.int64, device=device)
        pairs = native.Pairs(
            rows=rows,
            columns=columns,
            dim=a.shape[1],
            own=own,
            members=members.data_ptr(),
            start=start.data_ptr(),
            stop=stop.data_ptr(),
        )
        params = native.TripletParams(
            distance=distance,
            mining=mining,
            hinge=hinge,
            statistics=statistics,
            margin=margin,
            beta=beta,
            seed=seed,
            step=step,
        )
        mine = native.MineTriplets(
            values=values.data_ptr(),
            dtype=OUTPUT_DTYPES[a.dtype],
            a=a.data_ptr(),
            b=b.data_ptr(),
            a_squares=a_squares.data_ptr(),
            b_squares=b_squares.data_ptr(),
            pairs=pairs,
            params=params,
            top=edge.data_ptr(),
            bins=bins,
            counts=counts.data_ptr(),
            records=records.data_ptr(),
            pieces=pieces.data_ptr(),
            totals=totals.data_ptr(),
            nearest=nearest.data_ptr(),
            histogram=histogram.data_ptr(),
        )
        call(native, "mine_triplets", device, mine)
    # An embedding that is not finite is never selected, but must make the loss NaN.
    poison = (a_squares.sum() + b_squares.sum()) * 0
    loss = totals[Slot.LOSS].to(a.dtype) + poison
    matrix, row_sums, column_sums = a.new_empty((0, 0)), a.new_empty(0), a.new_empty(0)
    if gradient:
        if native is None:
            matrix, row_sums, column_sums = reference.triplet_weights(
                values, counts, totals, a_squares, b_squares, own, distance, hinge, beta
            )
        else:
            if not own:
                row_sums, column_sums = a.new_empty(rows), a.new_empty(columns)
            weights = native.TripletWeights(
                values=values.data_ptr(),
                dtype=OUTPUT_DTYPES[a.dtype],
                counts=counts.data_ptr(),
                totals=totals.data_ptr(),
                a_squares=a_squares.data_ptr(),
                b_squares=b_squares.data_ptr(),
                pairs=pairs,
                params=params,
                row_sums=row_sums.data_ptr(),
                column_sums=column_sums.data_ptr(),
            )
            call(native, "triplet_weights", device, weights)
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
    """Return the end of the axis of the histogram: as given, or a bound from the squared lengths."""
    if top > 0 or distance == Distance.COSINE or not a.numel() or not b.numel():
        return torch.full((1,), top or 2.0, dtype=torch.float64, device=a.device)
    reach = a.max().sqrt() + b.max().sqrt()
    return (reach if distance == Distance.EUCLIDEAN else reach.square()).reshape(1)


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
        new(SLOTS, dtype=double),
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


#: ``(embeddings [B,D] float32 or float64, labels int64 [B], references [M,D], reference_labels [M], ...)``, with a
#: :class:`Distance` and a :class:`Mining` -> loss, totals float64 [22] (:class:`Slot`), nearest [2,B], histogram int64
#: [2,bins], its upper edge float64 [1], the squared lengths of the embeddings float64 [B] and of the embeddings minus
#: their mean [B], and the tensors that the backward needs. ``gradient=False`` skips computing those.
triplet_loss = register(
    "triplet_loss(Tensor embeddings, Tensor labels, Tensor? references, Tensor? reference_labels, int distance, "
    "int mining, bool hinge, float margin, float beta, int seed, int step, bool statistics, int bins, float top, "
    "bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor)",
    _triplet_loss,
    _fake_triplet_loss,
)

#: The gradients with respect to the embeddings and the references (empty without references). ``embeddings`` is
#: passed only to record whether it requires a gradient, so that a second derivative raises an error.
triplet_loss_backward = register(
    "triplet_loss_backward(Tensor grad, Tensor matrix, Tensor row_sums, Tensor column_sums, Tensor a, Tensor b, "
    "Tensor embeddings, Tensor? references) -> (Tensor, Tensor)",
    _triplet_loss_backward,
    _fake_triplet_loss_backward,
)
torch.library.register_autograd("occfast::triplet_loss", _triplet_gradient, setup_context=_save_triplets, lib=library)
torch.library.register_autograd("occfast::triplet_loss_backward", _no_second_derivative, lib=library)
