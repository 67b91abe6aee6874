"""Twins of the ops of the batch triplet loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ..enums import SLOTS, Distance, Mining, Slot, Stream
from .occluders import philox

_WORD = 0xFFFFFFFF


def center_rows(rows: Tensor, mean: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean, the centered rows, their squared lengths, and the squared lengths of the rows.

    With ``unit``, the squared length of a centered row is -1 where the row is 0.
    """
    wide = rows.double()
    if mean is None:
        mean = wide.sum(0) / max(rows.shape[0], 1)
        spread = mean * (2.0**33 + 1 if rows.dtype == torch.float64 else 2.0**45 + 1)
        mean = spread - (spread - mean)
    centered = (wide - mean).to(rows.dtype)
    lengths = wide.square().sum(1)
    squares = centered.double().square().sum(1).to(rows.dtype)
    if unit:
        squares = torch.where(lengths == 0, -1.0, squares)
    return mean, centered, squares, lengths


def triplet_distances(
    products: Tensor, a: Tensor, b: Tensor, a_squares: Tensor, b_squares: Tensor, own: bool, distance: int
) -> Tensor:
    """Compute distances of centered rows from their products, and small ones anew from differences."""
    sums = a_squares[:, None] + b_squares
    squares = sums - 2 * products
    squares = torch.where(squares < 0, 0.0, squares)
    close = squares * 64 < sums
    if own:
        close.fill_diagonal_(False)
        squares.fill_diagonal_(0)
    i, j = close.nonzero(as_tuple=True)
    for part in range(0, i.numel(), 1 << 16):
        some = slice(part, part + (1 << 16))
        squares[i[some], j[some]] = (a[i[some]] - b[j[some]]).square().sum(1)
    if distance == Distance.EUCLIDEAN:
        return squares.sqrt()
    if distance == Distance.COSINE:
        zero = (a_squares[:, None] < 0) | (b_squares < 0)
        return torch.where(zero, 1.0, squares * 0.5)
    return squares


def _moment(values: Tensor, weights: Tensor) -> Tensor:
    weight, wide = weights.double().sum(), values.double()
    # clamp: 0 / 1 instead of 0 / 0 if nothing has weight.
    mean = torch.where(weights > 0, wide * weights, 0.0).sum() / weight.clamp(min=1)
    apart = torch.where(weights > 0, weights * (wide - mean).square(), 0.0).sum()
    return torch.stack((weight, mean, apart))


def draw_negatives(anchor: Tensor, positive: Tensor, counts: Tensor, seed: int, step: int) -> Tensor:
    """Return the index of the semi-hard negative that each pair takes, from (seed, step, pair) alone."""
    stream, steps = torch.full_like(positive, Stream.TRIPLET), torch.full_like(positive, step)
    return philox(positive, stream, anchor, steps, seed & _WORD, seed >> 32)[0] * counts >> 32


def mine_triplets(
    d: Tensor,
    own: bool,
    members: Tensor,
    start: Tensor,
    stop: Tensor,
    mining: int,
    hinge: bool,
    statistics: bool,
    margin: float,
    beta: float,
    seed: int,
    step: int,
    top: Tensor,
    bins: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return counts (-w for positive pairs, w for negative ones), totals, nearest and histogram."""
    rows, columns = d.shape
    device, anchor = d.device, torch.arange(rows, device=d.device)
    slot = torch.empty_like(members)
    slot[members] = torch.arange(columns, device=device)
    same = (slot >= start[:, None]) & (slot < stop[:, None])
    is_negative, is_positive = ~same, same
    if own:
        is_positive = same.clone().fill_diagonal_(False)
    n_positive, n_negative = is_positive.sum(1), is_negative.sum(1)
    negative = torch.where(is_negative, d, torch.inf)
    offset = torch.tensor(margin, dtype=d.dtype, device=device)

    zero = torch.zeros((rows, columns), dtype=torch.int64, device=device)
    ap, an, violating, hard = zero.clone(), zero.clone(), zero.sum(), zero.sum()
    for k in range(int((stop - start).max()) if rows else 0):  # the k-th positive of every anchor
        p = members[(start + k).clamp(max=max(columns - 1, 0))]
        used = (start + k < stop) & ((p != anchor) | (not own))
        near = d[anchor, p][:, None]
        violates = (negative < near + offset) & used[:, None]
        is_hard = violates & (negative <= near)
        violating, hard = violating + violates.sum(), hard + is_hard.sum()
        chosen = violates & ~is_hard if mining in (Mining.SEMIHARD, Mining.SEMIHARD_RANDOM) else violates
        if mining == Mining.SEMIHARD_RANDOM:
            pick = draw_negatives(anchor, p, chosen.sum(1), seed, step)
            chosen &= chosen.cumsum(1) == pick[:, None] + 1
        an += chosen
        ap[anchor, p] += chosen.sum(1)
    mined: tuple[Tensor, Tensor] | None = None
    everything = (torch.where(is_positive, n_negative[:, None], 0), torch.where(is_negative, n_positive[:, None], 0))
    if mining == Mining.ALL:
        if hinge:
            mined = everything
        else:
            ap, an = everything
    elif mining == Mining.HARDEST:
        ap, an = zero.clone(), zero.clone()
        some = (n_positive > 0) & (n_negative > 0)
        if columns:
            furthest = torch.where(is_positive, d, -torch.inf)
            p = (furthest == furthest.amax(1, keepdim=True)).to(torch.int8).argmax(1)
            n = (negative == negative.amin(1, keepdim=True)).to(torch.int8).argmax(1)
            ap[anchor, p], an[anchor, n] = some.long(), some.long()
            mined = ap, an
            if hinge:
                active = some & (d[anchor, n] < d[anchor, p] + offset)
                ap, an = ap * active[:, None], an * active[:, None]
    totals = torch.zeros(SLOTS, dtype=torch.float64, device=device)

    def put(at: int, weights: Tensor) -> None:
        totals[at : at + 3] = _moment(d, weights)

    for at, weights in (
        (Slot.ACTIVE_POSITIVE, ap),
        (Slot.ACTIVE_NEGATIVE, an),
        (Slot.POSITIVE_PAIRS, is_positive.long()),
    ):
        put(at, weights)
    if mined is None:
        totals[Slot.MINED_POSITIVE : Slot.ACTIVE_POSITIVE] = totals[Slot.ACTIVE_POSITIVE : Slot.CANDIDATES]
    else:
        put(Slot.MINED_POSITIVE, mined[0])
        put(Slot.MINED_NEGATIVE, mined[1])
    nearest, histogram = d.new_empty((2, 0)), torch.zeros((2, 0), dtype=torch.int64, device=device)
    if statistics:
        put(Slot.NEGATIVE_PAIRS, is_negative.long())
        totals[Slot.CANDIDATES] = (n_positive * n_negative).sum()
        totals[Slot.VIOLATING_TRIPLETS], totals[Slot.HARD_TRIPLETS] = violating, hard
        nearest = torch.stack(
            [
                torch.where(w, d, torch.inf).amin(1) if columns else d.new_full((rows,), torch.inf)
                for w in (is_positive, is_negative)
            ]
        )
        scale = torch.where(top > 0, bins / top, 0.0).to(d.dtype)
        bin_of = (d * scale).nan_to_num(bins - 1, posinf=bins - 1).clamp(max=bins - 1).long()
        once = torch.ones_like(same).triu(1) if own else torch.ones_like(same)
        histogram = torch.stack([torch.bincount(bin_of[w & once], minlength=bins) for w in (is_positive, is_negative)])
    totals[Slot.LOSS] = _triplet_loss(totals, hinge, margin, beta)
    return (an - ap).int(), totals, nearest, histogram


def _triplet_loss(totals: Tensor, hinge: bool, margin: float, beta: float) -> Tensor:
    n = totals[Slot.MINED_POSITIVE]
    apart = totals[Slot.ACTIVE_POSITIVE + 1] - totals[Slot.ACTIVE_NEGATIVE + 1] + margin
    if hinge:
        loss = totals[Slot.ACTIVE_POSITIVE] / n.clamp(min=1) * apart
    else:
        spread = (totals[Slot.ACTIVE_POSITIVE + 2] + totals[Slot.ACTIVE_NEGATIVE + 2]) / n.clamp(min=1)
        loss = (1 - beta) * apart + beta * spread
    return torch.where(n > 0, loss, 0.0)


def triplet_weights(
    d: Tensor,
    counts: Tensor,
    totals: Tensor,
    a_squares: Tensor,
    b_squares: Tensor,
    own: bool,
    distance: int,
    hinge: bool,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the matrix that multiplies the embeddings to give gradients, and its negative row and column sums.

    With ``own`` the row sums are on its diagonal, and the last two results are empty.
    """
    n = totals[Slot.MINED_POSITIVE]
    per = torch.where(n > 0, 1.0 / n, 0.0)
    beta = 0.0 if hinge else beta
    mean = torch.where(counts < 0, totals[Slot.ACTIVE_POSITIVE + 1], totals[Slot.ACTIVE_NEGATIVE + 1])
    slope = counts.abs() * (2 * beta * per) * (d - mean) - counts * ((1 - beta) * per)
    if distance == Distance.EUCLIDEAN:
        slope = torch.where(d > 0, slope / (2 * d), 0.0)
    elif distance == Distance.COSINE:
        slope = torch.where((a_squares[:, None] < 0) | (b_squares < 0), 0.0, slope * 0.5)
    if own:
        slope = slope + slope.T
    matrix = -2 * slope
    row_sums, column_sums = -matrix.sum(1), -matrix.sum(0)
    if own:
        matrix.diagonal().copy_(row_sums)
        return matrix.to(d.dtype), d.new_empty(0), d.new_empty(0)
    return matrix.to(d.dtype), row_sums.to(d.dtype), column_sums.to(d.dtype)
