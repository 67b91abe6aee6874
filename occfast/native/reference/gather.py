"""Twins of the ops of the incremental sweep."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Gather windows [M, C, height, width] from maps, with patches in place of what they cover."""
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
    """Convolve gathered windows with packed weights."""
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
    """Gather windows [E, C, height, width] of occluded maps, which are assembled from pieces.

    A window shows ``full`` inside the occluded rectangle, strips and corners at its edges, and ``maps`` outside.
    """
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
