"""Ops of the dense sweep: occluded copies, their scores, and sums of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..enums import Score
from .common import (
    OUTPUT_DTYPES,
    address,
    call,
    dense,
    expect,
    expect_device,
    expect_dtype,
    expect_positions,
    expect_shape,
    is_channels_last,
    module_for,
    nothing,
    register,
    strides_of,
)

#: Scores by the names of ``occlusion_map``.
SCORES = {score.name.lower(): score for score in Score}


def _occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    expect(images.dim() == 4, "images", "shape [N, C, H, W]", images.shape)
    expect(images.element_size() in (1, 2, 4, 8), "images", "elements of 1, 2, 4 or 8 bytes", images.dtype)
    expect_dtype(fill, "fill", images.dtype)
    expect(fill.dim() == 4, "fill", "four dimensions", fill.shape)
    expect(
        all(f in (1, s) for f, s in zip(fill.shape, images.shape, strict=True)),
        "fill",
        f"a shape that broadcasts to {list(images.shape)}",
        fill.shape,
    )
    expect_dtype(positions, "positions", torch.int64)
    expect(positions.dim() == 1, "positions", "one dimension", positions.shape)
    expect(
        len(grid) == 8 and min(grid[0], grid[1], grid[4], grid[5], grid[6], grid[7]) >= 1,
        "grid",
        "rows, columns, first row and column, steps and occluder size",
        grid,
    )
    expect_device(images.device, fill=fill, positions=positions)
    expect_positions(positions, images.shape[0] * grid[0] * grid[1])
    native = module_for(images.device)
    images, layout = dense(images)
    if native is None:
        return reference.occlude_positions(images, fill, positions, grid).contiguous(memory_format=layout)
    positions = positions.contiguous()
    out = torch.empty(
        (positions.numel(), *images.shape[1:]), dtype=images.dtype, device=images.device, memory_format=layout
    )
    fill_strides = tuple(0 if size == 1 else step for size, step in zip(fill.shape, fill.stride(), strict=True))
    rows, columns, first_row, first_column, row_step, column_step, height, width = grid
    arguments = native.OccludePositions(
        images=images.data_ptr(),
        out=out.data_ptr(),
        fill=fill.data_ptr(),
        positions=positions.data_ptr(),
        count=positions.numel(),
        itemsize=images.element_size(),
        shape=images.shape,
        strides=strides_of(images.shape, layout),
        fill_strides=fill_strides,
        grid=native.Grid(
            rows=rows,
            columns=columns,
            first_row=first_row,
            first_column=first_column,
            row_step=row_step,
            column_step=column_step,
            height=height,
            width=width,
        ),
    )
    call(native, "occlude_positions", images.device, arguments)
    return out


def _fake_occlude_positions(images: Tensor, fill: Tensor, positions: Tensor, grid: list[int]) -> Tensor:
    layout = torch.channels_last if is_channels_last(images) else torch.contiguous_format
    return images.new_empty((positions.shape[0], *images.shape[1:])).contiguous(memory_format=layout)


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
    expect(outputs.dim() == 2, "outputs", "shape [positions, classes]", outputs.shape)
    expect_dtype(outputs, "outputs", *OUTPUT_DTYPES)
    expect_dtype(positions, "positions", torch.int64)
    expect_shape(positions, "positions", (outputs.shape[0],))
    expect(kind in SCORES.values(), "kind", f"one of {sorted(map(int, SCORES.values()))}", kind)
    expect_dtype(scores, "scores", torch.float64)
    expect(
        scores.dim() == 2 and scores.shape[1] == per_image and scores.is_contiguous(),
        "scores",
        f"a contiguous tensor of shape [images, {per_image}]",
        scores.shape,
    )
    images, classes = scores.shape[0], outputs.shape[1]
    expect_dtype(bad, "bad", torch.int32)
    expect_shape(bad, "bad", (1,))
    if kind == Score.SIMILARITY_DROP:
        expect(references is not None, "references", "a tensor for the similarity", None)
        assert references is not None
        expect_dtype(references, "references", torch.float64)
        expect_shape(references, "references", (images, classes))
    else:
        expect(labels is not None, "labels", "a tensor for this score", None)
        assert labels is not None
        expect_dtype(labels, "labels", torch.int64)
        expect_shape(labels, "labels", (images,))
        if device.type == "cpu" and images:
            low, high = torch.aminmax(labels)
            expect(int(low) >= 0 and int(high) < classes, "labels", f"values in [0, {classes})", f"[{low}, {high}]")
    if kind != Score.ERROR:
        expect(baseline is not None, "baseline", "a tensor for this score", None)
        assert baseline is not None
        expect_dtype(baseline, "baseline", torch.float64)
        expect_shape(baseline, "baseline", (images,))
    expect_device(
        device, positions=positions, scores=scores, bad=bad, labels=labels, references=references, baseline=baseline
    )
    expect_positions(positions, images * per_image)
    native = module_for(device)
    if native is None:
        reference.sweep_score(outputs, positions, per_image, kind, scores, bad, labels, references, baseline)
        return
    outputs, positions = outputs.contiguous(), positions.contiguous()
    labels, references, baseline = (None if t is None else t.contiguous() for t in (labels, references, baseline))
    arguments = native.SweepScore(
        outputs=outputs.data_ptr(),
        dtype=OUTPUT_DTYPES[outputs.dtype],
        positions=positions.data_ptr(),
        count=outputs.shape[0],
        classes=classes,
        images=images,
        per_image=per_image,
        kind=kind,
        labels=address(labels),
        references=address(references),
        baseline=address(baseline),
        scores=scores.data_ptr(),
        bad=bad.data_ptr(),
    )
    call(native, "sweep_score", device, arguments)


def _sweep_accumulate(scores: Tensor, total: Tensor, squares: Tensor) -> None:
    expect_dtype(scores, "scores", torch.float64)
    expect(scores.dim() == 2, "scores", "shape [images, positions]", scores.shape)
    for name, tensor in (("total", total), ("squares", squares)):
        expect_dtype(tensor, name, torch.float64)
        expect_shape(tensor, name, (scores.shape[1],))
        expect(tensor.is_contiguous(), name, "a contiguous tensor", tensor.stride())
    expect_device(scores.device, total=total, squares=squares)
    native = module_for(scores.device)
    if native is None:
        reference.sweep_accumulate(scores, total, squares)
        return
    scores = scores.contiguous()
    arguments = native.SweepAccumulate(
        scores=scores.data_ptr(),
        images=scores.shape[0],
        per_image=scores.shape[1],
        sum=total.data_ptr(),
        squares=squares.data_ptr(),
    )
    call(native, "sweep_accumulate", scores.device, arguments)


#: ``(images [N,C,H,W], fill broadcast to it, positions int64 [M], grid int[8]) -> [M,C,H,W]``. Copy m is image
#: ``positions[m] // P`` with window ``positions[m] % P`` of the P windows of the grid replaced by ``fill``. The grid:
#: rows, columns, first row, first column, row step, column step, occluder height, occluder width.
occlude_positions = register(
    "occlude_positions(Tensor images, Tensor fill, Tensor positions, int[] grid) -> Tensor",
    _occlude_positions,
    _fake_occlude_positions,
)

#: ``(outputs [M,K], positions int64 [M], per_image, kind, scores float64 [N,per_image], bad int32 [1],
#: labels int64 [N], references float64 [N,K], baseline float64 [N])``: writes ``scores`` at the positions and sets
#: ``bad`` if an output is not finite. ``kind`` is a :class:`Score`.
sweep_score = register(
    "sweep_score(Tensor outputs, Tensor positions, int per_image, int kind, Tensor(a!) scores, Tensor(b!) bad, "
    "Tensor? labels, Tensor? references, Tensor? baseline) -> ()",
    _sweep_score,
    nothing,
)

#: ``(scores float64 [N,P], total float64 [P], squares float64 [P])``: adds the scores and their squares, image by
#: image, so the sums do not depend on how the images were split into calls.
sweep_accumulate = register(
    "sweep_accumulate(Tensor scores, Tensor(a!) total, Tensor(b!) squares) -> ()", _sweep_accumulate, nothing
)
