"""Ops of the incremental sweep: windows of occluded feature maps, and their convolution."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..enums import Dtype
from .common import (
    OUTPUT_DTYPES,
    address,
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
#: Of maps that a native convolution may exist for; the CPU has none of 16 bits.
_CONVOLVED = {**OUTPUT_DTYPES, torch.float16: Dtype.FLOAT16, torch.bfloat16: Dtype.BFLOAT16}


@functools.lru_cache(maxsize=64)
def _bits(value: float, dtype: torch.dtype) -> int:
    """Return the bits of a number in a dtype."""
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
    expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", maps.shape)
    expect_dtype(maps, "maps", *_BITS)
    expect_dtype(images, "images", torch.int64)
    expect(images.dim() == 1, "images", "one dimension", images.shape)
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
            patches.shape,
        )
        expect_dtype(patch_origins, "patch_origins", torch.int64)
        expect_shape(patch_origins, "patch_origins", (count, 2))
    expect_device(maps.device, images=images, origins=origins, patches=patches, patch_origins=patch_origins)
    expect_positions(images, maps.shape[0])
    checked = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
    native = module_for(maps.device)
    if native is None:
        out = reference.gather_windows(maps, images, origins, height, width, patches, patch_origins, padding)
        if weights is not None and bias is not None:
            out = reference.convolve(out, weights, bias, channels, *checked)
        return out.contiguous(memory_format=torch.channels_last)
    maps = maps.contiguous(memory_format=torch.channels_last)
    images, origins = images.contiguous(), origins.contiguous()
    shape = _gathered(maps, count, height, width, channels, geometry)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
    patch_height = patch_width = 0
    if patches is not None and patch_origins is not None:
        patches, patch_origins = patches.contiguous(memory_format=torch.channels_last), patch_origins.contiguous()
        patch_height, patch_width = patches.shape[-2:]
    windows = native.GatherWindows(
        maps=maps.data_ptr(),
        patches=address(patches),
        out=out.data_ptr(),
        images=images.data_ptr(),
        origins=origins.data_ptr(),
        patch_origins=address(patch_origins),
        count=count,
        shape=maps.shape,
        height=height,
        width=width,
        patch_height=patch_height,
        patch_width=patch_width,
        padding=_bits(padding, maps.dtype),
        itemsize=maps.element_size(),
    )
    if weights is None or bias is None or geometry is None:
        call(native, "gather_windows", maps.device, windows)
    else:
        conv = _convolution(native, maps, weights, bias, channels, geometry)
        call(native, "convolve_windows", maps.device, windows, conv)
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
    """Check a convolution and return [kernel, stride, dilation, relu], or [] without one."""
    if weights is None:
        return []
    expect(
        geometry is not None and len(geometry) == 7 and min(geometry[:6]) >= 1,
        "geometry",
        "kernel, stride and dilation (rows, columns each), and 1 to apply ReLU or 0",
        geometry,
    )
    assert geometry is not None and bias is not None
    kernel, stride, dilation = geometry[0:2], geometry[2:4], geometry[4:6]
    expect_dtype(weights, "weights", maps.dtype)
    expect_dtype(bias, "bias", maps.dtype)
    products = kernel[0] * kernel[1] * maps.shape[1]
    expect(
        weights.dim() == 3 and weights.is_contiguous() and weights.shape[1] == products,
        "weights",
        f"shape [blocks, {products}, block]",
        weights.shape,
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


def _convolution(native: Any, maps: Tensor, weights: Tensor, bias: Tensor, channels: int, geometry: list[int]) -> Any:
    block = native.convolution_block(dtype=_CONVOLVED[maps.dtype])
    if not block:
        expect_dtype(maps, "maps", *OUTPUT_DTYPES)
    expect(weights.shape[2] == block, "weights", f"blocks of {block} channels", weights.shape[2])
    if maps.device.type == "cuda":
        expect(weights.data_ptr() % 16 == 0, "weights", "an address divisible by 16", hex(weights.data_ptr()))
    return native.Convolution(
        weights=weights.data_ptr(),
        bias=bias.data_ptr(),
        dtype=_CONVOLVED[maps.dtype],
        channels=channels,
        kernel=geometry[0:2],
        stride=geometry[2:4],
        dilation=geometry[4:6],
        relu=bool(geometry[6]),
        tf32=rounds_to_tf32(maps.device, maps.dtype),
    )


def rounds_to_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether PyTorch's switches let convolutions on a device round a dtype to TF32 at present."""
    if device.type != "cuda" or dtype != torch.float32:
        return False
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(convolutions.fp32_precision == "tf32")


def _gathered(
    maps: Tensor, entries: int, height: int, width: int, channels: int, geometry: list[int] | None
) -> tuple[int, int, int, int]:
    if geometry is None:
        return (entries, maps.shape[1], height, width)
    reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(geometry[:2], geometry[4:6], strict=True)]
    return (entries, channels, (height - reach[0]) // geometry[2] + 1, (width - reach[1]) // geometry[3] + 1)


def convolution_block(tensor: Tensor) -> int:
    """Return the number of output channels of a block of packed weights.

    Args:
        tensor: A tensor of the dtype and on the device of the maps.

    Returns:
        0 if there is no native convolution: on a CPU for other dtypes than float32 and float64, and for the twins.
    """
    if tensor.device.type not in ("cpu", "cuda") or tensor.dtype not in _CONVOLVED:
        return 0
    native = module_for(tensor.device)
    return 0 if native is None else int(native.convolution_block(dtype=_CONVOLVED[tensor.dtype]))


def pack_convolution(weight: Tensor, bias: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    """Pack the weights of a convolution for :data:`gather_windows`.

    Args:
        weight: [O, C, kh, kw].
        bias: [O], or None.
        block: Output channels of a block, from :func:`convolution_block`.

    Returns:
        Weights [blocks, kh kw C, block] and bias [blocks, block], filled with zeros up to whole blocks.
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
    expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", maps.shape)
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
            expect(fits, name, f"shape {list(expected)}", piece.shape)
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
    checked = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
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
            out = reference.convolve(out, weights, bias, channels, *checked)
        return out.contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last
    maps, full = maps.contiguous(memory_format=layout), full.contiguous(memory_format=layout)
    row_strips, column_strips, corners = (
        None if t is None else t.contiguous(memory_format=layout) for t in (row_strips, column_strips, corners)
    )
    images, rows, columns = images.contiguous(), rows.contiguous(), columns.contiguous()
    row_cuts, column_cuts, origins = row_cuts.contiguous(), column_cuts.contiguous(), origins.contiguous()
    shape = _gathered(maps, entries, height, width, channels, geometry)
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=layout)
    (strip_height, _), (_, strip_width), (corner_height, corner_width) = (
        (0, 0) if t is None else t.shape[-2:] for t in (row_strips, column_strips, corners)
    )
    arguments = native.GatherPieces(
        maps=maps.data_ptr(),
        full=full.data_ptr(),
        row_strips=address(row_strips),
        column_strips=address(column_strips),
        corners=address(corners),
        out=out.data_ptr(),
        images=images.data_ptr(),
        rows=rows.data_ptr(),
        columns=columns.data_ptr(),
        row_cuts=row_cuts.data_ptr(),
        column_cuts=column_cuts.data_ptr(),
        origins=origins.data_ptr(),
        entries=entries,
        count=count,
        shape=maps.shape,
        height=height,
        width=width,
        strip_rows=row_cuts.shape[0],
        strip_height=strip_height,
        strip_columns=column_cuts.shape[0],
        strip_width=strip_width,
        corner_height=corner_height,
        corner_width=corner_width,
        first_edge=edges[:2],
        column_edges=edges[3],
        padding=_bits(padding, maps.dtype),
        itemsize=maps.element_size(),
    )
    if weights is None or bias is None or geometry is None:
        call(native, "gather_pieces", maps.device, arguments)
    else:
        conv = _convolution(native, maps, weights, bias, channels, geometry)
        call(native, "convolve_pieces", maps.device, arguments, conv)
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
#: outside the map. Maps and patches in channels_last are not copied. With ``weights`` and ``bias`` from
#: :func:`pack_convolution` the windows are convolved and [M,channels,h',w'] is returned. ``geometry`` holds kernel,
#: stride and dilation, rows and columns each, and 1 to apply ReLU. Where PyTorch's switches let convolutions of float32
#: on a GPU round to TF32, this one does, too.
gather_windows = register(
    "gather_windows(Tensor maps, Tensor images, Tensor origins, int height, int width, Tensor? patches, "
    "Tensor? patch_origins, float padding, Tensor? weights=None, Tensor? bias=None, "
    "int channels=0, int[]? geometry=None) -> Tensor",
    _gather_windows,
    _fake_gather_windows,
)

#: As ``gather_windows``, from a map that is assembled from pieces (``csrc/api.h``): clean ``maps`` and fully occluded
#: ``full`` [N,C,H,W]; ``row_strips`` [2R,C,h,W] and ``column_strips`` [2Q,C,H,w], the R (Q) of the first edge of the
#: occluder first; ``corners`` [4M,C,h,w] in the order top left, top right, bottom left, bottom right. ``edges`` holds
#: the first row edge and the first column edge of the corners that are given, and their numbers. Position m is on
#: image ``images[m]``, in grid row ``rows[m]`` and column ``columns[m]``. Window e belongs to position e % M.
#: ``row_cuts`` int64 [R,8] and ``column_cuts`` [Q,8] hold the fields of ``Cuts``.
gather_pieces = register(
    "gather_pieces(Tensor maps, Tensor full, Tensor images, Tensor rows, Tensor columns, Tensor row_cuts, "
    "Tensor column_cuts, Tensor origins, int height, int width, Tensor? row_strips, Tensor? column_strips, "
    "Tensor? corners, int[] edges, float padding, Tensor? weights=None, Tensor? bias=None, "
    "int channels=0, int[]? geometry=None) -> Tensor",
    _gather_pieces,
    _fake_gather_pieces,
)
