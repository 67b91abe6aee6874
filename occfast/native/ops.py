"""The native ops: schemas, checks, fakes and dispatch.

Every op is registered with ``torch.library`` under ``torch.ops.occfast``, for CPU and CUDA, so
``torch.compile`` and ``torch.library.opcheck`` know it.  Arguments are checked here, once for all
backends; the native modules get raw addresses (``csrc/api.h``).  Importing this compiles nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import loader, reference

SCORES = {"error": 0, "score_drop": 1, "similarity_drop": 2}
KINDS = {"salt_and_pepper": 0, "speckle": 1, "gaussian": 2, "none": 3}
IMAGE_DTYPES = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
_OUTPUT_DTYPES = {torch.float32: 3, torch.float64: 4}

_library = torch.library.Library("occfast", "DEF")


def _register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = schema.split("(", 1)[0]
    _library.define(schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"occfast::{name}", fake, lib=_library)
    return getattr(torch.ops.occfast, name).default


# -- helpers -------------------------------------------------------------------------------------------


def _native(device: torch.device) -> Any:
    """The module for a device, or None where the PyTorch twins are to run."""
    if loader.requested() == "reference":
        return None
    return loader.module("cuda" if device.type == "cuda" else "cpu")


def _call(function: Callable[..., None], device: torch.device, *arguments: Any) -> None:
    """Run a native function with PyTorch's threads, or on PyTorch's current stream of that device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            function(*arguments, 1, torch.cuda.current_stream(device).cuda_stream)
    else:
        with contextlib.nullcontext():
            function(*arguments, torch.get_num_threads(), 0)


def _expect(condition: bool, name: str, expected: str, got: Any) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def _expect_dtype(tensor: Tensor, name: str, *dtypes: torch.dtype) -> None:
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def _expect_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    _expect(tuple(tensor.shape) == shape, name, f"shape {list(shape)}", list(tensor.shape))


def _expect_device(device: torch.device, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            _expect(tensor.device == device, name, f"a tensor on {device}", tensor.device)


def is_channels_last(images: Tensor) -> bool:
    """Whether a 4-D tensor is stored as NHWC (and is not plain NCHW as well)."""
    return not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def dense(images: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The images in one of the two layouts that the kernels know, copied only if they are in neither."""
    if is_channels_last(images):
        return images, torch.channels_last
    return images.contiguous(), torch.contiguous_format


def _strides(shape: torch.Size, layout: torch.memory_format) -> tuple[int, int, int, int]:
    # Computed: PyTorch leaves the strides of dimensions of size 1 open.
    _, c, h, w = shape
    if layout == torch.channels_last:
        return (c * h * w, 1, w * c, c)
    return (c * h * w, h * w, w, 1)


# -- occlude_positions ---------------------------------------------------------------------------------


def _occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    _expect(images.dim() == 4, "images", "shape [N, C, H, W]", list(images.shape))
    _expect(images.element_size() in (1, 2, 4, 8), "images", "elements of 1, 2, 4 or 8 bytes", images.dtype)
    _expect_dtype(fill, "fill", images.dtype)
    _expect(fill.dim() == 4, "fill", "four dimensions", list(fill.shape))
    _expect(
        all(f in (1, s) for f, s in zip(fill.shape, images.shape, strict=True)),
        "fill", f"a shape that broadcasts to {list(images.shape)}", list(fill.shape),
    )  # fmt: skip
    _expect_dtype(positions, "positions", torch.int64)
    _expect(positions.dim() == 1, "positions", "one dimension", list(positions.shape))
    _expect(len(grid) == 8 and min(grid[0], grid[1], grid[4], grid[5], grid[6], grid[7]) >= 1, "grid",
            "rows, columns, first row and column, steps and occluder size", grid)  # fmt: skip
    _expect_device(images.device, fill=fill, positions=positions)
    _check_positions(positions, images.shape[0] * grid[0] * grid[1])
    native = _native(images.device)
    images, layout = dense(images)
    if native is None:
        return reference.occlude_positions(images, fill, positions, grid).contiguous(memory_format=layout)
    positions = positions.contiguous()
    out = torch.empty((positions.numel(), *images.shape[1:]), dtype=images.dtype, device=images.device,
                      memory_format=layout)  # fmt: skip
    fill_strides = tuple(0 if size == 1 else step for size, step in zip(fill.shape, fill.stride(), strict=True))
    _call(native.occlude_positions, images.device, images.data_ptr(), out.data_ptr(), fill.data_ptr(),
          positions.data_ptr(), positions.numel(), images.element_size(), tuple(images.shape),
          _strides(images.shape, layout), fill_strides, grid)  # fmt: skip
    return out


def _check_positions(positions: Tensor, end: int) -> None:
    # On a GPU the kernel traps instead: looking here would wait for the device.
    if positions.device.type == "cpu" and positions.numel():
        low, high = torch.aminmax(positions)
        _expect(int(low) >= 0 and int(high) < end, "positions", f"values in [0, {end})", f"[{low}, {high}]")


def _fake_occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    layout = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return images.new_empty((positions.shape[0], *images.shape[1:])).contiguous(memory_format=layout)


# -- sweep_score ---------------------------------------------------------------------------------------


def _sweep_score(
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
    device = outputs.device
    _expect(outputs.dim() == 2, "outputs", "shape [positions, classes]", list(outputs.shape))
    _expect_dtype(outputs, "outputs", *_OUTPUT_DTYPES)
    _expect_dtype(positions, "positions", torch.int64)
    _expect_shape(positions, "positions", (outputs.shape[0],))
    _expect(kind in SCORES.values(), "kind", f"one of {sorted(SCORES.values())}", kind)
    _expect_dtype(scores, "scores", torch.float64)
    _expect(scores.dim() == 2 and scores.shape[1] == per_image and scores.is_contiguous(), "scores",
            f"a contiguous tensor of shape [images, {per_image}]", list(scores.shape))  # fmt: skip
    images, classes = scores.shape[0], outputs.shape[1]
    _expect_dtype(bad, "bad", torch.int32)
    _expect_shape(bad, "bad", (1,))
    if kind == SCORES["similarity_drop"]:
        _expect(references is not None, "references", "a tensor for the similarity", None)
        assert references is not None
        _expect_dtype(references, "references", torch.float64)
        _expect_shape(references, "references", (images, classes))
    else:
        _expect(labels is not None, "labels", "a tensor for this score", None)
        assert labels is not None
        _expect_dtype(labels, "labels", torch.int64)
        _expect_shape(labels, "labels", (images,))
        if device.type == "cpu" and images:
            low, high = torch.aminmax(labels)
            _expect(int(low) >= 0 and int(high) < classes, "labels", f"values in [0, {classes})", f"[{low}, {high}]")
    if kind != SCORES["error"]:
        _expect(baseline is not None, "baseline", "a tensor for this score", None)
        assert baseline is not None
        _expect_dtype(baseline, "baseline", torch.float64)
        _expect_shape(baseline, "baseline", (images,))
    _expect_device(device, positions=positions, scores=scores, bad=bad, labels=labels, references=references,
                   baseline=baseline)  # fmt: skip
    _check_positions(positions, images * per_image)
    native = _native(device)
    if native is None:
        reference.sweep_score(outputs, positions, per_image, kind, scores, bad, labels, references, baseline)
        return
    outputs, positions = outputs.contiguous(), positions.contiguous()
    held = [None if t is None else t.contiguous() for t in (labels, references, baseline)]
    _call(native.sweep_score, device, outputs.data_ptr(), _OUTPUT_DTYPES[outputs.dtype], positions.data_ptr(),
          outputs.shape[0], classes, images, per_image, kind, *(0 if t is None else t.data_ptr() for t in held),
          scores.data_ptr(), bad.data_ptr())  # fmt: skip


# -- sweep_accumulate ----------------------------------------------------------------------------------


def _sweep_accumulate(scores: Tensor, total: Tensor, squares: Tensor) -> None:
    _expect_dtype(scores, "scores", torch.float64)
    _expect(scores.dim() == 2, "scores", "shape [images, positions]", list(scores.shape))
    for name, tensor in (("total", total), ("squares", squares)):
        _expect_dtype(tensor, name, torch.float64)
        _expect_shape(tensor, name, (scores.shape[1],))
        _expect(tensor.is_contiguous(), name, "a contiguous tensor", tensor.stride())
    _expect_device(scores.device, total=total, squares=squares)
    native = _native(scores.device)
    if native is None:
        reference.sweep_accumulate(scores, total, squares)
        return
    scores = scores.contiguous()
    _call(native.sweep_accumulate, scores.device, scores.data_ptr(), scores.shape[0], scores.shape[1],
          total.data_ptr(), squares.data_ptr())  # fmt: skip


# -- gather_windows ------------------------------------------------------------------------------------

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32,
         torch.float64: torch.int64}  # fmt: skip


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
    _expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", list(maps.shape))
    _expect_dtype(maps, "maps", *_BITS)
    _expect_dtype(images, "images", torch.int64)
    _expect(images.dim() == 1, "images", "one dimension", list(images.shape))
    count = images.shape[0]
    _expect_dtype(origins, "origins", torch.int64)
    _expect_shape(origins, "origins", (count, 2))
    _expect(height >= 1 and width >= 1, "height, width", "numbers of at least 1", (height, width))
    _expect((patches is None) == (patch_origins is None), "patch_origins", "a tensor with patches, None without",
            patch_origins)  # fmt: skip
    if patches is not None and patch_origins is not None:
        _expect_dtype(patches, "patches", maps.dtype)
        _expect(patches.dim() == 4 and patches.shape[:2] == (count, maps.shape[1]), "patches",
                f"shape [{count}, {maps.shape[1]}, h, w]", list(patches.shape))  # fmt: skip
        _expect_dtype(patch_origins, "patch_origins", torch.int64)
        _expect_shape(patch_origins, "patch_origins", (count, 2))
    _expect_device(maps.device, images=images, origins=origins, patches=patches, patch_origins=patch_origins)
    _check_positions(images, maps.shape[0])
    conv = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
    native = _native(maps.device)
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
    _call(native.gather_windows, maps.device, maps.data_ptr(), patch, out.data_ptr(), images.data_ptr(),
          origins.data_ptr(), patch_origin, count, tuple(maps.shape), (height, width, *patch_size),
          _bits(padding, maps.dtype), maps.element_size(), _OUTPUT_DTYPES.get(maps.dtype, 0),
          _conv_arguments(native, maps, weights, bias, channels, geometry))  # fmt: skip
    return out


def _conv_geometry(maps: Tensor, height: int, width: int, weights: Tensor | None, bias: Tensor | None, channels: int,
                   geometry: list[int] | None) -> list[Any]:  # fmt: skip
    """Check a convolution; kernel, stride, dilation, relu.  Empty: there is none."""
    if weights is None:
        return []
    _expect(geometry is not None and len(geometry) == 7 and min(geometry[:6]) >= 1, "geometry",
            "kernel, stride and dilation (rows, columns each) and whether to rectify", geometry)  # fmt: skip
    assert geometry is not None and bias is not None
    kernel, stride, dilation = geometry[0:2], geometry[2:4], geometry[4:6]
    _expect_dtype(maps, "maps", *_OUTPUT_DTYPES)
    _expect_dtype(weights, "weights", maps.dtype)
    _expect_dtype(bias, "bias", maps.dtype)
    products = kernel[0] * kernel[1] * maps.shape[1]
    _expect(weights.dim() == 3 and weights.is_contiguous() and weights.shape[1] == products, "weights",
            f"shape [blocks, {products}, block]", list(weights.shape))  # fmt: skip
    blocks, _, block = weights.shape
    _expect((blocks - 1) * block < channels <= blocks * block, "channels", f"a number for {blocks} blocks", channels)
    _expect_shape(bias, "bias", (blocks, block))
    _expect(bias.is_contiguous(), "bias", "a contiguous tensor", bias.stride())
    _expect(all((k - 1) * d < s for k, d, s in zip(kernel, dilation, (height, width), strict=True)), "height, width",
            "windows as large as the kernel", (height, width))  # fmt: skip
    _expect_device(maps.device, weights=weights, bias=bias)
    return [kernel, stride, dilation, bool(geometry[6])]


def _conv_arguments(native: Any, maps: Tensor, weights: Tensor | None, bias: Tensor | None, channels: int,
                    geometry: list[int] | None) -> list[int]:  # fmt: skip
    if weights is None or bias is None or geometry is None:
        return []
    block = native.convolution_block(_OUTPUT_DTYPES[maps.dtype])
    _expect(weights.shape[2] == block, "weights", f"blocks of {block} channels", weights.shape[2])
    return [weights.data_ptr(), bias.data_ptr(), channels, *geometry]


def _gathered(maps: Tensor, entries: int, height: int, width: int, channels: int,
              geometry: list[int] | None) -> tuple[int, int, int, int]:  # fmt: skip
    if geometry is None:
        return (entries, maps.shape[1], height, width)
    reach = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(geometry[:2], geometry[4:6], strict=True)]
    return (entries, channels, (height - reach[0]) // geometry[2] + 1, (width - reach[1]) // geometry[3] + 1)


def convolution_block(tensor: Tensor) -> int:
    """Output channels of a block of packed weights on a tensor's device; 0: no native convolution is there."""
    native = _native(tensor.device)
    return 0 if native is None or tensor.dtype not in _OUTPUT_DTYPES else int(
        native.convolution_block(_OUTPUT_DTYPES[tensor.dtype])
    )  # fmt: skip


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


def _fake_gather_windows(maps: Tensor, images: Tensor, origins: Tensor, height: int, width: int, patches: Tensor | None,
                         patch_origins: Tensor | None, padding: float, weights: Tensor | None = None,
                         bias: Tensor | None = None, channels: int = 0,
                         geometry: list[int] | None = None) -> Tensor:  # fmt: skip
    out = maps.new_empty(_gathered(maps, images.shape[0], height, width, channels, geometry))
    return out.contiguous(memory_format=torch.channels_last)


# -- gather_pieces -------------------------------------------------------------------------------------


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
    _expect(maps.dim() == 4, "maps", "shape [N, C, H, W]", list(maps.shape))
    _expect_dtype(maps, "maps", *_BITS)
    _, depth, map_height, map_width = maps.shape
    _expect_shape(full, "full", tuple(maps.shape))
    for name, index in (("images", images), ("rows", rows), ("columns", columns)):
        _expect_dtype(index, name, torch.int64)
        _expect_shape(index, name, (images.numel(),))
    count, entries = images.numel(), origins.shape[0]
    _expect_dtype(origins, "origins", torch.int64)
    _expect_shape(origins, "origins", (entries, 2))
    _expect(count > 0 and entries % count == 0, "origins", f"a multiple of {count} windows", entries)
    for name, cuts in (("row_cuts", row_cuts), ("column_cuts", column_cuts)):
        _expect_dtype(cuts, name, torch.int64)
        _expect_shape(cuts, name, (cuts.shape[0], 8))
    _expect(height >= 1 and width >= 1, "height, width", "numbers of at least 1", (height, width))
    _expect(len(edges) == 4 and all(f >= 0 and f + n <= 2 for f, n in zip(edges[:2], edges[2:], strict=True)), "edges",
            "first edges (rows, columns) and how many", edges)  # fmt: skip
    for name, piece, expected in (
        ("row_strips", row_strips, (2 * row_cuts.shape[0], depth, None, map_width)),
        ("column_strips", column_strips, (2 * column_cuts.shape[0], depth, map_height, None)),
        ("corners", corners, (edges[2] * edges[3] * count, depth, None, None)),
    ):
        if piece is not None:
            fits = piece.dim() == 4 and all(s in (None, p) for s, p in zip(expected, piece.shape, strict=True))
            _expect(fits, name, f"shape {list(expected)}", list(piece.shape))
    held = {"full": full, "row_strips": row_strips, "column_strips": column_strips, "corners": corners}
    for name, piece in held.items():
        if piece is not None:
            _expect_dtype(piece, name, maps.dtype)
    _expect_device(maps.device, full=full, images=images, rows=rows, columns=columns, row_cuts=row_cuts,
                   column_cuts=column_cuts, origins=origins, row_strips=row_strips, column_strips=column_strips,
                   corners=corners)  # fmt: skip
    _check_positions(images, maps.shape[0])
    _check_positions(rows, row_cuts.shape[0])
    _check_positions(columns, column_cuts.shape[0])
    conv = _conv_geometry(maps, height, width, weights, bias, channels, geometry)
    native = _native(maps.device)
    if native is None:
        out = reference.gather_pieces(maps, full, images, rows, columns, row_cuts, column_cuts, origins, height, width,
                                      row_strips, column_strips, corners, edges, padding)  # fmt: skip
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
    _call(native.gather_pieces, maps.device, maps.data_ptr(), full.data_ptr(),
          *(0 if t is None else t.data_ptr() for t in pieces), out.data_ptr(), *(t.data_ptr() for t in indices),
          entries, count, tuple(maps.shape),
          (height, width, row_cuts.shape[0], heights[0], column_cuts.shape[0], widths[1], heights[2], widths[2]),
          (edges[0], edges[1], edges[3]),
          _bits(padding, maps.dtype), maps.element_size(), _OUTPUT_DTYPES.get(maps.dtype, 0),
          _conv_arguments(native, maps, weights, bias, channels, geometry))  # fmt: skip
    return out


def _fake_gather_pieces(maps: Tensor, full: Tensor, images: Tensor, rows: Tensor, columns: Tensor, row_cuts: Tensor,
                        column_cuts: Tensor, origins: Tensor, height: int, width: int, row_strips: Tensor | None,
                        column_strips: Tensor | None, corners: Tensor | None, edges: list[int], padding: float,
                        weights: Tensor | None = None, bias: Tensor | None = None, channels: int = 0,
                        geometry: list[int] | None = None) -> Tensor:  # fmt: skip
    out = maps.new_empty(_gathered(maps, origins.shape[0], height, width, channels, geometry))
    return out.contiguous(memory_format=torch.channels_last)


# -- draw_occluders ------------------------------------------------------------------------------------


def _draw_occluders(
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
    grey: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = sample_ids.device
    _expect_dtype(sample_ids, "sample_ids", torch.int64)
    _expect(sample_ids.dim() == 1, "sample_ids", "shape [N]", list(sample_ids.shape))
    if device.type == "cpu" and sample_ids.numel():
        _expect(int(sample_ids.min()) >= 0, "sample_ids", "no negative number", int(sample_ids.min()))
    _expect_dtype(cdf, "cdf", torch.float64)
    for name, centers in (("row_centers", row_centers), ("column_centers", column_centers)):
        _expect_dtype(centers, name, torch.int64)
        _expect(centers.dim() == 1 and centers.numel() > 0, name, "one dimension, not empty", list(centers.shape))
    _expect_shape(cdf, "cdf", (row_centers.numel() * column_centers.numel(),))
    _expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    _expect(0 <= probability <= 1, "probability", "a number in [0, 1]", probability)
    _expect(len(sizes) == 4 and 1 <= sizes[0] <= sizes[1] <= height and 1 <= sizes[2] <= sizes[3] <= width,
            "sizes", f"[min height, max height, min width, max width] within {height}x{width}", sizes)  # fmt: skip
    _expect(len(ranges) == 4, "ranges", "[min level, max level, min intensity, max intensity]", ranges)
    _expect(1 <= len(kinds) <= 4 and set(kinds) <= set(KINDS.values()), "kinds",
            f"one to four of {sorted(KINDS.values())}", kinds)  # fmt: skip
    _expect_device(device, cdf=cdf, row_centers=row_centers, column_centers=column_centers)
    native = _native(device)
    if native is None:
        return reference.draw_occluders(sample_ids, cdf, row_centers, column_centers, channels, height, width, seed,
                                        probability, sizes, ranges, kinds, grey)  # fmt: skip
    sample_ids, cdf = sample_ids.contiguous(), cdf.contiguous()
    row_centers, column_centers = row_centers.contiguous(), column_centers.contiguous()
    out = _fake_draw_occluders(sample_ids, cdf, row_centers, column_centers, channels, height, width, seed,
                               probability, sizes, ranges, kinds, grey)  # fmt: skip
    _call(native.draw_occluders, device, sample_ids.data_ptr(), sample_ids.numel(), cdf.data_ptr(),
          row_centers.data_ptr(), row_centers.numel(), column_centers.data_ptr(), column_centers.numel(),
          channels, height, width, seed, probability, sizes, ranges, kinds, grey,
          *(tensor.data_ptr() for tensor in out))  # fmt: skip
    return out


def _fake_draw_occluders(
    sample_ids: Tensor,
    cdf: Tensor,
    row_centers: Tensor,
    column_centers: Tensor,
    channels: int,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = sample_ids.shape[0]
    return (
        sample_ids.new_empty((n, 4), dtype=torch.int32),
        sample_ids.new_empty((n,), dtype=torch.uint8),
        sample_ids.new_empty((n,), dtype=torch.float32),
        sample_ids.new_empty((n, channels), dtype=torch.float32),
    )


# -- paint_occluders -----------------------------------------------------------------------------------


def _paint(images: Tensor, out: Tensor, layout: torch.memory_format, sample_ids: Tensor, boxes: Tensor,
           kind: Tensor, level: Tensor, intensity: Tensor, seed: int, low: float, high: float,
           outside: Tensor | None = None) -> None:  # fmt: skip
    n, channels = images.shape[:2]
    for name, tensor, dtype, shape in (
        ("sample_ids", sample_ids, torch.int64, (n,)),
        ("boxes", boxes, torch.int32, (n, 4)),
        ("kind", kind, torch.uint8, (n,)),
        ("level", level, torch.float32, (n,)),
        ("intensity", intensity, torch.float32, (n, channels)),
    ):
        _expect_dtype(tensor, name, dtype)
        _expect_shape(tensor, name, shape)
    _expect_device(images.device, sample_ids=sample_ids, boxes=boxes, kind=kind, level=level, intensity=intensity)
    _expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    if boxes.device.type == "cpu" and n:
        height, width = images.shape[-2:]
        inside = (boxes >= 0).all() and (boxes <= torch.tensor([height, width, height, width])).all()
        _expect(bool(inside), "boxes", f"(top, left, bottom, right) within {height}x{width}", "a box outside")
    if outside is not None:
        _expect_dtype(outside, "outside", torch.int32)
        _expect_shape(outside, "outside", (1,))
        _expect_device(images.device, outside=outside)
    native = _native(images.device)
    if native is None:
        reference.paint_occluders(images, out, sample_ids, boxes, kind, level, intensity, seed, low, high, outside)
        return
    held = [tensor.contiguous() for tensor in (sample_ids, boxes, kind, level, intensity)]
    _call(native.paint_occluders, images.device, images.data_ptr(), out.data_ptr(), IMAGE_DTYPES[images.dtype],
          tuple(images.shape), _strides(images.shape, layout), *(tensor.data_ptr() for tensor in held),
          seed, low, high, 0 if outside is None else outside.data_ptr())  # fmt: skip


def _check_images(images: Tensor) -> None:
    _expect(images.dim() == 4, "images", "shape [N, C, H, W]", list(images.shape))
    _expect_dtype(images, "images", *IMAGE_DTYPES)


def _paint_occluders(images: Tensor, *arguments: Any) -> Tensor:
    _check_images(images)
    images, layout = dense(images)
    out = torch.empty_like(images, memory_format=layout)
    _paint(images, out, layout, *arguments)
    return out


def _paint_occluders_in_place(images: Tensor, *arguments: Any) -> None:
    _check_images(images)
    _expect(is_channels_last(images) or images.is_contiguous(), "images",
            "a contiguous or channels_last tensor to paint in place", f"strides {images.stride()}")  # fmt: skip
    _, layout = dense(images)
    _paint(images, images, layout, *arguments)


def _fake_paint_occluders(images: Tensor, *_: Any) -> Tensor:
    layout = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return torch.empty_like(images, memory_format=layout)


def _nothing(*_: Any) -> None:
    return None


# -- batch triplet loss --------------------------------------------------------------------------------

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
    native = _native(a.device)
    if native is None or a.device.type == "cuda":
        with _full_precision(a.device):
            return a @ b
    out = a.new_empty((a.shape[0], b.shape[1]))
    _call(native.multiply, a.device, a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(), _OUTPUT_DTYPES[a.dtype],
          a.shape[0], b.shape[1], a.shape[1], symmetric, out.data_ptr())  # fmt: skip
    return out


def _centre_rows(rows: Tensor, mean: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = _native(rows.device)
    if native is None:
        return reference.centre_rows(rows, mean, unit)
    n, dim = rows.shape
    given = mean is not None
    mean = rows.new_empty(dim, dtype=torch.float64) if mean is None else mean
    centred, squares = torch.empty_like(rows), rows.new_empty(n)
    lengths = rows.new_empty(n, dtype=torch.float64)
    _call(native.centre_rows, rows.device, rows.data_ptr(), _OUTPUT_DTYPES[rows.dtype], n, dim, given, unit,
          mean.data_ptr(), centred.data_ptr(), squares.data_ptr(), lengths.data_ptr())  # fmt: skip
    return mean, centred, squares, lengths


def _check_triplets(embeddings: Tensor, labels: Tensor, names: tuple[str, str]) -> None:
    _expect(embeddings.dim() == 2, names[0], "shape [B, D]", list(embeddings.shape))
    _expect_dtype(embeddings, names[0], *_OUTPUT_DTYPES)
    _expect_dtype(labels, names[1], torch.int64)
    _expect_shape(labels, names[1], (embeddings.shape[0],))
    _expect(embeddings.shape[0] < 2**31, names[0], "fewer than 2**31 rows", embeddings.shape[0])


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
    _expect(own == (reference_labels is None), "reference_labels", "labels with references, none without",
            None if reference_labels is None else list(reference_labels.shape))  # fmt: skip
    if references is not None and reference_labels is not None:
        _check_triplets(references, reference_labels, ("references", "reference_labels"))
        _expect_dtype(references, "references", embeddings.dtype)
        _expect(references.shape[1] == embeddings.shape[1], "references", f"{embeddings.shape[1]} columns",
                list(references.shape))  # fmt: skip
    _expect_device(device, labels=labels, references=references, reference_labels=reference_labels)
    _expect(distance in DISTANCES.values(), "distance", f"one of {sorted(DISTANCES.values())}", distance)
    _expect(mining in MININGS.values(), "mining", f"one of {sorted(MININGS.values())}", mining)
    _expect(0 <= margin < float("inf"), "margin", "a finite number, not negative", margin)
    _expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    _expect(seed >= 0, "seed", "a number in [0, 2**63)", seed)
    _expect(0 <= step < 2**32, "step", "a number in [0, 2**32)", step)
    _expect(1 <= bins <= MAX_BINS, "bins", f"a number in [1, {MAX_BINS}]", bins)
    _expect(top >= 0, "top", "a distance, or 0 for a bound on those of the batch", top)

    a, a_labels = embeddings.contiguous(), labels.contiguous()
    unit = distance == DISTANCES["cosine"]
    mean, a, a_squares, lengths = _centre_rows(a, None, unit)
    b, b_labels, b_squares, b_lengths = a, a_labels, a_squares, lengths
    if references is not None and reference_labels is not None:
        b_labels = reference_labels.contiguous()
        _, b, b_squares, b_lengths = _centre_rows(references.contiguous(), mean, unit)
    rows, columns = a.shape[0], b.shape[0]
    values = _multiply(a, b.T, symmetric=own)
    ordered, members = b_labels.sort(stable=True)
    start, stop = torch.searchsorted(ordered, a_labels), torch.searchsorted(ordered, a_labels, right=True)
    edge = _histogram_edge(lengths, b_lengths, distance, top)

    native = _native(device)
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
        _call(native.mine_triplets, device, values.data_ptr(), _OUTPUT_DTYPES[a.dtype], a.data_ptr(), b.data_ptr(),
              a_squares.data_ptr(), b_squares.data_ptr(), sizes, choices, members.data_ptr(), start.data_ptr(),
              stop.data_ptr(), margin, beta, seed, step, edge.data_ptr(), bins, counts.data_ptr(),
              work[pieces:].data_ptr(), work.data_ptr(), totals.data_ptr(), nearest.data_ptr(),
              histogram.data_ptr())  # fmt: skip
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
            _call(native.triplet_weights, device, values.data_ptr(), _OUTPUT_DTYPES[a.dtype], counts.data_ptr(),
                  totals.data_ptr(), a_squares.data_ptr(), b_squares.data_ptr(), sizes, choices, margin, beta,
                  row_sums.data_ptr(), column_sums.data_ptr())  # fmt: skip
            matrix = values
    return (loss, totals, nearest, histogram, edge, lengths, a_squares, matrix, row_sums, column_sums, a,
            a.new_empty((0, 0)) if own else b)  # fmt: skip


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
        new(()), new(reference.SLOTS, dtype=double), new((2, rows if statistics else 0)),
        new((2, bins if statistics else 0), dtype=long), new(1, dtype=double), new(rows, dtype=double), new(rows),
        new((rows * kept, columns * kept)), new(rows * sums), new(columns * sums), new((rows, dim)),
        new((0, 0) if references is None else (columns, dim)),
    )  # fmt: skip


def _triplet_loss_backward(
    grad: Tensor, matrix: Tensor, row_sums: Tensor, column_sums: Tensor, a: Tensor, b: Tensor, embeddings: Tensor,
    references: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    own = references is None
    _expect_shape(matrix, "matrix", (a.shape[0], a.shape[0] if own else b.shape[0]))
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
    by_a, by_b = triplet_loss_backward(grad, *ctx.saved_tensors)
    return by_a, None, None if ctx.saved_tensors[-1] is None else by_b, None, *nothing


def _no_second_derivative(ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
    raise RuntimeError("the triplet losses have no second derivative: call backward without create_graph=True")


# -- registration --------------------------------------------------------------------------------------

#: ``(images [N,C,H,W], fill broadcast to it, positions int64 [M], grid int[8]) -> [M,C,H,W]``: copy m is
#: image ``positions[m] // P`` with window ``positions[m] % P`` of the grid's P replaced by ``fill``.  The
#: grid is rows, columns, first row, first column, row step, column step, occluder height, width.
occlude_positions = _register(
    "occlude_positions(Tensor images, Tensor fill, Tensor positions, int[] grid) -> Tensor",
    _occlude_positions,
    _fake_occlude_positions,
)

#: ``(outputs [M,K], positions int64 [M], per_image, kind, scores float64 [N,per_image], bad int32 [1],
#: labels int64 [N], references float64 [N,K], baseline float64 [N])``: writes ``scores`` at the positions and
#: sets ``bad`` where an output is not finite.  Kinds: :data:`SCORES`; formulas in ``csrc/api.h``.
sweep_score = _register(
    "sweep_score(Tensor outputs, Tensor positions, int per_image, int kind, Tensor(a!) scores, Tensor(b!) bad, "
    "Tensor? labels, Tensor? references, Tensor? baseline) -> ()",
    _sweep_score,
    _nothing,
)

#: ``(scores float64 [N,P], total float64 [P], squares float64 [P])``: adds the scores and their squares, image
#: by image, so that the sums don't depend on how the images were split into calls.
sweep_accumulate = _register(
    "sweep_accumulate(Tensor scores, Tensor(a!) total, Tensor(b!) squares) -> ()",
    _sweep_accumulate,
    _nothing,
)

#: ``(maps [N,C,H,W], images int64 [M], origins int64 [M,2], height, width, patches [M,C,h,w], patch_origins
#: int64 [M,2], padding) -> [M,C,height,width]`` channels_last: the window of map ``images[m]`` that begins at
#: (row, column) ``origins[m]``, with ``patches[m]`` laid over the map at ``patch_origins[m]`` and ``padding``
#: outside the map.  Maps and patches in channels_last are not copied.  With ``weights`` and ``bias`` from
#: :func:`pack_convolution` the windows are convolved on the way (CPU only) and [M,channels,h',w'] is returned;
#: ``geometry``: kernel, stride and dilation, rows and columns each, and 1 to rectify.
gather_windows = _register(
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
gather_pieces = _register(
    "gather_pieces(Tensor maps, Tensor full, Tensor images, Tensor rows, Tensor columns, Tensor row_cuts, "
    "Tensor column_cuts, Tensor origins, int height, int width, Tensor? row_strips, Tensor? column_strips, "
    "Tensor? corners, int[] edges, float padding, Tensor? weights=None, Tensor? bias=None, "
    "int channels=0, int[]? geometry=None) -> Tensor",
    _gather_pieces,
    _fake_gather_pieces,
)

#: One occluder a sample from (seed, sample id) alone: ``boxes`` int32 [N,4] (top, left, bottom, right), ``kind``
#: uint8 [N] (:data:`KINDS`, 255 where not occluded), ``level`` float32 [N], ``intensity`` float32 [N,C].
draw_occluders = _register(
    "draw_occluders(Tensor sample_ids, Tensor cdf, Tensor row_centers, Tensor column_centers, int channels, "
    "int height, int width, int seed, float probability, int[] sizes, float[] ranges, int[] kinds, bool grey) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _draw_occluders,
    _fake_draw_occluders,
)

_PAINT = (
    "Tensor sample_ids, Tensor boxes, Tensor kind, Tensor level, Tensor intensity, int seed, float low, float high, "
    "Tensor(b!)? outside=None)"
)

#: The images with drawn occluders painted on a copy.  ``low`` and ``high`` are the values of intensity 0 and 1;
#: ``outside`` int32 [1] is set where a floating-point image has NaN or a value outside of them.
paint_occluders = _register(
    f"paint_occluders(Tensor images, {_PAINT} -> Tensor", _paint_occluders, _fake_paint_occluders
)

#: The same on the images themselves, which must be contiguous or channels_last.
paint_occluders_ = _register(f"paint_occluders_(Tensor(a!) images, {_PAINT} -> ()", _paint_occluders_in_place, _nothing)

#: ``(embeddings [B,D] float32 or float64, labels int64 [B], references [M,D], reference_labels [M])``, with the choices
#: of :data:`DISTANCES` and :data:`MININGS` -> loss, totals float64 [22] (slots of ``csrc/core/mining.h``), nearest
#: [2,B], histogram int64 [2,bins], its upper edge float64 [1], squared lengths float64 [B] of the embeddings and [B]
#: less their mean, and what the backward needs.  ``gradient=False`` saves making that.
triplet_loss = _register(
    "triplet_loss(Tensor embeddings, Tensor labels, Tensor? references, Tensor? reference_labels, int distance, "
    "int mining, bool hinge, float margin, float beta, int seed, int step, bool statistics, int bins, float top, "
    "bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor)",
    _triplet_loss,
    _fake_triplet_loss,
)

#: The gradients by the embeddings and the references (empty where the embeddings are their own references).  Of
#: ``embeddings`` only whether they need a gradient counts: a second derivative must be refused, not silently 0.
triplet_loss_backward = _register(
    "triplet_loss_backward(Tensor grad, Tensor matrix, Tensor row_sums, Tensor column_sums, Tensor a, Tensor b, "
    "Tensor embeddings, Tensor? references) -> (Tensor, Tensor)",
    _triplet_loss_backward,
    _fake_triplet_loss_backward,
)
torch.library.register_autograd("occfast::triplet_loss", _triplet_gradient, setup_context=_save_triplets, lib=_library)
torch.library.register_autograd("occfast::triplet_loss_backward", _no_second_derivative, lib=_library)
