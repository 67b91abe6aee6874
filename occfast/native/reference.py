"""A PyTorch twin of every native op: the oracle of the tests and the baseline of the benches.

``OCCFAST_BACKEND=reference`` runs these instead of the native modules.  The arguments were checked
by ``ops/``; meanings, shapes and dtypes are stated there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Kinds of noise and streams of counters, as in csrc/core/noise.h.
SALT_AND_PEPPER, SPECKLE, GAUSSIAN, NO_NOISE, NOT_OCCLUDED = 0, 1, 2, 3, 255
_PIXELS, _OCCLUDER = 0, 1
_WORD = 0xFFFFFFFF


# -- sweep ---------------------------------------------------------------------------------------------


def windows(grid: list[int], positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, bottom, right of the occluder at each position of the grid, cut at the image's edge."""
    _, columns, first_row, first_column, row_step, column_step, h, w = grid
    top = first_row + positions // columns * row_step - h // 2
    left = first_column + positions % columns * column_step - w // 2
    return top.clamp(min=0), left.clamp(min=0), (top + h).clamp(max=height), (left + w).clamp(max=width)


def occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    height, width = images.shape[-2:]
    per_image = grid[0] * grid[1]
    n = positions // per_image
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in windows(grid, positions % per_image, height, width))
    i = torch.arange(height, device=images.device).view(1, 1, -1, 1)
    j = torch.arange(width, device=images.device).view(1, 1, 1, -1)
    inside = (i >= top) & (i < bottom) & (j >= left) & (j < right)
    copies = images[n]
    return torch.where(inside, fill.expand_as(images)[n], copies)


def first_largest(outputs: Tensor) -> Tensor:
    """The lowest index among the largest outputs of each row (argmax leaves open which of equals)."""
    index = torch.arange(outputs.shape[1], device=outputs.device)
    largest = outputs == outputs.amax(1, keepdim=True)
    return torch.where(largest, index, outputs.shape[1]).amin(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of the rows of two float64 tensors; 0 where one is 0."""
    lengths = (a.square().sum(1) * b.square().sum(1)).clamp(min=1e-300).sqrt()
    return (a * b).sum(1) / lengths


def sweep_score(
    outputs: Tensor,
    positions: Tensor,
    per_image: int,
    kind: int,
    scores: Tensor,
    bad: Tensor,
    labels: Tensor | None,
    references: Tensor | None,
    baseline: Tensor | None,
) -> None:
    n = positions // per_image
    if kind == 0:
        assert labels is not None
        value = (first_largest(outputs) != labels[n]).double()
    elif kind == 1:
        assert labels is not None and baseline is not None
        value = baseline[n] - outputs.gather(1, labels[n, None])[:, 0].double()
    else:
        assert references is not None and baseline is not None
        value = baseline[n] - cosine(outputs.double(), references[n])
    scores.view(-1)[positions] = value
    bad |= (~outputs.isfinite().all()).to(bad.dtype)


def sweep_accumulate(scores: Tensor, total: Tensor, squares: Tensor) -> None:
    for row in scores:  # in the order of the images: the sums do not depend on how they were split
        total += row
        squares += row * row


def gather_windows(
    maps: Tensor,
    images: Tensor,
    origins: Tensor,
    height: int,
    width: int,
    patches: Tensor | None,
    patch_origins: Tensor | None,
    padding: float,
) -> Tensor:
    h, w = maps.shape[-2:]
    y = origins[:, 0].view(-1, 1, 1) + torch.arange(height, device=maps.device).view(1, -1, 1)
    x = origins[:, 1].view(-1, 1, 1) + torch.arange(width, device=maps.device).view(1, 1, -1)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
    out = maps[images.view(-1, 1, 1), :, y.clamp(0, h - 1), x.clamp(0, w - 1)]  # [M, height, width, C]
    if patches is not None and patch_origins is not None:
        i, j = y - patch_origins[:, 0].view(-1, 1, 1), x - patch_origins[:, 1].view(-1, 1, 1)
        ph, pw = patches.shape[-2:]
        covered = (i >= 0) & (i < ph) & (j >= 0) & (j < pw)
        m = torch.arange(patches.shape[0], device=maps.device).view(-1, 1, 1)
        out = torch.where(covered.unsqueeze(-1), patches[m, :, i.clamp(0, ph - 1), j.clamp(0, pw - 1)], out)
    return out.masked_fill(~inside.unsqueeze(-1), padding).permute(0, 3, 1, 2)


def convolve(
    windows: Tensor,
    weights: Tensor,
    bias: Tensor,
    channels: int,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    relu: bool,
) -> Tensor:
    """The convolution of gathered windows with packed weights."""
    blocks, _, block = weights.shape
    dense = weights.permute(0, 2, 1).reshape(blocks * block, *kernel, windows.shape[1])[:channels].permute(0, 3, 1, 2)
    out = F.conv2d(windows, dense.contiguous(), bias.flatten()[:channels], stride, 0, dilation)
    return out.relu() if relu else out


def gather_pieces(
    maps: Tensor,
    full: Tensor,
    images: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_cuts: Tensor,
    column_cuts: Tensor,
    origins: Tensor,
    height: int,
    width: int,
    row_strips: Tensor | None,
    column_strips: Tensor | None,
    corners: Tensor | None,
    edges: list[int],
    padding: float,
) -> Tensor:
    h, w = maps.shape[-2:]
    count = images.shape[0]
    m = torch.arange(origins.shape[0], device=maps.device) % count
    n, i, j = (index[m].view(-1, 1, 1) for index in (images, rows, columns))
    y = origins[:, 0].view(-1, 1, 1) + torch.arange(height, device=maps.device).view(1, -1, 1)
    x = origins[:, 1].view(-1, 1, 1) + torch.arange(width, device=maps.device).view(1, 1, -1)
    inside = ((y >= 0) & (y < h) & (x >= 0) & (x < w)).unsqueeze(-1)
    row, column = row_cuts[i], column_cuts[j]  # [E, 1, 1, 8]
    dirty = (y >= row[..., 0]) & (y < row[..., 3]) & (x >= column[..., 0]) & (x < column[..., 3])
    # 0: the first edge, 1: fully occluded, 2: the last edge
    v = torch.where(y < row[..., 1], 0, torch.where(y < row[..., 2], 1, 2))
    u = torch.where(x < column[..., 1], 0, torch.where(x < column[..., 2], 1, 2))
    y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)

    def pick(pieces: Tensor, which: Tensor, top: Tensor | int, left: Tensor | int) -> Tensor:
        a, b = pieces.shape[-2:]
        return pieces[which, :, (y - top).clamp(0, a - 1), (x - left).clamp(0, b - 1)]

    out = pick(maps, n, 0, 0)
    out = torch.where((dirty & (v == 1) & (u == 1)).unsqueeze(-1), pick(full, n, 0, 0), out)
    for part in (0, 1):
        if row_strips is not None:
            piece = pick(row_strips, part * (row_strips.shape[0] // 2) + i, row[..., 4 + part], 0)
            out = torch.where((dirty & (v == 2 * part) & (u == 1)).unsqueeze(-1), piece, out)
        if column_strips is not None:
            piece = pick(column_strips, part * (column_strips.shape[0] // 2) + j, 0, column[..., 4 + part])
            out = torch.where((dirty & (v == 1) & (u == 2 * part)).unsqueeze(-1), piece, out)
        if corners is not None:
            for other in (0, 1):
                a, b = part - edges[0], other - edges[1]
                if not (0 <= a < edges[2] and 0 <= b < edges[3]):
                    continue
                which = (a * edges[3] + b) * count + m.view(-1, 1, 1)
                piece = pick(corners, which, row[..., 6 + part], column[..., 6 + other])
                out = torch.where((dirty & (v == 2 * part) & (u == 2 * other)).unsqueeze(-1), piece, out)
    return out.masked_fill(~inside, padding).permute(0, 3, 1, 2)


# -- noisy occluders -----------------------------------------------------------------------------------


def philox(x: Tensor, y: Tensor, z: Tensor, w: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
    """Philox 4x32-10 on int64 tensors that hold 32-bit words."""
    for _ in range(10):
        a, b = 0xD2511F53 * x, 0xCD9E8D57 * z  # wraps to the right 64 bits
        x, y, z, w = ((b >> 32 & _WORD) ^ y ^ low, b & _WORD, (a >> 32 & _WORD) ^ w ^ high, a & _WORD)
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return x, y, z, w


def uniform24(word: Tensor) -> Tensor:
    return (word >> 8).float() * 2.0**-24


def uniform53(high: Tensor, low: Tensor) -> Tensor:
    return ((high << 21) + (low >> 11)).double() * 2.0**-53


def _f32(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _polynomial(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = _f32(coefficients[0], t).expand_as(t)
    for c in coefficients[1:]:
        value = value * t + _f32(c, t)
    return value


# tools/fit_normal.py prints these.
_LOG = (
    -7.607288310e-02,
    1.305818967e-01,
    -1.333290805e-01,
    1.416027158e-01,
    -1.659345053e-01,
    2.000278360e-01,
    -2.500242983e-01,
    3.333331938e-01,
    -4.999997502e-01,
    1.0,
)
_CENTRE = (
    2.456995785e-08,
    4.965131134e-07,
    -4.808387681e-06,
    -6.313119523e-06,
    3.084979156e-04,
    -1.772771396e-03,
    -5.907430313e-03,
    3.488025191e-01,
    2.123313437e00,
)
_TAIL = (
    -2.704886203e-04,
    1.285836146e-04,
    1.894430586e-03,
    -5.179641827e-03,
    8.121799341e-03,
    -1.078455142e-02,
    1.334796022e-02,
    1.416581458e00,
    4.006434395e00,
)


def natural_log(x: Tensor) -> Tensor:
    bits = x.view(torch.int32) + (0x3F800000 - 0x3F3504F3)
    e = ((bits >> 23) - 127).float()
    d = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    return _polynomial(d, _LOG) * d + e * _f32(0.693147181, x)


def normals(words: Tensor) -> Tensor:
    p = ((words >> 9).float() + 0.5) * 2.0**-24
    x = 1.0 - 2.0 * p
    w = -natural_log(4.0 * p * (1.0 - p))
    # The float32 sqrt of PyTorch on a CPU may be one unit off; of a float64 it rounds to the right float32.
    root = w.clamp(min=0).double().sqrt().float()
    tail = _polynomial(root - 3.0, _TAIL)
    z = torch.where(w < 5.0, _polynomial(w - 2.5, _CENTRE), tail) * x
    return torch.where((words & 1).bool(), -z, z)


def _between(low: float, high: float, u: Tensor) -> Tensor:
    lowest = _f32(low, u)
    return lowest + (_f32(high, u) - lowest) * u


def _integer_between(low: int, high: int, word: Tensor) -> Tensor:
    return low + (word * (high - low + 1) >> 32)


def draw_occluders(
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    channels: int,
    height: int,
    width: int,
    seed: int,
    probability: float,
    sizes: list[int],
    ranges: list[float],
    kinds: list[int],
    gray: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low, high = seed & _WORD, seed >> 32
    zero = torch.zeros_like(sample_ids)
    id_low, id_high = sample_ids & _WORD, sample_ids >> 32

    def words(block: int) -> tuple[Tensor, ...]:
        return philox(zero + block, zero + _OCCLUDER, id_low, id_high, low, high)

    place, shape = words(0), words(1)
    occluded = uniform24(place[2]) < _f32(probability, cdf)
    position = torch.searchsorted(cdf, uniform53(place[0], place[1]), right=True).clamp(max=cdf.numel() - 1)
    h = _integer_between(sizes[0], sizes[1], shape[1])
    w = _integer_between(sizes[2], sizes[3], shape[2])
    columns = column_centers.numel()
    top = row_centers[position // columns] - h // 2
    left = column_centers[position % columns] - w // 2
    box = torch.stack(
        (top.clamp(min=0), left.clamp(min=0), (top + h).clamp(max=height), (left + w).clamp(max=width)), 1
    )
    boxes = torch.where(occluded[:, None], box, 0).int()
    allowed = torch.tensor(kinds, device=sample_ids.device)
    kind = torch.where(occluded, allowed[_integer_between(0, len(kinds) - 1, place[3])], NOT_OCCLUDED)
    level = torch.where(occluded, _between(ranges[0], ranges[1], uniform24(shape[0])), 0.0)
    blocks = 1 if gray else (channels + 3) // 4
    colors = torch.stack([word for block in range(blocks) for word in words(2 + block)], 1)
    colors = colors[:, :1].expand(-1, channels) if gray else colors[:, :channels]
    intensity = _between(ranges[2], ranges[3], uniform24(colors))
    intensity = torch.where(occluded[:, None], intensity, 0.0)
    return boxes, kind.to(torch.uint8), level, intensity.contiguous()


def paint_occluders(
    images: Tensor,
    out: Tensor,
    sample_ids: Tensor,
    boxes: Tensor,
    kind: Tensor,
    level: Tensor,
    intensity: Tensor,
    seed: int,
    low: float,
    high: float,
    outside: Tensor | None = None,
) -> None:
    n, channels, height, width = images.shape
    device = images.device
    if outside is not None and images.is_floating_point():
        outside |= (~((images >= low) & (images <= high)).all()).to(outside.dtype)
    if out is not images:
        out.copy_(images)
    quads = (width + 3) // 4
    c = torch.arange(channels, device=device).view(1, -1, 1, 1)
    i = torch.arange(height, device=device).view(1, 1, -1, 1)
    quad = torch.arange(quads, device=device).view(1, 1, 1, -1)
    block = (((c * height + i) * quads + quad) & _WORD).expand(n, -1, -1, -1)
    ids = sample_ids.view(-1, 1, 1, 1).expand_as(block)
    words = philox(block, torch.full_like(block, _PIXELS), ids & _WORD, ids >> 32, seed & _WORD, seed >> 32)
    word = torch.stack(words, -1).flatten(-2)[..., :width]

    base = intensity.view(n, channels, 1, 1).expand_as(word)
    amount = level.view(n, 1, 1, 1)
    which = kind.view(n, 1, 1, 1)
    z = normals(word)
    salt = torch.where(uniform24(word) < amount, (word & 1).float(), base)
    value = torch.where(which == SALT_AND_PEPPER, salt, base)
    value = torch.where(which == GAUSSIAN, base + amount * z, value)
    value = torch.where(which == SPECKLE, base + (base * amount) * z, value).clamp(0.0, 1.0)
    if images.dtype == torch.uint8:
        stored = (value * 255.0 + 0.5).to(torch.int32).to(torch.uint8)
    else:
        stored = _between(low, high, value).to(images.dtype)
    row = torch.arange(height, device=device).view(1, 1, -1, 1)
    column = torch.arange(width, device=device).view(1, 1, 1, -1)
    top, left, bottom, right = (boxes[:, k].view(-1, 1, 1, 1) for k in range(4))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    out.copy_(torch.where(inside, stored, out))


# -- batch triplet loss --------------------------------------------------------------------------------

# As in csrc/core/mining.h.
SQUARED, EUCLIDEAN, COSINE = 0, 1, 2
ALL, VIOLATING, SEMIHARD, SEMIHARD_RANDOM, HARDEST = range(5)
POSITIVE_PAIRS, NEGATIVE_PAIRS, MINED_POSITIVE, MINED_NEGATIVE, ACTIVE_POSITIVE, ACTIVE_NEGATIVE = range(0, 18, 3)
CANDIDATES, VIOLATING_TRIPLETS, HARD_TRIPLETS, LOSS, SLOTS = 18, 19, 20, 21, 22
_TRIPLET = 2


def center_rows(rows: Tensor, mean: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    if distance == EUCLIDEAN:
        return squares.sqrt()
    if distance == COSINE:
        zero = (a_squares[:, None] < 0) | (b_squares < 0)
        return torch.where(zero, 1.0, squares * 0.5)
    return squares


def _moment(values: Tensor, weights: Tensor) -> Tensor:
    weight, wide = weights.double().sum(), values.double()
    # Shifted by the mean: where nothing has weight, 0 / 1 and not 0 / 0.
    mean = torch.where(weights > 0, wide * weights, 0.0).sum() / weight.clamp(min=1)
    apart = torch.where(weights > 0, weights * (wide - mean).square(), 0.0).sum()
    return torch.stack((weight, mean, apart))


def draw_negatives(anchor: Tensor, positive: Tensor, counts: Tensor, seed: int, step: int) -> Tensor:
    """Which of its semi-hard negatives each pair takes, from (seed, step, pair) alone."""
    stream, steps = torch.full_like(positive, _TRIPLET), torch.full_like(positive, step)
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
    """Counts (-w for positive pairs, w for negative ones), totals, nearest and histogram."""
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
    for k in range(int((stop - start).max()) if rows else 0):  # the k-th positive of every anchor at once
        p = members[(start + k).clamp(max=max(columns - 1, 0))]
        used = (start + k < stop) & ((p != anchor) | (not own))
        near = d[anchor, p][:, None]
        violates = (negative < near + offset) & used[:, None]
        is_hard = violates & (negative <= near)
        violating, hard = violating + violates.sum(), hard + is_hard.sum()
        chosen = violates & ~is_hard if mining in (SEMIHARD, SEMIHARD_RANDOM) else violates
        if mining == SEMIHARD_RANDOM:
            pick = draw_negatives(anchor, p, chosen.sum(1), seed, step)
            chosen &= chosen.cumsum(1) == pick[:, None] + 1
        an += chosen
        ap[anchor, p] += chosen.sum(1)
    mined: tuple[Tensor, Tensor] | None = None
    everything = (torch.where(is_positive, n_negative[:, None], 0), torch.where(is_negative, n_positive[:, None], 0))
    if mining == ALL:
        if hinge:
            mined = everything
        else:
            ap, an = everything
    elif mining == HARDEST:
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

    for at, weights in ((ACTIVE_POSITIVE, ap), (ACTIVE_NEGATIVE, an), (POSITIVE_PAIRS, is_positive.long())):
        put(at, weights)
    if mined is None:
        totals[MINED_POSITIVE:ACTIVE_POSITIVE] = totals[ACTIVE_POSITIVE:CANDIDATES]
    else:
        put(MINED_POSITIVE, mined[0])
        put(MINED_NEGATIVE, mined[1])
    nearest, histogram = d.new_empty((2, 0)), torch.zeros((2, 0), dtype=torch.int64, device=device)
    if statistics:
        put(NEGATIVE_PAIRS, is_negative.long())
        totals[CANDIDATES] = (n_positive * n_negative).sum()
        totals[VIOLATING_TRIPLETS], totals[HARD_TRIPLETS] = violating, hard
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
    totals[LOSS] = _triplet_loss(totals, hinge, margin, beta)
    return (an - ap).int(), totals, nearest, histogram


def _triplet_loss(totals: Tensor, hinge: bool, margin: float, beta: float) -> Tensor:
    n = totals[MINED_POSITIVE]
    apart = totals[ACTIVE_POSITIVE + 1] - totals[ACTIVE_NEGATIVE + 1] + margin
    if hinge:
        loss = totals[ACTIVE_POSITIVE] / n.clamp(min=1) * apart
    else:
        spread = (totals[ACTIVE_POSITIVE + 2] + totals[ACTIVE_NEGATIVE + 2]) / n.clamp(min=1)
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
    n = totals[MINED_POSITIVE]
    per = torch.where(n > 0, 1.0 / n, 0.0)
    beta = 0.0 if hinge else beta
    mean = torch.where(counts < 0, totals[ACTIVE_POSITIVE + 1], totals[ACTIVE_NEGATIVE + 1])
    slope = counts.abs() * (2 * beta * per) * (d - mean) - counts * ((1 - beta) * per)
    if distance == EUCLIDEAN:
        slope = torch.where(d > 0, slope / (2 * d), 0.0)
    elif distance == COSINE:
        slope = torch.where((a_squares[:, None] < 0) | (b_squares < 0), 0.0, slope * 0.5)
    if own:
        slope = slope + slope.T
    matrix = -2 * slope
    row_sums, column_sums = -matrix.sum(1), -matrix.sum(0)
    if own:
        matrix.diagonal().copy_(row_sums)
        return matrix.to(d.dtype), d.new_empty(0), d.new_empty(0)
    return matrix.to(d.dtype), row_sums.to(d.dtype), column_sums.to(d.dtype)
