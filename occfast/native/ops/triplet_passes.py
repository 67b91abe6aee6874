"""Passes of the triplet losses over a batch: centered rows, distances and counts, totals, weights and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..enums import SLOTS, Distance
from .common import OUTPUT_DTYPES, call, module_for

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


def multiply(a: Tensor, b: Tensor, symmetric: bool = False, out: Tensor | None = None) -> Tensor:
    """Return ``a @ b``, in ``out`` if it is given. On a CPU every sum has one order, whatever the number of threads."""
    native = module_for(a.device)
    if native is None or a.device.type == "cuda":
        with _full_precision(a.device):
            return torch.mm(a, b, out=out)
    out = a.new_empty((a.shape[0], b.shape[1])) if out is None else out
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


@dataclass(frozen=True)
class Batch:
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
    ) -> Batch:
        """Center the rows about the mean of the embeddings, and sort the candidates by label."""
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
        """All products of anchors and candidates, [B, M]."""
        return multiply(self.a, self.b.T, symmetric=self.square)


class Passes:
    """Both halves of the loss on some rows of a batch at a time, by the native module.

    Args:
        native: The module.
        batch: The batch.
        statistics: Whether figures that the loss itself does not need are computed.
        bins: Number of histogram bins.
        options: The other fields of ``TripletParams``.
    """

    def __init__(self, native: Any, batch: Batch, statistics: bool, bins: int, **options: Any) -> None:
        self._native, self._batch, self._bins = native, batch, bins
        self._statistics, self._options = statistics, options
        rows, new = len(batch.a), batch.a.new_empty
        self._records = new((rows, SLOTS), dtype=torch.float64)
        self.totals = new(SLOTS, dtype=torch.float64)
        self.nearest = new((2, rows if statistics else 0))
        self.histogram = torch.zeros((2, bins if statistics else 0), dtype=torch.int64, device=batch.a.device)

    def _params(self, statistics: bool = False) -> Any:
        return self._native.TripletParams(statistics=statistics, **self._options)

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

    def mine(
        self, values: Tensor, first: int, last: int, counts: Tensor | None = None, *, again: bool = False
    ) -> Tensor:
        """Turn the products of anchors ``first`` to ``last`` into distances, in place, and return the counts.

        The counts are written into ``counts`` if it is given, int32 of the shape of ``values``. Records, nearest
        distances and shares of the histogram are kept, unless it is done again.
        """
        batch, device = self._batch, values.device
        statistics = self._statistics and not again
        counts = torch.empty(values.shape, dtype=torch.int32, device=device) if counts is None else counts
        nearest = values.new_empty((2, last - first if statistics else 0))
        arguments = self._native.MineTriplets(
            values=values.data_ptr(),
            dtype=OUTPUT_DTYPES[values.dtype],
            a=batch.a[first:last].data_ptr(),
            b=batch.b.data_ptr(),
            a_squares=batch.a_squares[first:last].data_ptr(),
            b_squares=batch.b_squares.data_ptr(),
            pairs=self._pairs(first, last, batch.own),
            params=self._params(statistics),
            top=batch.edge.data_ptr(),
            bins=self._bins,
            counts=counts.data_ptr(),
            records=self._records[first:last].data_ptr(),
            nearest=nearest.data_ptr(),
            histogram=self.histogram.data_ptr(),
        )
        call(self._native, "mine_triplets", device, arguments)
        if statistics:
            self.nearest[:, first:last] = nearest
        return counts

    def add_up(self) -> None:
        """Write the totals of the batch, from the records of all anchors."""
        pieces = self.totals.new_empty((self._native.PIECES, SLOTS))
        arguments = self._native.SumTriplets(
            records=self._records.data_ptr(),
            rows=len(self._records),
            params=self._params(),
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
            params=self._params(),
            row_sums=row_sums.data_ptr(),
            column_sums=column_sums.data_ptr(),
        )
        call(self._native, "triplet_weights", values.device, arguments)
        return row_sums, column_sums


def gradients_by_tiles(passes: Passes, batch: Batch, gradient: bool) -> tuple[Tensor, Tensor]:
    """Compute the totals, then the gradients by a and b, with some rows of the distances in memory at a time.

    The distances are computed twice: the weight of a pair depends on the totals of all.
    """
    rows, columns = len(batch.a), len(batch.b)
    each = columns * (batch.a.element_size() + 4)
    height = max(64, _TILE_BYTES // max(each, 1) // 64 * 64)
    tiles = [(first, min(rows, first + height)) for first in range(0, rows, height)]
    # One memory for all tiles: the system would clear that of each tile page by page.
    values = batch.a.new_empty(min(height, rows), columns)
    counts = torch.empty(values.shape, dtype=torch.int32, device=values.device)

    def distances(first: int, last: int, again: bool) -> tuple[Tensor, Tensor]:
        part, number = values[: last - first], counts[: last - first]
        multiply(batch.a[first:last], batch.b.T, out=part)
        passes.mine(part, first, last, number, again=again)
        return part, number

    for first, last in tiles:
        distances(first, last, again=False)
    passes.add_up()
    if not gradient:
        return batch.a.new_empty((0, 0)), batch.a.new_empty((0, 0))
    by_a, by_b, by_all = torch.zeros_like(batch.a), torch.zeros_like(batch.b), torch.empty_like(batch.b)
    for first, last in tiles:
        part, number = distances(first, last, again=True)
        sums = passes.weights(part, number, first, last, square=False)
        by_tile, _ = gradients(part, *sums, batch.a[first:last], batch.b, own=False, by_b=by_all)
        by_a[first:last] += by_tile
        by_b += by_all
    return (by_a.add_(by_b), batch.a.new_empty((0, 0))) if batch.square else (by_a, by_b)


def gradients(
    matrix: Tensor, row_sums: Tensor, column_sums: Tensor, a: Tensor, b: Tensor, own: bool, by_b: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b from the matrix of weights; empty for b if ``own``, else in ``by_b`` if given."""
    a, b = a.contiguous(), b.contiguous()
    if own:
        return multiply(matrix, a), a.new_empty((0, 0))
    by_a = multiply(matrix, b).addcmul_(row_sums[:, None], a)
    return by_a, multiply(matrix.T, a, out=by_b).addcmul_(column_sums[:, None], b)


def _histogram_edge(a: Tensor, b: Tensor, distance: int, top: float) -> Tensor:
    """Return the end of the axis of the histogram: as given, or a bound from the squared lengths."""
    if top > 0 or distance == Distance.COSINE or not a.numel() or not b.numel():
        return torch.full((1,), top or 2.0, dtype=torch.float64, device=a.device)
    reach = a.max().sqrt() + b.max().sqrt()
    return (reach if distance == Distance.EUCLIDEAN else reach.square()).reshape(1)
