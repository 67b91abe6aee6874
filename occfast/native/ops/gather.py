"""Windows of occluded feature maps, convolved on the way where the CPU can."""

from __future__ import annotations

import functools
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
    expect_positions,
    expect_shape,
    module_for,
    register,
)

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@functools.lru_cache(maxsize=64)
def _bits(value: float, dtype: torch.dtype) -> int:
    """The bits of a number in a dtype."""
    as_integer = int(torch.tensor(value, dtype=dtype).view(_BITS[dtype]))
    return as_integer % (1 << 8 * torch.empty((), dtype=dtype).element_size())


def _gather_windows(
    maps: Tensor,
    images: Tensor,
    origins: Tensor,
    height: int,
    width: int,
    patches: Tensor | None,
    patch_origins: Tensor | None,
    padding: float,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    channels: int = 0,
    geometry: list[int] | None = None,
) -> Tensor:
    expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", list(maps.shape))
    expect_dtype(maps, "maps", *_BITS)
    expect_dtype(images, "images", torch.int64)
    expect(images.dim() == 1, "images", "one dimension", list(images.shape))
    count = images.shape[0]
    expect_dtype(origins, "origins", torch.int64)
    expect_shape(origins, "origins", (count, 2))
    expect(height >= 1 and width >= 1, "height, width", "numbers of at least 1", (height, width))
    expect(
        (patches is None) == (patch_origins is None),
        "patch_origins",
        "a tensor with patches, None without",
        patch_origins,
    )
    if patches is not None and patch_origins is not None:
        expect_dtype(patches, "patches", maps.dtype)
        expect(
            patches.dim() == 4 and patches.shape[:2] == (count, maps.shape[1]),
            "patches",
            f"shape [{count}, {maps.shape[1]}, h, w]",
            list(patches.shape),
        )
        expect_dtype(patch_origins, "patch_origins", torch.int64)
        expect_shape(patch_origins, "patch_origins", (count, 2))
    expect_device(maps.device, images=images, origins=origins, patches=patches, patch_origins=patch_origins)
    expect_positions(images, maps.shape[0])
    conv = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
    native = module_for(maps.device)
    if native is None:
        out = reference.gather_windows(maps, images, origins, height, width, patches, patch_origins, padding)
        if weights is not None and bias is not None:
            out = reference.convolve(out, weights, bias, channels, *conv)
        return out.contiguous(memory_format=torch.channels_last)
    maps = maps.contiguous(memory_format=torch.channels_last)
    images, origins = images.contiguous(), origins.contiguous()
    shape = _gathered(maps, count, height, width, channels, geometry)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
    patch, patch_origin = 0, 0
    patch_size: tuple[int, ...] = (0, 0)
    if patches is not None and patch_origins is not None:
        patches = patches.contiguous(memory_format=torch.channels_last)
        patch_origins = patch_origins.contiguous()
        patch, patch_origin, patch_size = patches.data_ptr(), patch_origins.data_ptr(), tuple(patches.shape[-2:])
    call(
        native.gather_windows,
        maps.device,
        maps.data_ptr(),
        patch,
        out.data_ptr(),
        images.data_ptr(),
        origins.data_ptr(),
        patch_origin,
        count,
        tuple(maps.shape),
        (height, width, *patch_size),
        _bits(padding, maps.dtype),
        maps.element_size(),
        OUTPUT_DTYPES.get(maps.dtype, 0),
        _conv_arguments(native, maps, weights, bias, channels, geometry),
    )
    return out


def _conv_geometry(
    maps: Tensor,
    height: int,
    width: int,
    weights: Tensor | None,
    bias: Tensor | None,
    channels: int,
    geometry: list[int] | None,
) -> list[Any]:
    """Check a convolution; kernel, stride, dilation, relu.  Empty: there is none."""
    if weights is None:
        return []
    expect(
        geometry is not None and len(geometry) == 7 and min(geometry[:6]) >= 1,
        "geometry",
        "kernel, stride and dilation (rows, columns each) and whether to rectify",
        geometry,
    )
    assert geometry is not None and bias is not None
    kernel, stride, dilation = geometry[0:2], geometry[2:4], geometry[4:6]
    expect_dtype(maps, "maps", *OUTPUT_DTYPES)
    expect_dtype(weights, "weights", maps.dtype)
    expect_dtype(bias, "bias", maps.dtype)
    products = kernel[0] * kernel[1] * maps.shape[1]
    expect(
        weights.dim() == 3 and weights.is_contiguous() and weights.shape[1] == products,
        "weights",
        f"shape [blocks, {products}, block]",
        list(weights.shape),
    )
    blocks, _, block = weights.shape
    expect((blocks - 1) * block < channels <= blocks * block, "channels", f"a number for {blocks} blocks", channels)
    expect_shape(bias, "bias", (blocks, block))
    expect(bias.is_contiguous(), "bias", "a contiguous tensor", bias.stride())
    expect(
        all((k - 1) * d < s for k, d, s in zip(kernel, dilation, (height, width), strict=True)),
        "height, width",
        "windows as large as the kernel",
        (height, width),
    )
    expect_device(maps.device, weights=weights, bias=bias)
    return [kernel, stride, dilation, bool(geometry[6])]


def _conv_arguments(
    native: Any, maps: Tensor, weights: Tensor | None, bias: Tensor | None, channels: int, geometry: list[int] | None
) -> list[int]:
    if weights is None or bias is None or geometry is None:
        return []
    block = native.convolution_block(OUTPUT_DTYPES[maps.dtype])
    expect(weights.shape[2] == block, "weights", f"blocks of {block} channels", weights.shape[2])
    return [weights.data_ptr(), bias.data_ptr(), channels, *geometry]


def _gathered(
    maps: Tensor, entries: int, height: int, width: int, channels: int, geometry: list[int] | None
) -> tuple[int, int, int, int]:
    if geometry is None:
        return (entries, maps.shape[1], height, width)
    reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(geometry[:2], geometry[4:6], strict=True)]
    return (entries, channels, (height - reach[0]) // geometry[2] + 1, (width - reach[1]) // geometry[3] + 1)


def convolution_block(tensor: Tensor) -> int:
    """Output channels of a block of packed weights on a tensor's device; 0: no native convolution is there."""
    native = module_for(tensor.device)
    return (
        0
        if native is None or tensor.dtype not in OUTPUT_DTYPES
        else int(native.convolution_block(OUTPUT_DTYPES[tensor.dtype]))
    )


def pack_convolution(weight: Tensor, bias: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """Weights [O, C, kh, kw] and bias [O] as ``gather_windows`` takes them.

    [blocks, kh kw C, block] and [blocks, block], filled up with zeros.
    """
    channels, blocks = weight.shape[0], -(-weight.shape[0] // block)
    flat = weight.new_zeros((blocks * block, weight[0].numel()))
    flat[:channels] = weight.permute(0, 2, 3, 1).reshape(channels, -1)
    packed_bias = weight.new_zeros(blocks * block)
    if bias is not None:
        packed_bias[:channels] = bias
    return flat.view(blocks, block, -1).permute(0, 2, 1).contiguous(), packed_bias.view(blocks, block)


def _fake_gather_windows(
    maps: Tensor,
    images: Tensor,
    origins: Tensor,
    height: int,
    width: int,
    patches: Tensor | None,
    patch_origins: Tensor | None,
    padding: float,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    channels: int = 0,
    geometry: list[int] | None = None,
) -> Tensor:
    out = maps.new_empty(_gathered(maps, images.shape[0], height, width, channels, geometry))
    return out.contiguous(memory_format=torch.channels_last)


def _gather_pieces(
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
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    channels: int = 0,
    geometry: list[int] | None = None,
) -> Tensor:
    expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", list(maps.shape))
    expect_dtype(maps, "maps", *_BITS)
    _, depth, map_height, map_width = maps.shape
    expect_shape(full, "full", tuple(maps.shape))
    for name, index in (("images", images), ("rows", rows), ("columns", columns)):
        expect_dtype(index, name, torch.int64)
        expect_shape(index, name, (images.numel(),))
    count, entries = images.numel(), origins.shape[0]
    expect_dtype(origins, "origins", torch.int64)
    expect_shape(origins, "origins", (entries, 2))
    expect(count > 0 and entries % count == 0, "origins", f"a multiple of {count} windows", entries)
    for name, cuts in (("row_cuts", row_cuts), ("column_cuts", column_cuts)):
        expect_dtype(cuts, name, torch.int64)
        expect_shape(cuts, name, (cuts.shape[0], 8))
    expect(height >= 1 and width >= 1, "height, width", "numbers of at least 1", (height, width))
    expect(
        len(edges) == 4 and all(f >= 0 and f + n <= 2 for f, n in zip(edges[:2], edges[2:], strict=True)),
        "edges",
        "first edges (rows, columns) and how many",
        edges,
    )
    for name, piece, expected in (
        ("row_strips", row_strips, (2 * row_cuts.shape[0], depth, None, map_width)),
        ("column_strips", column_strips, (2 * column_cuts.shape[0], depth, map_height, None)),
        ("corners", corners, (edges[2] * edges[3] * count, depth, None, None)),
    ):
        if piece is not None:
            fits = piece.dim() == 4 and all(s in (None, p) for s, p in zip(expected, piece.shape, strict=True))
            expect(fits, name, f"shape {list(expected)}", list(piece.shape))
    held = {"full": full, "row_strips": row_strips, "column_strips": column_strips, "corners": corners}
    for name, piece in held.items():
        if piece is not None:
            expect_dtype(piece, name, maps.dtype)
    expect_device(
        maps.device,
        full=full,
        images=images,
        rows=rows,
        columns=columns,
        row_cuts=row_cuts,
        column_cuts=column_cuts,
        origins=origins,
        row_strips=row_strips,
        column_strips=column_strips,
        corners=corners,
    )
    expect_positions(images, maps.shape[0])
    expect_positions(rows, row_cuts.shape[0])
    expect_positions(columns, column_cuts.shape[0])
    conv = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
    native = module_for(maps.device)
    if native is None:
        out = reference.gather_pieces(
            maps,
            full,
            images,
            rows,
            columns,
            row_cuts,
            column_cuts,
            origins,
            height,
            width,
            row_strips,
            column_strips,
            corners,
            edges,
            padding,
        )
        if weights is not None and bias is not None:
            out = reference.convolve(out, weights, bias, channels, *conv)
        return out.contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last
    maps, full = maps.contiguous(memory_format=layout), full.contiguous(memory_format=layout)
    pieces = [None if t is None else t.contiguous(memory_format=layout) for t in (row_strips, column_strips, corners)]
    indices = [t.contiguous() for t in (images, rows, columns, row_cuts, column_cuts, origins)]
    shape = _gathered(maps, entries, height, width, channels, geometry)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=layout)
    heights = [0 if t is None else t.shape[2] for t in pieces]
    widths = [0 if t is None else t.shape[3] for t in pieces]
    call(
        native.gather_pieces,
        maps.device,
        maps.data_ptr(),
        full.data_ptr(),
        *(0 if t is None else t.data_ptr() for t in pieces),
        out.data_ptr(),
        *(t.data_ptr() for t in indices),
        entries,
        count,
        tuple(maps.shape),
        (height, width, row_cuts.shape[0], heights[0], column_cuts.shape[0], widths[1], heights[2], widths[2]),
        (edges[0], edges[1], edges[3]),
        _bits(padding, maps.dtype),
        maps.element_size(),
        OUTPUT_DTYPES.get(maps.dtype, 0),
        _conv_arguments(native, maps, weights, bias, channels, geometry),
    )
    return out


def _fake_gather_pieces(
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
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    channels: int = 0,
    geometry: list[int] | None = None,
) -> Tensor:
    out = maps.new_empty(_gathered(maps, origins.shape[0], height, width, channels, geometry))
    return out.contiguous(memory_format=torch.channels_last)


#: ``(maps [N,C,H,W], images int64 [M], origins int64 [M,2], height, width, patches [M,C,h,w], patch_origins
#: int64 [M,2], padding) -> [M,C,height,width]`` channels_last: the window of map ``images[m]`` that begins at
#: (row, column) ``origins[m]``, with ``patches[m]`` laid over the map at ``patch_origins[m]`` and ``padding``
#: outside the map.  Maps and patches in channels_last are not copied.  With ``weights`` and ``bias`` from
#: :func:`pack_convolution` the windows are convolved on the way (CPU only) and [M,channels,h',w'] is returned;
#: ``geometry``: kernel, stride and dilation, rows and columns each, and 1 to rectify.
gather_windows = register(
    "gather_windows(Tensor maps, Tensor images, Tensor origins, int height, int width, Tensor? patches, "
    "Tensor? patch_origins, float padding, Tensor? weights=None, Tensor? bias=None, "
    "int channels=0, int[]? geometry=None) -> Tensor",
    _gather_windows,
    _fake_gather_windows,
)

#: As ``gather_windows``, from a map that is put together from pieces (``csrc/api.h``): clean ``maps`` and
#: fully occluded ``full`` [N,C,H,W]; ``row_strips`` [2R,C,h,W] and ``column_strips`` [2Q,C,H,w], first the
#: R (Q) of the occluder's first edge; ``corners`` [4M,C,h,w], top left, top right, bottom left, bottom right,
#: or only those of the ``edges``: the first row edge and column edge that are there, and how many.
#: Position m is on image ``images[m]``, grid row ``rows[m]``, column ``columns[m]``; window e belongs to
#: position e % M.  ``row_cuts`` int64 [R,8] and ``column_cuts`` [Q,8]: the fields of ``Cuts``.
gather_pieces = register(
    "gather_pieces(Tensor maps, Tensor full, Tensor images, Tensor rows, Tensor columns, Tensor row_cuts, "
    "Tensor column_cuts, Tensor origins, int height, int width, Tensor? row_strips, Tensor? column_strips, "
    "Tensor? corners, int[] edges, float padding, Tensor? weights=None, Tensor? bias=None, "
    "int channels=0, int[]? geometry=None) -> Tensor",
    _gather_pieces,
    _fake_gather_pieces,
)
