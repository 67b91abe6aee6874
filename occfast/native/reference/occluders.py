"""Twins of the ops of the noisy occluders, and Philox."""

from __future__ import annotations

import torch
from torch import Tensor

from ..enums import NOT_OCCLUDED, NoiseKind, Stream

_WORD = 0xFFFFFFFF


def philox(x: Tensor, y: Tensor, z: Tensor, w: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
    """Return the words of Philox 4x32-10 for int64 tensors that hold 32-bit words."""
    for _ in range(10):
        a, b = 0xD2511F53 * x, 0xCD9E8D57 * z  # int64 wraps, and the low 64 bits are right
        x, y, z, w = ((b >> 32 & _WORD) ^ y ^ low, b & _WORD, (a >> 32 & _WORD) ^ w ^ high, a & _WORD)
        low, high = low + 0x9E3779B9 & _WORD, high + 0xBB67AE85 & _WORD
    return x, y, z, w


def uniform24(word: Tensor) -> Tensor:
    """Convert 32-bit words to float32 in [0, 1), from their high 24 bits."""
    return (word >> 8).float() * 2.0**-24


def uniform53(high: Tensor, low: Tensor) -> Tensor:
    """Convert pairs of 32-bit words to float64 in [0, 1), with 53 random bits."""
    return ((high << 21) + (low >> 11)).double() * 2.0**-53


def _f32(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _polynomial(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = _f32(coefficients[0], t).expand_as(t)
    for c in coefficients[1:]:
        value = value * t + _f32(c, t)
    return value


# Printed by tools/fit_normal.py.
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
_CENTER = (
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
    """Compute the natural logarithm of positive float32 as the kernels do, bit for bit."""
    bits = x.view(torch.int32) + (0x3F800000 - 0x3F3504F3)
    e = ((bits >> 23) - 127).float()
    d = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    return _polynomial(d, _LOG) * d + e * _f32(0.693147181, x)


def normals(words: Tensor) -> Tensor:
    """Convert 32-bit words to standard normal float32 as the kernels do."""
    p = ((words >> 9).float() + 0.5) * 2.0**-24
    x = 1.0 - 2.0 * p
    w = -natural_log(4.0 * p * (1.0 - p))
    # PyTorch's sqrt of float32 on a CPU may be off by one unit. The sqrt of float64 rounds to the right float32.
    root = w.clamp(min=0).double().sqrt().float()
    tail = _polynomial(root - 3.0, _TAIL)
    z = torch.where(w < 5.0, _polynomial(w - 2.5, _CENTER), tail) * x
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
    """Draw a box, a kind of noise, a level and an intensity for each sample."""
    low, high = seed & _WORD, seed >> 32
    zero = torch.zeros_like(sample_ids)
    id_low, id_high = sample_ids & _WORD, sample_ids >> 32

    def words(block: int) -> tuple[Tensor, ...]:
        return philox(zero + block, zero + Stream.OCCLUDER, id_low, id_high, low, high)

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
    """Copy images to ``out`` with the drawn occluders painted over them."""
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
    words = philox(block, torch.full_like(block, Stream.PIXELS), ids & _WORD, ids >> 32, seed & _WORD, seed >> 32)
    word = torch.stack(words, -1).flatten(-2)[..., :width]

    base = intensity.view(n, channels, 1, 1).expand_as(word)
    amount = level.view(n, 1, 1, 1)
    which = kind.view(n, 1, 1, 1)
    z = normals(word)
    salt = torch.where(uniform24(word) < amount, (word & 1).float(), base)
    value = torch.where(which == NoiseKind.SALT_AND_PEPPER, salt, base)
    value = torch.where(which == NoiseKind.GAUSSIAN, base + amount * z, value)
    value = torch.where(which == NoiseKind.SPECKLE, base + (base * amount) * z, value).clamp(0.0, 1.0)
    if images.dtype == torch.uint8:
        stored = (value * 255.0 + 0.5).to(torch.int32).to(torch.uint8)
    else:
        stored = _between(low, high, value).to(images.dtype)
    row = torch.arange(height, device=device).view(1, 1, -1, 1)
    column = torch.arange(width, device=device).view(1, 1, 1, -1)
    top, left, bottom, right = (boxes[:, k].view(-1, 1, 1, 1) for k in range(4))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    out.copy_(torch.where(inside, stored, out))
