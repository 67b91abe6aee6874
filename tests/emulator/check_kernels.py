"""The emulated CUDA kernels against the CPU module and the PyTorch twins.

``tests/native/test_cuda_emulated.py`` runs this file in a process that watches every allocation
(``build.environment()``). Its name hides it from pytest, because it can't run in an ordinary process.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from occfast.native import loader, ops
from occfast.native.enums import Dtype, Score

GRID = [7, 9, 2, 1, 3, 4, 5, 6]  # rows, columns, first row and column, steps, occluder height and width


def _load():
    path = Path(os.environ["OCCFAST_EMULATED"])
    spec = importlib.util.spec_from_file_location("occfast_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMULATED = _load()
NATIVE = loader.module("cpu")
CONTEXT = EMULATED.ExecContext(threads=1, stream=None)


@contextlib.contextmanager
def running(backend, monkeypatch):
    """Run the ops of ``occfast.native.ops`` on CPU tensors with one of the three implementations."""
    with monkeypatch.context() as patch:
        patch.setenv("OCCFAST_BACKEND", "reference" if backend == "reference" else "native")
        patch.setitem(loader._modules, "cpu", EMULATED if backend == "emulated" else NATIVE)
        yield


@pytest.fixture
def each(monkeypatch):
    """Return a function's results from the emulator, the CPU module and the twin."""

    def run(function):
        results = []
        for backend in ("emulated", "native", "reference"):
            with running(backend, monkeypatch):
                results.append(function())
        return results

    return run


def same(*tensors):
    first, *others = tensors
    for other in others:
        assert first.dtype == other.dtype and first.shape == other.shape
        assert torch.equal(first.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def random_images(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 200, shape, generator=generator).to(dtype)


def shifted(tensor, elements=1):
    """Return the same values at an address that is aligned to one element only."""
    buffer = torch.empty(tensor.numel() + elements, dtype=tensor.dtype)
    view = buffer[elements:].view(tensor.shape)
    return view.copy_(tensor)


def said_once(capfd, message):
    """Assert that a kernel has printed a message, by one thread."""
    assert capfd.readouterr().err.count(f"Assertion `{message}` failed.") == 1


# -- occlude_positions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(2, 1, 20, 32), (3, 3, 17, 23), (2, 3, 16, 20), (1, 2, 9, 14), (2, 1, 48, 64)], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_occluded_copies_are_equal_to_the_bit(each, dtype, shape, layout):
    images = random_images(shape, dtype).contiguous(memory_format=layout)
    n, c, h, w = shape
    grid = [h, w, 0, 0, 1, 1, 4, 7] if h * w < 200 else [(h + 2) // 3, (w + 3) // 4, 0, 0, 3, 4, 6, 5]
    all_positions = torch.randperm(n * grid[0] * grid[1], generator=torch.Generator().manual_seed(3))[:11]
    for fill_shape in ((1, 1, 1, 1), (1, c, 1, 1), shape, (n, 1, h, 1)):
        fill = random_images(fill_shape, dtype, seed=1)
        copies = each(lambda fill=fill: ops.occlude_positions(images, fill, all_positions, grid))
        same(*copies)
        assert not torch.equal(copies[0], images[all_positions // (grid[0] * grid[1])])


def test_unaligned_images_no_positions_and_whole_image_occluders(each):
    images = shifted(random_images((2, 3, 10, 16), torch.float32))
    fill = shifted(random_images((2, 3, 10, 16), torch.float32, seed=1))
    positions = torch.tensor([0, 62, 63, 125, 63])
    same(*each(lambda: ops.occlude_positions(images, fill, positions, GRID)))
    for few in (positions[:0], positions[:1]):
        same(*each(lambda few=few: ops.occlude_positions(images, fill, few, GRID)))
    whole = [1, 1, 5, 8, 1, 1, 10, 16]
    copies = each(lambda: ops.occlude_positions(images, fill, torch.tensor([1, 0]), whole))
    same(*copies, fill[[1, 0]])


@pytest.mark.parametrize("position", [-1, 126, 2**40])
def test_a_position_outside_the_grid_stops_the_kernel(position, capfd):
    images, out = torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    fill, positions = torch.ones(1), torch.tensor([position])
    names = ["rows", "columns", "first_row", "first_column", "row_step", "column_step", "height", "width"]
    occlusion = EMULATED.OccludePositions(
        images=images.data_ptr(),
        out=out.data_ptr(),
        fill=fill.data_ptr(),
        positions=positions.data_ptr(),
        count=1,
        itemsize=4,
        shape=(2, 1, 8, 8),
        strides=(64, 64, 8, 1),
        fill_strides=(0, 0, 0, 0),
        grid=EMULATED.Grid(**dict(zip(names, GRID, strict=True))),
    )
    with pytest.raises(RuntimeError, match="occlude_positions failed: device-side assert triggered"):
        EMULATED.occlude_positions(occlusion, CONTEXT)
    said_once(capfd, "occlude_positions: positions: one is of no image")
    stop_scoring(position, 0, "sweep_score: positions: one is of no image", capfd)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_a_label_that_is_no_class_stops_the_kernel(label, capfd):
    stop_scoring(70, label, "sweep_score: labels: one is no class", capfd)


def stop_scoring(position, label, message, capfd):
    outputs, positions = torch.zeros(1, 10), torch.tensor([position])
    labels = torch.tensor([0, label])
    scores, bad = torch.zeros(2, 63, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    scoring = EMULATED.SweepScore(
        outputs=outputs.data_ptr(),
        dtype=Dtype.FLOAT32,
        positions=positions.data_ptr(),
        count=1,
        classes=10,
        images=2,
        per_image=63,
        kind=Score.ERROR,
        labels=labels.data_ptr(),
        references=None,
        baseline=None,
        scores=scores.data_ptr(),
        bad=bad.data_ptr(),
    )
    with pytest.raises(RuntimeError, match="sweep_score failed: device-side assert triggered"):
        EMULATED.sweep_score(scoring, CONTEXT)
    said_once(capfd, message)


# -- scoring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 2, 31, 33, 200])
@pytest.mark.parametrize("kind", list(ops.SCORES))
def test_scores(each, dtype, classes, kind):
    generator = torch.Generator().manual_seed(classes)
    images, per_image, count = 3, 13, 37
    # Few different values, so that the largest is often tied. The lowest index must win.
    outputs = torch.randint(-4, 5, (count, classes), generator=generator).to(dtype) / 3
    positions = torch.randperm(images * per_image, generator=generator)[:count]
    labels = torch.randint(0, classes, (images,), generator=generator)
    references = torch.rand(images, classes, generator=generator, dtype=torch.float64)
    baseline = torch.rand(images, generator=generator, dtype=torch.float64)

    def run():
        scores = torch.full((images, per_image), -7.0, dtype=torch.float64)
        bad = torch.zeros(1, dtype=torch.int32)
        ops.sweep_score(outputs, positions, per_image, ops.SCORES[kind], scores, bad, labels, references, baseline)
        assert bad.item() == 0
        return scores

    emulated, native, twin = each(run)
    if kind == "similarity_drop":  # sums in another order
        torch.testing.assert_close(emulated, native, rtol=0, atol=1e-13)
        torch.testing.assert_close(emulated, twin, rtol=0, atol=1e-13)
    else:
        same(emulated, native, twin)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", list(ops.SCORES))
@pytest.mark.parametrize("place", [0, 40, 69])
def test_what_is_not_finite_is_reported(each, value, kind, place):
    outputs = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    outputs[4, place] = value
    positions, labels = torch.arange(6), torch.tensor([0, 1])
    references, baseline = torch.ones(2, 70, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)

    def run():
        scores, bad = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
        ops.sweep_score(outputs, positions, 3, ops.SCORES[kind], scores, bad, labels, references, baseline)
        return bad

    same(*each(run))
    assert each(run)[0].item() == 1


def test_running_sums_are_equal_to_the_bit(each):
    for images, per_image in ((5, 1000), (1, 1), (0, 10), (7, 129), (64, 40), (131, 33)):
        scores = torch.randn(images, per_image, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

        def run(scores=scores, per_image=per_image):
            total = torch.full((per_image,), 0.1, dtype=torch.float64)
            squares = torch.full((per_image,), 0.7, dtype=torch.float64)
            ops.sweep_accumulate(scores, total, squares)
            return torch.stack((total, squares))

        same(*each(run))


# -- noisy occluders -----------------------------------------------------------------------------------


def drawn(n, channels, height, width, kinds=(0, 1, 2, 3), gray=False, probability=0.8, seed=2**62 + 12345):
    rows, columns = torch.arange(0, height), torch.arange(0, width, 2)
    cdf = torch.rand(
        rows.numel() * columns.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    ).cumsum(0)
    ids = torch.arange(n) * 7919 + 2**33
    sizes = [1, height, 1, max(1, width // 2)]
    return ids, (
        ids,
        cdf / cdf[-1],
        rows,
        columns,
        channels,
        height,
        width,
        seed,
        probability,
        sizes,
        [0.1, 0.9, 0.0, 1.0],
        list(kinds),
        gray,
    )


@pytest.mark.parametrize("n", [0, 1, 300, 1500])
@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("gray", [False, True])
def test_draws_are_equal_to_the_bit(each, n, channels, gray):
    _, params = drawn(n, channels, 23, 37, gray=gray)
    for results in zip(*each(lambda: ops.draw_occluders(*params)), strict=True):
        same(*results)


@pytest.mark.parametrize("dtype", list(ops.IMAGE_DTYPES))
@pytest.mark.parametrize(
    "shape", [(7, 1, 20, 32), (6, 3, 17, 23), (3, 3, 9, 101), (12, 4, 5, 3), (0, 3, 8, 8)], ids=str
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_paint_is_equal_to_the_bit(each, dtype, shape, layout):
    images = random_images(shape, dtype).contiguous(memory_format=layout)
    ids, params = drawn(*shape)
    drawn_occluders = ops.draw_occluders(*params)
    ends = (0.0, 255.0) if dtype == torch.uint8 else (-1.0, 1.5)
    painted = each(lambda: ops.paint_occluders(images, ids, *drawn_occluders, 2**62 + 12345, *ends))
    same(*painted)
    if shape[0]:
        assert not torch.equal(painted[0], images)

    def in_place():
        copy = images.clone(memory_format=torch.preserve_format)
        ops.paint_occluders_(copy, ids, *drawn_occluders, 2**62 + 12345, *ends)
        return copy

    same(*each(in_place), painted[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_boxes_in_images_of_several_tiles(each, dtype, layout):
    """Single pixels, single rows and columns, edges, whole images, and boxes that blocks share."""
    boxes = [
        [0, 0, 1, 1], [59, 101, 60, 102], [0, 0, 60, 102], [17, 0, 18, 102], [0, 50, 60, 51], [5, 7, 5, 20],
        [5, 7, 30, 7], [13, 3, 47, 9], [2, 4, 58, 100], [30, 98, 60, 102], [0, 0, 0, 0],
    ]  # fmt: skip
    n = len(boxes)
    images = random_images((n, 3, 60, 102), dtype).contiguous(memory_format=layout)
    arguments = (
        torch.arange(n) * 2**31,
        torch.tensor(boxes, dtype=torch.int32),
        torch.arange(n).remainder(4).to(torch.uint8),
        torch.full((n,), 0.4),
        torch.rand(n, 3, generator=torch.Generator().manual_seed(1)),
    )
    painted = each(lambda: ops.paint_occluders(images, *arguments, 3, 0.0, 255.0 if dtype == torch.uint8 else 1.0))
    same(*painted)
    for k, (top, left, bottom, right) in enumerate(boxes):
        outside = torch.ones(60, 102, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(painted[0][k][:, outside], images[k][:, outside])


@pytest.mark.parametrize("kind", list(ops.KINDS))
def test_each_noise_on_unaligned_images(each, kind):
    shape = (5, 2, 13, 30)
    ids, params = drawn(*shape, kinds=[ops.KINDS[kind]], probability=1.0)
    occluders = ops.draw_occluders(*params)
    for dtype in ops.IMAGE_DTYPES:
        images = shifted(random_images(shape, dtype))
        same(*each(lambda images=images: ops.paint_occluders(images, ids, *occluders, 9, 0.0, 1.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [None, 1.25, -0.5, float("nan"), -float("inf")])
def test_values_outside_the_range_raise_the_flag(each, dtype, value):
    images = torch.rand(3, 2, 9, 11).to(dtype)
    if value is not None:
        images[1, 1, 8, 10] = value
    ids, params = drawn(3, 2, 9, 11)
    occluders = ops.draw_occluders(*params)

    def run():
        flag = torch.zeros(1, dtype=torch.int32)
        ops.paint_occluders(images, ids, *occluders, 9, 0.0, 1.0, flag)
        return flag

    flags = each(run)
    same(*flags)
    assert int(flags[0]) == (value is not None)


def test_a_box_outside_the_image_stops_the_kernel(capfd):
    images = torch.zeros(1, 1, 8, 8)
    out = torch.zeros_like(images)
    ids, kind = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.uint8)
    level = torch.zeros(1)
    for box in ([-1, 0, 4, 4], [0, -1, 4, 4], [0, 0, 9, 4], [0, 0, 4, 9]):
        boxes = torch.tensor([box], dtype=torch.int32)
        painting = EMULATED.PaintOccluders(
            images=images.data_ptr(),
            out=out.data_ptr(),
            dtype=Dtype.FLOAT32,
            shape=(1, 1, 8, 8),
            strides=(64, 64, 8, 1),
            sample_ids=ids.data_ptr(),
            occluders=EMULATED.Occluders(
                boxes=boxes.data_ptr(), kind=kind.data_ptr(), level=level.data_ptr(), intensity=level.data_ptr()
            ),
            seed=0,
            low=0.0,
            high=1.0,
            outside=None,
        )
        with pytest.raises(RuntimeError, match="paint_occluders failed: device-side assert triggered"):
            EMULATED.paint_occluders(painting, CONTEXT)
        said_once(capfd, "paint_occluders: boxes: one reaches beyond its image")


def test_philox_and_normals():
    generator = torch.Generator().manual_seed(11)
    n = 2000
    counters = torch.randint(-(2**31), 2**31, (n, 4), generator=generator).int()
    keys = torch.randint(-(2**31), 2**31, (n, 2), generator=generator).int()
    words = [torch.empty(n, 4, dtype=torch.int32) for _ in range(2)]
    values = [torch.empty(4 * n) for _ in range(2)]
    for k, module in enumerate((EMULATED, NATIVE)):
        context = module.ExecContext(threads=1, stream=None)
        module.philox_words(
            counters=counters.data_ptr(), keys=keys.data_ptr(), n=n, words=words[k].data_ptr(), context=context
        )
        module.normals(words=words[k].data_ptr(), n=4 * n, values=values[k].data_ptr(), context=context)
    same(*words)
    same(*values)
    assert abs(values[0].mean().item()) < 0.05 and abs(values[0].std().item() - 1) < 0.05


def test_workers():
    assert EMULATED.workers(EMULATED.ExecContext(threads=8, stream=None)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3, 8, 16])
def test_gathered_windows_are_equal_to_the_bit(each, dtype, channels):
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn((3, channels, 9, 11), generator=generator).to(dtype)
    images = torch.randint(0, 3, (60,), generator=generator)
    origins, places = (torch.randint(-8, 13, (60, 2), generator=generator) for _ in range(2))
    patches = torch.randn((60, channels, 5, 4), generator=generator).to(dtype)
    for patch in ((None, None), (patches, places)):
        for padding in (0.0, -float("inf")):
            arguments = (maps, images, origins, 6, 7, *patch, padding)
            same(*each(lambda arguments=arguments: ops.gather_windows(*arguments)))


@pytest.mark.parametrize("wrong", [-1, 2, 2**40])
@pytest.mark.parametrize("argument", ["images", "rows", "columns"])
def test_numbers_beyond_the_maps_and_cuts_stop_the_kernels(argument, wrong, capfd):
    maps, out, origins = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 3, 4), torch.zeros(2, 2, dtype=torch.int64)
    numbers = {name: torch.tensor([0, wrong if name == argument else 1]) for name in ("images", "rows", "columns")}
    cuts = torch.zeros(2, 8, dtype=torch.int64)  # nothing is occluded
    addresses = {name: number.data_ptr() for name, number in numbers.items()}
    shared = dict(maps=maps.data_ptr(), out=out.data_ptr(), origins=origins.data_ptr(), shape=(2, 4, 5, 3))
    shared |= dict(count=2, height=3, width=3, padding=0, itemsize=4)
    pieces = dict(full=None, row_strips=None, column_strips=None, corners=None, entries=2, column_edges=1)
    sizes = dict(strip_rows=2, strip_height=1, strip_columns=2, strip_width=1, corner_height=1, corner_width=1)
    assembled = EMULATED.GatherPieces(
        **shared,
        **addresses,
        **pieces,
        **sizes,
        row_cuts=cuts.data_ptr(),
        column_cuts=cuts.data_ptr(),
        first_edge=(0, 0),
    )
    with pytest.raises(RuntimeError, match="gather_pieces failed: device-side assert triggered"):
        EMULATED.gather_pieces(assembled, CONTEXT)
    ends = {"images": "is not among the maps", "rows": "has no cuts", "columns": "has no cuts"}
    said_once(capfd, f"GatherPieces: {argument}: one {ends[argument]}")
    if argument == "images":
        patches = dict(patches=None, patch_origins=None, patch_height=0, patch_width=0)
        windows = EMULATED.GatherWindows(**shared, images=addresses["images"], **patches)
        with pytest.raises(RuntimeError, match="gather_windows failed: device-side assert triggered"):
            EMULATED.gather_windows(windows, CONTEXT)
        said_once(capfd, "GatherWindows: images: one is not among the maps")


@pytest.mark.parametrize("shape", [(1, 40, 6), (8, 70, 5), (64, 2, 3), (3, 1, 1100), (520, 1, 2)], ids=str)
def test_windows_of_many_rows_pixels_and_channels(each, shape):
    """More rows, pixels or words than a block of the GPU moves at a time."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(8)
    maps = torch.randn((2, channels, height + 3, width + 1), generator=generator)
    images, origins = torch.tensor([1, 0, 1]), torch.tensor([[0, 0], [-2, -1], [5, 1]])
    patches = torch.randn((3, channels, height, 1), generator=generator)
    for patch in ((None, None), (patches, origins + 1)):
        arguments = (maps, images, origins, height, width, *patch, -1.5)
        same(*each(lambda arguments=arguments: ops.gather_windows(*arguments)))


@pytest.mark.parametrize("edges", [(0, 0, 2, 2), (1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 7])
def test_gathered_pieces_are_equal_to_the_bit(each, edges, channels):
    from tests.sweep.test_incremental import pieces

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = pieces(channels, dtype, edges)
        same(*each(lambda arguments=arguments: ops.gather_pieces(*arguments)))


# -- convolutions of windows -----------------------------------------------------------------------------

#: Of numbers that are rounded to nearest: half the distance of neighbors, relative to them.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, "tf32": 2.0**-11}

#: The convolutions of the ten-layer network (inputs, outputs) with the sides of windows around a small occluder.
LAYERS = [(1, 32, 14), (32, 64, 12), (64, 64, 8), (64, 128, 8), (128, 96, 6), (96, 192, 6), (192, 128, 5)]
LAYERS += [(128, 256, 5), (256, 160, 4), (160, 320, 4)]


def rounds_once():
    """Return whether the processor multiplies and adds with one rounding, as a GPU does."""
    x = torch.full((1, 1, 1, 1), 1 + 2.0**-12)
    packed = ops.pack_convolution(x, -(x * x).flatten(), NATIVE.convolution_block(dtype=Dtype.FLOAT32))
    at = torch.zeros(1, dtype=torch.int64), torch.zeros((1, 2), dtype=torch.int64)
    out = ops.gather_windows(x, *at, 1, 1, None, None, 0.0, *packed, 1, [1, 1, 1, 1, 1, 1, 0])
    return out.item() != 0


def layer(inputs, outputs, kernel, dtype, seed=0):
    """Return random weights and biases, near 1 in sum."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs, *kernel), generator=generator) / (inputs * kernel[0] * kernel[1]) ** 0.5
    return weight.to(dtype), torch.randn(outputs, generator=generator).to(dtype)


def windows(channels, height, width, count, dtype, patch=True, seed=1):
    """Return arguments of ``gather_windows`` up to the padding: windows that lie within, across and beyond edges."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn((3, channels, height + 3, width + 2), generator=generator).to(dtype)
    images = torch.randint(0, 3, (count,), generator=generator)
    origins, places = (torch.randint(-3, 7, (count, 2), generator=generator) for _ in range(2))
    patches = torch.randn((count, channels, height // 2 + 1, width // 2 + 1), generator=generator).to(dtype)
    laid = (patches, origins + places // 3) if patch else (None, None)
    maps, patches = (t.contiguous(memory_format=torch.channels_last) for t in (maps, patches))
    return maps, images, origins, height, width, *laid, 0.0


def fused(op, arguments, weight, bias, stride=(1, 1), dilation=(1, 1), relu=True):
    """Convolve windows natively, with weights packed for the module in use."""
    packed = ops.pack_convolution(weight, bias, ops.convolution_block(arguments[0]))
    return op(*arguments, *packed, len(weight), [*weight.shape[2:], *stride, *dilation, int(relu)])


def expected(op, arguments, weight, bias, stride=(1, 1), dilation=(1, 1), relu=True, rounded=lambda t: t):
    """Return the result in float64, and the sum of the absolute values of all that each number is a sum of."""
    gathered, weight = rounded(op(*arguments)).double(), rounded(weight).double()
    out = F.conv2d(gathered, weight, bias.double(), stride, 0, dilation)
    size = F.conv2d(gathered.abs(), weight.abs(), bias.double().abs(), stride, 0, dilation)
    return out.relu() if relu else out, size


def exactly_the_cpu(monkeypatch, op, arguments, weight, bias, **geometry):
    """Compare the emulated float32 or float64 convolution with the CPU's, to the bit, and with float64."""
    with running("emulated", monkeypatch):
        emulated = fused(op, arguments, weight, bias, **geometry)
        out, size = expected(op, arguments, weight, bias, **geometry)
    with running("native", monkeypatch):
        native = fused(op, arguments, weight, bias, **geometry)
        if rounds_once():
            same(emulated, native)
    assert emulated.is_contiguous(memory_format=torch.channels_last)
    steps = weight[0].numel() + 1
    unit = 2.0**-53 if weight.dtype == torch.float64 else ROUNDING[weight.dtype]
    # The reference in float64 rounds as well.
    assert ((emulated.double() - out).abs() <= 2 * steps * unit * size).all()
    return emulated


@pytest.mark.parametrize(("inputs", "outputs", "side"), LAYERS, ids=str)
def test_layers_of_the_network_have_the_bits_of_the_cpu(monkeypatch, inputs, outputs, side):
    count = 6 if inputs < 64 else 2
    arguments = windows(inputs, side, side, count, torch.float32)
    out = exactly_the_cpu(monkeypatch, ops.gather_windows, arguments, *layer(inputs, outputs, (3, 3), torch.float32))
    assert out.shape == (count, outputs, side - 2, side - 2) and (out > 0).any() and (out == 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "kernel", "stride", "dilation"),
    [
        (1, 1, (5, 5), (1, 1), (1, 1), (1, 1)),
        (3, 33, (12, 13), (3, 2), (2, 1), (2, 3)),
        (4, 64, (9, 9), (3, 3), (2, 2), (1, 1)),
        (5, 70, (11, 9), (5, 5), (1, 2), (2, 1)),  # more taps than are looked up at a time
        (36, 66, (3, 13), (1, 11), (1, 1), (1, 1)),  # in a row of the kernel, too
        (7, 352, (14, 15), (2, 2), (1, 1), (1, 1)),  # more blocks of channels, and of pixels, than the grid has
        (4, 384, (14, 15), (2, 1), (1, 1), (1, 1)),
        (20, 8, (13, 1), (7, 1), (3, 1), (2, 1)),
    ],
    ids=str,
)
def test_geometries_have_the_bits_of_the_cpu(monkeypatch, dtype, inputs, outputs, size, kernel, stride, dilation):
    weight, bias = layer(inputs, outputs, kernel, dtype)
    for patch in (False, True):
        arguments = windows(inputs, *size, 7, dtype, patch)
        for padding in (0.0, -1.5):
            given = (*arguments[:-1], padding)
            options = {"stride": stride, "dilation": dilation, "relu": patch}
            exactly_the_cpu(monkeypatch, ops.gather_windows, given, weight, bias, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edges", [(0, 0, 2, 2), (1, 0, 1, 2), (0, 1, 2, 1), (0, 0, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 5), (4, 64), (7, 40), (16, 96)])
def test_convolved_pieces_have_the_bits_of_the_cpu(monkeypatch, dtype, edges, inputs, outputs):
    from tests.sweep.test_incremental import pieces

    arguments = pieces(inputs, dtype, edges)
    weight, bias = layer(inputs, outputs, (3, 2), dtype)
    exactly_the_cpu(monkeypatch, ops.gather_pieces, arguments, weight, bias)
    exactly_the_cpu(monkeypatch, ops.gather_pieces, arguments, weight, bias, stride=(2, 1), relu=False)


def test_unaligned_maps_and_no_windows_are_convolved(monkeypatch):
    maps, images, origins, *rest = windows(8, 7, 6, 5, torch.float32, patch=False)
    buffer = torch.empty(maps.numel() + 1)
    moved = buffer[1:].view(maps.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).copy_(maps)
    assert moved.is_contiguous(memory_format=torch.channels_last) and moved.data_ptr() % 16 == 4
    weight, bias = layer(8, 40, (3, 3), torch.float32)
    results = [
        exactly_the_cpu(monkeypatch, ops.gather_windows, (given, images, origins, *rest), weight, bias)
        for given in (maps, moved)
    ]
    same(*results)
    with running("emulated", monkeypatch):
        none = fused(ops.gather_windows, (maps, images[:0], origins[:0], *rest), weight, bias)
    assert none.shape == (0, 40, 5, 4)


def test_zeros_keep_their_sign_and_nan_spreads_as_on_the_cpu(monkeypatch):
    maps, *rest = windows(5, 6, 6, 4, torch.float32, patch=False)
    maps[0, 2, 3, 3] = float("nan")
    weight, bias = layer(5, 33, (3, 3), torch.float32)
    with running("emulated", monkeypatch):
        found = fused(ops.gather_windows, (maps, *rest), weight, bias)
    with running("native", monkeypatch):
        native = fused(ops.gather_windows, (maps, *rest), weight, bias)
    assert torch.equal(found.isnan(), native.isnan()) and found.isnan().any() and not found.isnan().all()
    negative = torch.full_like(bias, -0.0)
    given = (torch.full_like(maps, -0.0), *rest)
    zeros = exactly_the_cpu(monkeypatch, ops.gather_windows, given, weight.abs(), negative)
    assert zeros.signbit().any() and not zeros.signbit().all()  # the padding is +0


@pytest.mark.parametrize("inputs", [3, 8, 16])
def test_every_tap_and_channel_counts(monkeypatch, inputs):
    """A kernel that leaves out a product would fail: each weight alone makes the result that it must make."""
    arguments = windows(inputs, 5, 4, 3, torch.float32)
    taps = inputs * 9
    weight = torch.eye(taps).view(taps, inputs, 3, 3)
    bias = torch.zeros(taps)
    out = exactly_the_cpu(monkeypatch, ops.gather_windows, arguments, weight, bias, relu=False)
    unfolded = F.unfold(ops.gather_windows(*arguments), 3).view(out.shape)
    assert torch.equal(out, unfolded)


def to_tf32(values):
    """Round to TF32: to nearest, ties away from zero."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def nearly(found, out, size, kind, products):
    """Compare with float64: sums in float32 of exact products, and the rounding of the result."""
    # A GPU may truncate each sum, so two units for each, and one of the result's own kind.
    allowed = 2 * (products + 1) * ROUNDING[torch.float32] * size
    if found.dtype != torch.float32:
        allowed = allowed + ROUNDING[found.dtype] * (out.abs() + allowed) + 2.0**-24
    assert ((found.double() - out).abs() <= allowed).all()
    if kind == "tf32":
        assert found.dtype == torch.float32


@pytest.mark.parametrize("kind", ["tf32", torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "dilation"),
    [
        (1, 32, (3, 3), (1, 1), (1, 1)),
        (3, 33, (3, 2), (2, 1), (2, 3)),
        (8, 64, (3, 3), (1, 1), (1, 1)),
        (32, 64, (3, 3), (2, 2), (1, 1)),
        (40, 96, (1, 1), (1, 1), (1, 1)),
        (12, 70, (5, 5), (1, 1), (1, 1)),
        (160, 96, (3, 3), (1, 1), (1, 1)),
        (8, 352, (2, 1), (1, 1), (1, 1)),
        (16, 384, (2, 1), (1, 1), (1, 1)),
    ],
    ids=str,
)
def test_tensor_cores_round_as_they_may(monkeypatch, kind, inputs, outputs, kernel, stride, dilation):
    from occfast.native.ops import gather

    dtype = torch.float32 if kind == "tf32" else kind
    count = 2 if inputs > 100 else 5
    arguments = windows(inputs, 12 if inputs < 100 else 6, 11 if inputs < 100 else 5, count, dtype)
    weight, bias = layer(inputs, outputs, kernel, dtype)
    options = {"stride": stride, "dilation": dilation}
    monkeypatch.setattr(gather, "rounds_to_tf32", lambda device, dtype: kind == "tf32")
    rounded = to_tf32 if kind == "tf32" else (lambda t: t)
    with running("emulated", monkeypatch):
        for relu in (True, False):
            found = fused(ops.gather_windows, arguments, weight, bias, relu=relu, **options)
            out, size = expected(ops.gather_windows, arguments, weight, bias, relu=relu, rounded=rounded, **options)
            nearly(found, out, size, kind, weight[0].numel())
        if kind == "tf32":
            exact, size = expected(ops.gather_windows, arguments, weight, bias, relu=False, **options)
            far = (found.double() - exact).abs()
            assert (far <= 2.01 * ROUNDING["tf32"] * size).all()  # each factor is rounded
            assert (far > 4 * weight[0].numel() * ROUNDING[torch.float32] * size).any() or inputs > 8


@pytest.mark.parametrize("kind", ["tf32", torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 5), (4, 64), (16, 64)])
def test_tensor_cores_convolve_pieces(monkeypatch, kind, inputs, outputs):
    from occfast.native.ops import gather
    from tests.sweep.test_incremental import pieces

    dtype = torch.float32 if kind == "tf32" else kind
    arguments = pieces(inputs, dtype, (0, 0, 2, 2))
    weight, bias = layer(inputs, outputs, (3, 2), dtype)
    monkeypatch.setattr(gather, "rounds_to_tf32", lambda device, dtype: kind == "tf32")
    with running("emulated", monkeypatch):
        found = fused(ops.gather_pieces, arguments, weight, bias)
        rounded = to_tf32 if kind == "tf32" else (lambda t: t)
        out, size = expected(ops.gather_pieces, arguments, weight, bias, rounded=rounded)
    nearly(found, out, size, kind, weight[0].numel())


@pytest.mark.parametrize("kind", ["tf32", torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", [3, 8])
def test_tensor_cores_use_every_tap_and_channel(monkeypatch, kind, inputs):
    from occfast.native.ops import gather

    dtype = torch.float32 if kind == "tf32" else kind
    maps, *rest = windows(inputs, 5, 4, 3, dtype)
    maps = to_tf32(maps) if kind == "tf32" else maps
    rest[4] = to_tf32(rest[4]) if kind == "tf32" else rest[4]
    taps = inputs * 9
    monkeypatch.setattr(gather, "rounds_to_tf32", lambda device, dtype: kind == "tf32")
    with running("emulated", monkeypatch):
        weight = torch.eye(taps).view(taps, inputs, 3, 3).to(dtype)
        out = fused(ops.gather_windows, (maps, *rest), weight, torch.zeros(taps, dtype=dtype), relu=False)
        unfolded = F.unfold(ops.gather_windows(maps, *rest).float(), 3).view(out.shape)
    assert torch.equal(out.float(), unfolded)


@pytest.mark.parametrize("kernel", ["convolve_windows", "convolve_pieces"])
def test_numbers_beyond_the_maps_stop_a_convolution(kernel, capfd):
    struct = "GatherWindows" if kernel == "convolve_windows" else "GatherPieces"
    maps, out, origins = torch.zeros(2, 5, 3, 4), torch.zeros(2, 2, 2, 4), torch.zeros(2, 2, dtype=torch.int64)
    wrong, right = torch.tensor([0, 2]), torch.tensor([0, 1])
    cuts = torch.zeros(2, 8, dtype=torch.int64)
    shared = dict(maps=maps.data_ptr(), out=out.data_ptr(), origins=origins.data_ptr(), shape=(2, 4, 5, 3))
    shared |= dict(count=2, height=3, width=3, padding=0, itemsize=4, images=wrong.data_ptr())
    if kernel == "convolve_windows":
        given = EMULATED.GatherWindows(**shared, patches=None, patch_origins=None, patch_height=0, patch_width=0)
    else:
        pieces = dict(full=None, row_strips=None, column_strips=None, corners=None, entries=2, column_edges=1)
        sizes = dict(strip_rows=2, strip_height=1, strip_columns=2, strip_width=1, corner_height=1, corner_width=1)
        places = dict(rows=right.data_ptr(), columns=right.data_ptr(), first_edge=(0, 0))
        given = EMULATED.GatherPieces(
            **shared, **pieces, **sizes, **places, row_cuts=cuts.data_ptr(), column_cuts=cuts.data_ptr()
        )
    weights, bias = torch.zeros(1, 16, 32), torch.zeros(1, 32)
    conv = EMULATED.Convolution(
        weights=weights.data_ptr(),
        bias=bias.data_ptr(),
        dtype=Dtype.FLOAT32,
        channels=4,
        kernel=(2, 2),
        stride=(1, 1),
        dilation=(1, 1),
        relu=False,
        tf32=False,
    )
    with pytest.raises(RuntimeError, match=f"{kernel} failed: device-side assert triggered"):
        getattr(EMULATED, kernel)(given, conv, CONTEXT)
    said_once(capfd, f"{struct}: images: one is not among the maps")


def test_what_a_convolution_does_not_take(monkeypatch):
    assert [EMULATED.convolution_block(dtype=dtype) for dtype in Dtype] == [0, 32, 32, 32, 32]
    arguments = windows(4, 5, 5, 2, torch.bfloat16)
    with running("emulated", monkeypatch):
        weight, bias = layer(4, 8, (3, 3), torch.bfloat16)
        packed = ops.pack_convolution(weight, bias, 32)
    with running("native", monkeypatch), pytest.raises(TypeError, match="maps: expected dtype float32 or float64"):
        ops.gather_windows(*arguments, *packed, 8, [3, 3, 1, 1, 1, 1, 0])
    with running("emulated", monkeypatch), pytest.raises(ValueError, match="weights: expected blocks of 32"):
        ops.gather_windows(*arguments, *ops.pack_convolution(weight, bias, 16), 8, [3, 3, 1, 1, 1, 1, 0])
    with running("emulated", monkeypatch):
        weights, bias = packed
        off = torch.empty(weights.numel() + 1, dtype=weights.dtype)[1:].view(weights.shape).copy_(weights)
        with pytest.raises(RuntimeError, match="convolve_windows failed: invalid argument"):
            ops.gather_windows(*arguments, off, bias, 8, [3, 3, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "bfloat16"])
def test_a_sweep_convolves_by_the_emulated_kernels(monkeypatch, kind):
    """An exact sweep as on a GPU: with the bits of the CPU's convolution where that is promised, else nearly."""
    from occfast.native.ops import gather
    from occfast.sweep.evaluators.incremental.device import CUDA
    from occfast.sweep.evaluators.incremental.evaluator import FUSED, IncrementalEvaluator
    from occfast.sweep.geometry import SweepGrid
    from tests.sweep.test_incremental import make

    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    model, images = make("yi", torch.float32, 2)
    low, given = copy.deepcopy(model).to(dtype), images.to(dtype)
    grid = SweepGrid.over(tuple(images.shape[-2:]), 12, stride=9)
    positions, fill = torch.arange(2 * grid.positions)[::9], torch.zeros_like(given[:1])
    monkeypatch.setattr(gather, "rounds_to_tf32", lambda device, dtype: kind == "tf32")
    found = {}
    for backend in ("emulated", "native"):
        with running(backend, monkeypatch), torch.no_grad():
            evaluator = IncrementalEvaluator(low, grid, given, fuse=True, profile=CUDA, together=2)
            evaluator.start(given, fill)
            found[backend] = evaluator.outputs(positions)
            assert (evaluator.layout == FUSED) == (backend == "emulated" or kind != "bfloat16")
            copies = ops.occlude_positions(images, fill.to(images.dtype), positions, grid.native())
            expected = model(copies)
    if kind in ("float32", "float64") and rounds_once():
        same(found["emulated"], found["native"])
    allowed = {"float32": 1e-5, "float64": 1e-5, "tf32": 1e-2, "bfloat16": 0.05}[kind]
    assert (found["emulated"].double() - expected.double()).abs().max() <= allowed * expected.abs().max()
