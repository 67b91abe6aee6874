"""Ops of the triplet losses: loss with statistics, and gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
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
#: Bytes of the rows of distances and counts that the linear method holds at a time.
_TILE_BYTES = 2**27


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


@dataclass(frozen=True)
class _Batch:
    """Centered anchors a [B, D] and candidates b [M, D], and each anchor's class among the sorted candidates."""

    a: Tensor
    b: Tensor
    a_squares: Tensor
    b_squares: Tensor
    lengths: Tensor
    members: Tensor
    start: Tensor
    stop: Tensor
    edge: Tensor
    own: bool  # candidate i is anchor i, which is not its own pair
    square: bool  # the candidates are the anchors

    @classmethod
    def of(
        cls,
        embeddings: Tensor,
        labels: Tensor,
        references: Tensor | None,
        reference_labels: Tensor | None,
        leading: bool,
        distance: int,
        top: float,
    ) -> _Batch:
        labels, unit = labels.contiguous(), distance == Distance.COSINE
        mean, a, a_squares, lengths = _center_rows(embeddings.contiguous(), None, unit)
        b, b_labels, b_squares, b_lengths = a, labels, a_squares, lengths
        if references is not None and reference_labels is not None:
            b_labels = reference_labels.contiguous()
            _, b, b_squares, b_lengths = _center_rows(references.contiguous(), mean, unit)
        ordered, members = b_labels.sort(stable=True)
        start, stop = torch.searchsorted(ordered, labels), torch.searchsorted(ordered, labels, right=True)
        edge = _histogram_edge(lengths, b_lengths, distance, top)
        square = references is None
        return cls(a, b, a_squares, b_squares, lengths, members, start, stop, edge, square or leading, square)

    @property
    def products(self) -> Tensor:
        return _multiply(self.a, self.b.T, symmetric=self.square)


class _Passes:
    """Both halves of the loss on some rows of a batch at a time, by the native module."""

    def __init__(self, native: Any, batch: _Batch, params: Any, statistics: bool, bins: int) -> None:
        self._native, self._batch, self._params, self._bins = native, batch, params, bins
        self._statistics = statistics
        rows, new = len(batch.a), batch.a.new_empty
        self._records = new((rows, SLOTS), dtype=torch.float64)
        self.totals = new(SLOTS, dtype=torch.float64)
        self.nearest = new((2, rows if statistics else 0))
        self.histogram = torch.zeros((2, bins if statistics else 0), dtype=torch.int64, device=batch.a.device)

    def _pairs(self, first: int, last: int, own: bool) -> Any:
        batch, native = self._batch, self._native
        return native.Pairs(
            rows=last - first,
            columns=len(batch.b),
            dim=batch.a.shape[1],
            first=first,
            own=own,
            members=batch.members.data_ptr(),
            start=batch.start[first:last].data_ptr(),
            stop=batch.stop[first:last].data_ptr(),
        )

    def mine(self, values: Tensor, first: int, last: int) -> Tensor:
        """Turn the products of anchors ``first`` to ``last`` into distances, in place, and return the counts.

        Their records, nearest distances and shares of the histogram are kept: call it once for all anchors first.
        """
        batch, device = self._batch, values.device
        counts = torch.empty(values.shape, dtype=torch.int32, device=device)
        nearest = values.new_empty((2, last - first if self._statistics else 0))
        arguments = self._native.MineTriplets(
            values=values.data_ptr(),
            dtype=OUTPUT_DTYPES[values.dtype],
            a=batch.a[first:last].data_ptr(),
            b=batch.b.data_ptr(),
            a_squares=batch.a_squares[first:last].data_ptr(),
            b_squares=batch.b_squares.data_ptr(),
            pairs=self._pairs(first, last, batch.own),
            params=self._params,
            top=batch.edge.data_ptr(),
            bins=self._bins,
            counts=counts.data_ptr(),
            records=self._records[first:last].data_ptr(),
            nearest=nearest.data_ptr(),
            histogram=self.histogram.data_ptr(),
        )
        call(self._native, "mine_triplets", device, arguments)
        if self._statistics:
            self.nearest[:, first:last] = nearest
        return counts

    def add_up(self) -> None:
        """Write the totals of the batch, from the records of all anchors."""
        pieces = self.totals.new_empty((self._native.PIECES, SLOTS))
        arguments = self._native.SumTriplets(
            records=self._records.data_ptr(),
            rows=len(self._records),
            params=self._params,
            pieces=pieces.data_ptr(),
            totals=self.totals.data_ptr(),
        )
        call(self._native, "sum_triplets", self.totals.device, arguments)

    def weights(self, values: Tensor, counts: Tensor, first: int, last: int, square: bool) -> tuple[Tensor, Tensor]:
        """Turn distances into the matrix of the gradient, in place; return its row and column sums.

        They are empty if ``square``: the matrix is that of all anchors against themselves.
        """
        batch = self._batch
        row_sums, column_sums = (values.new_empty(0 if square else size) for size in values.shape)
        arguments = self._native.TripletWeights(
            values=values.data_ptr(),
            dtype=OUTPUT_DTYPES[values.dtype],
            counts=counts.data_ptr(),
            totals=self.totals.data_ptr(),
            a_squares=batch.a_squares[first:last].data_ptr(),
            b_squares=batch.b_squares.data_ptr(),
            pairs=self._pairs(first, last, square),
            params=self._params,
            row_sums=row_sums.data_ptr(),
            column_sums=column_sums.data_ptr(),
        )
        call(self._native, "triplet_weights", values.device, arguments)
        return row_sums, column_sums


def _gradients_by_tiles(passes: _Passes, batch: _Batch, gradient: bool) -> tuple[Tensor, Tensor]:
    """Compute the totals, then the gradients by a and b, with some rows of the distances in memory at a time.

    The distances are computed twice: the weight of a pair depends on the totals of all.
    """
    rows, columns = len(batch.a), len(batch.b)
    each = columns * (batch.a.element_size() + 4)
    height = max(64, _TILE_BYTES // max(each, 1) // 64 * 64)
    tiles = [(first, min(rows, first + height)) for first in range(0, rows, height)]

    def distances(first: int, last: int) -> tuple[Tensor, Tensor]:
        values = _multiply(batch.a[first:last], batch.b.T)
        return values, passes.mine(values, first, last)

    for tile in tiles:
        distances(*tile)
    passes.add_up()
    if not gradient:
        return batch.a.new_empty((0, 0)), batch.a.new_empty((0, 0))
    histogram = passes.histogram.clone()  # the second pass adds to it again
    by_a, by_b = torch.zeros_like(batch.a), torch.zeros_like(batch.b)
    for first, last in tiles:
        values, counts = distances(first, last)
        row_sums, column_sums = passes.weights(values, counts, first, last, square=False)
        a = batch.a[first:last]
        by_a[first:last] += _multiply(values, batch.b).addcmul_(row_sums[:, None], a)
        by_b += _multiply(values.T, a).addcmul_(column_sums[:, None], batch.b)
    passes.histogram.copy_(histogram)
    return (by_a.add_(by_b), batch.a.new_empty((0, 0))) if batch.square else (by_a, by_b)


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
    batch = _Batch.of(embeddings, labels, references, reference_labels, leading, distance, top)
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
        passes = _Passes(native, batch, params, statistics, bins)
        if not linear:
            values = batch.products
            counts = passes.mine(values, 0, rows)
            passes.add_up()
            if gradient:
                kept = values, *passes.weights(values, counts, 0, rows, square)
        else:
            by_a, by_b = _gradients_by_tiles(passes, batch, gradient)
        totals, nearest, histogram = passes.totals, passes.nearest, passes.histogram
    # An embedding that is not finite is never selected, but must make the loss NaN.
    poison = (batch.a_squares.sum() + batch.b_squares.sum()) * 0
    loss = totals[Slot.LOSS].to(a.dtype) + poison
    rest = *kept, a, nothing() if square else b
    if linear:
        if native is None and gradient:
            by_a, by_b = _gradients(*rest, square)
        rest = by_a, by_b, a.new_empty(0), nothing(), nothing()
    return loss, totals, nearest, histogram, batch.edge, batch.lengths, batch.a_squares, *rest


def _histogram_edge(a: Tensor, b: Tensor, distance: int, top: float) -> Tensor:
    """Return the end of the axis of the histogram: as given, or a bound from the squared lengths."""
    if top > 0 or distance == Distance.COSINE or not a.numel() or not b.numel():
        return torch.full((1,), top or 2.0, dtype=torch.float64, device=a.device)
    reach = a.max().sqrt() + b.max().sqrt()
    return (reach if distance == Distance.EUCLIDEAN else reach.square()).reshape(1)


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


def _gradients(
    matrix: Tensor, row_sums: Tensor, column_sums: Tensor, a: Tensor, b: Tensor, own: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b from the matrix of weights; empty for b if ``own``."""
    a, b = a.contiguous(), b.contiguous()
    if own:
        return _multiply(matrix, a), a.new_empty((0, 0))
    by_a = _multiply(matrix, b).addcmul_(row_sums[:, None], a)
    return by_a, _multiply(matrix.T, a).addcmul_(column_sums[:, None], b)


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
    by_a, by_b = _gradients(matrix, row_sums, column_sums, a, b, references is None)
    return by_a.mul_(grad), by_b.mul_(grad)


def _fake_triplet_loss_backward(
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
    return (
        (torch.empty_like(matrix), torch.empty_like(row_sums)) if linear else (torch.empty_like(a), torch.empty_like(b))
    )


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
